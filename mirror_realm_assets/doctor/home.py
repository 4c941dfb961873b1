"""The home: its folders, space, weights, and Dagster's configuration.

What belongs here: files. What does not: the catalog and what it knows (`ledger`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time

from mirror_realm_assets import installation
from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.errors import REASONS, as_error
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.added import every_model
from mirror_realm_assets.weights.fetch import again, state, weights_path
from mirror_realm_assets.weights.registry import is_optional

_GIB = 1024**3
_SLOW_FSYNC_SECONDS = 0.5


def home(settings: Settings) -> list[Finding]:
    """The home and the space there is."""
    if not settings.home.is_dir():
        return [rate("home", f"{settings.home} is not there", fail=REASONS["not_initialised"].remedy)]
    try:
        with tempfile.TemporaryFile(dir=settings.home) as probe:
            began = time.monotonic()
            probe.write(b"usable")
            probe.flush()
            os.fsync(probe.fileno())
            took = time.monotonic() - began
    except OSError as error:
        found = f"{settings.home} cannot be written to: {error.strerror}"
        return [rate("home", found, fail=REASONS[as_error(error, default="home_unusable").code].remedy)]
    store = settings.store_folder
    folders = [settings.home, *([store] if store and store.is_dir() else [])]
    free, where = min((shutil.disk_usage(folder).free, folder) for folder in folders)
    wanted = f"Free space until there are {settings.low_space_bytes / _GIB:.1f} GiB; enhancement waits for it."
    low = free < settings.low_space_bytes
    space = rate("space", f"{free / _GIB:.1f} GiB free in {where}", warn=wanted if low else "")
    slow = "Put it on a faster disk: every result is written through to the disk." if took > _SLOW_FSYNC_SECONDS else ""
    return [rate("home", f"{settings.home}, written through to the disk in {took * 1000:.0f} ms", warn=slow), space]


def weights(settings: Settings) -> list[Finding]:
    """The weights of every model that is needed, was added, or is here."""
    found = []
    for model in every_model(settings.models_dir):
        name, its_state = f"model {model.name}", state(model, settings.models_dir)
        if its_state == "missing" and is_optional(model):
            continue
        path = weights_path(model, settings.models_dir)
        remedy = "" if its_state == "ok" else again(model, altered=path if its_state == "altered" else None)
        found.append(rate(name, f"{path} is {its_state}", fail=remedy))
    return found


def dagster_config(settings: Settings) -> list[Finding]:
    """Dagster's configuration."""
    config = settings.dagster_home / "dagster.yaml"
    try:
        content = config.read_bytes()
    except FileNotFoundError:
        return [rate("dagster.yaml", f"{config} is missing", fail=REASONS["not_initialised"].remedy)]
    chosen = any(line.startswith((b"storage:", b"run_storage:")) for line in content.splitlines())
    if not chosen and installation.on_network(settings.dagster_home):
        text = f"Dagster's database in {settings.dagster_home} is on a network file system"
        remedy = "Set DAGSTER_HOME to a folder on a local disk, or name a PostgreSQL storage in its dagster.yaml."
        return [rate("dagster.yaml", text, fail=remedy)]
    ours = content == installation.dagster_config(settings)
    return [rate("dagster.yaml", f"{config} {'is ours' if ours else 'was edited and is kept, or is an older one'}")]
