"""All checks, in the order in which people read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mirror_realm_assets.doctor import cluster, home, ledger, machine, production, serving
from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.errors import MirrorRealmError, clean_reason
from mirror_realm_assets.settings import Settings

GROUPS = ("this machine", "home", "catalog", "store", "models", "sources", "Dagster", "ports", "processes")
"""In the order of the report."""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; never raises: a check that goes wrong is a finding too."""
    found: list[Finding] = []
    for group, name, check in _CHECKS:
        try:
            looked_at = check(settings)
        except MirrorRealmError as error:
            looked_at = [rate(name, error.message, fail=error.remedy)]
        except Exception as error:
            text = clean_reason(f"It could not be looked at: {type(error).__name__}: {error}")
            looked_at = [rate(name, text, fail="Mend what it names, or report it as a fault of Mirror Realm.")]
        found += [replace(finding, group=finding.group or group) for finding in looked_at]
    return sorted(found, key=lambda finding: GROUPS.index(finding.group))


_CHECKS: tuple[tuple[str, str, Callable[[Settings], list[Finding]]], ...] = (
    ("this machine", "packages", machine.software),
    ("this machine", "device", machine.device),
    ("this machine", "precision", machine.precision),
    ("this machine", "machine", machine.capacity),
    ("this machine", "clock", machine.clock),
    ("home", "environment", production.setting),
    ("home", "home", home.home),
    ("catalog", "catalog", ledger.ledger),
    ("catalog", "databases", production.databases),
    ("store", "bucket", production.bucket),
    ("models", "models", home.weights),
    ("Dagster", "dagster.yaml", home.dagster_config),
    ("Dagster", "limits", production.limits),
    ("Dagster", "GPUs", cluster.gpus),
    ("ports", "port", serving.serving),
)
