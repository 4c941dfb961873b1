"""What a production set-up needs besides: databases and a bucket that answer, rights, clocks, and limits that fit.

What belongs here: what is asked of servers. What does not: the ledger's own content (`ledger`). Each server is asked
with a time limit, so that one that does not answer costs seconds.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from mirror_realm_assets import installation
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.enhance.memory import for_step, pictures_at_once
from mirror_realm_assets.errors import clean_reason
from mirror_realm_assets.resources.stores import bucket_client, encryption
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store import s3
from mirror_realm_assets.store.uploads import ONLY_IF_NEW
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.hardware import Precision

_CONNECT_SECONDS = 5
_CLOCKS_WARN, _CLOCKS_FAIL = 5.0, 600.0  # a service of S3 refuses requests that are a quarter of an hour off
_RUN_BYTES = 1.5e9  # what a run with torch and a model holds
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def setting(settings: Settings) -> list[Finding]:
    """Whether everything that the chosen kind of installation needs is named."""
    lacking = installation.lacking(settings)
    if lacking:
        text = " ".join(part[0].upper() + part[1:] for part in lacking)
        return [rate("environment", text, fail="Set what is missing, or MIRROR_REALM_ENV=local.")]
    return [rate("environment", f"{settings.env}")]


def databases(settings: Settings) -> list[Finding]:
    """The servers of catalog and Dagster: rights and clocks; nothing of SQLite."""
    found = []
    if settings.catalog_url.startswith("postgresql"):
        found += _asked("catalog", settings.catalog_url, _catalog_rights)
    if settings.env == "production" and settings.dagster_url:
        found += _asked("Dagster's database", settings.dagster_url, _dagster_tables)
    return found


def bucket(settings: Settings) -> list[Finding]:
    """The store's bucket: rights, conditional writes, and its clock; nothing of a folder."""
    if settings.bucket is None:
        return []
    name, prefix = settings.bucket
    client = bucket_client(settings)
    probe = {"Bucket": name, "Key": f"{prefix}probes/{uuid.uuid4()}"}
    try:
        before = datetime.now(UTC)
        answer = client.put_object(**probe, Body=b"probe", **ONLY_IF_NEW, **encryption(settings))
        heeds = False
        try:
            client.put_object(**probe, Body=b"another", **ONLY_IF_NEW, **encryption(settings))
        except Exception as error:
            if not s3.is_taken(error):
                raise
            heeds = True
        client.get_object(**probe)["Body"].read()
        client.list_objects_v2(Bucket=name, Prefix=prefix, MaxKeys=1)
        client.delete_object(**probe)
    except Exception as error:
        if not s3.is_of_s3(error):
            raise
        remedy = "Check endpoint, credentials and the rights to read, write, list and delete under the prefix."
        return [rate("bucket", f"s3://{name}/{prefix}: {s3.said(error)}", fail=remedy)]
    remedy = "" if heeds else "Use a service that heeds If-None-Match: without it two writers overwrite each other."
    told = "read, written, listed, deleted" + (
        ", one writer wins" if heeds else ", but a second writer was not refused"
    )
    found = [rate("bucket", f"s3://{name}/{prefix}: {told}", fail=remedy)]
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if said:
        found.append(_clock("bucket's clock", (parsedate_to_datetime(said).astimezone(UTC) - before).total_seconds()))
    return found


def limits(settings: Settings) -> list[Finding]:
    """Whether as many runs as may go on at once fit this machine, by the `dagster.yaml` that is installed."""
    import psutil

    try:
        text = (settings.dagster_home / "dagster.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text) or {}
    except FileNotFoundError:
        return []
    except (OSError, yaml.YAMLError) as error:
        remedy = "Correct it, or delete it and run `mirror-realm init`."
        return [rate("limits", clean_reason(f"dagster.yaml cannot be read: {error}"), fail=remedy)]
    concurrency: dict[str, Any] = config.get("concurrency") or {}
    runs = (concurrency.get("runs") or {}).get("max_concurrent_runs")
    pool = (concurrency.get("pools") or {}).get("default_limit")
    devices = _devices(settings)
    told = f"{runs} runs at once, {pool} in a pool; {devices} device{'s' if devices != 1 else ''} here"
    launcher = str((config.get("run_launcher") or {}).get("class", ""))
    if launcher and launcher != "DefaultRunLauncher":
        return [rate("limits", f"{told}; runs go elsewhere by {launcher}")]
    memory = psutil.virtual_memory().total
    warn = ""
    if runs is None or runs < 0 or runs * _RUN_BYTES > memory:
        warn = (
            f"Set concurrency.runs.max_concurrent_runs to {max(int(memory / _RUN_BYTES), 1)} or less in dagster.yaml."
        )
    elif pool is None or pool > devices:
        warn = f"Set concurrency.pools.default_limit to {devices} in dagster.yaml: more only wait for each other."
    elif (fitting := pictures_at_once(memory, _enhancement(settings))) < pool:
        warn = (
            f"Enhance on a machine with more memory, or set concurrency.pools.default_limit to {max(fitting, 1)} in "
            f"dagster.yaml: each enhancement needs {_enhancement(settings) / 1e9:.1f} GB."
        )
    return [rate("limits", told, warn=warn)]


def _enhancement(settings: Settings) -> int:
    """What a run of enhancement needs at least, with the policy that sources have by default."""
    usual = SourcePolicy()
    precision: Precision = "fp32" if settings.precision == "auto" else settings.precision
    model = find(settings.models_dir, usual.enhance_model, "enhance")
    return for_step(model, precision, max_pixels=usual.enhance_max_pixels, outscale=usual.enhance_outscale)


def _devices(settings: Settings) -> int:
    if settings.device == "cpu":
        return 1
    return max(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))), 1)


def _asked(name: str, url: str, ask: Any) -> list[Finding]:
    try:
        engine = sa.create_engine(url, connect_args={"connect_timeout": _CONNECT_SECONDS}, poolclass=sa.NullPool)
        with engine.connect() as conn:
            before = datetime.now(UTC)
            at = conn.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
            return [ask(conn), _clock(f"{name}'s clock", (at - before).total_seconds())]
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        where = sa.make_url(url).render_as_string()  # without its password
        text = clean_reason(f"{where} does not answer: {getattr(error, 'orig', None) or error}")
        return [rate(f"{name} rights", text, fail="Start the server, or correct the URL, the user and its password.")]


def _catalog_rights(conn: sa.Connection) -> Finding:
    """Whether the user may do with each of our tables what we do, and make new ones when an upgrade brings some."""
    there = set(sa.inspect(conn).get_table_names())
    lacking = [
        f"{right} on {table}"
        for table in t.metadata.tables
        if table in there
        for right in _RIGHTS
        if not conn.execute(sa.select(sa.func.has_table_privilege(table, right))).scalar()
    ]
    if lacking:
        text = f"The user may not {', '.join(lacking[:4])}" + (" and more" if len(lacking) > 4 else "")
        return rate("catalog rights", text, fail="Grant it all rights on the tables and sequences of the schema.")
    create = conn.execute(sa.text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar()
    remedy = "" if create else "Grant CREATE on the schema before the next upgrade: it brings new tables."
    version = conn.execute(sa.text("SHOW server_version")).scalar_one()
    return rate("catalog rights", f"PostgreSQL {version}: reads and writes every table", warn=remedy)


def _dagster_tables(conn: sa.Connection) -> Finding:
    names = set(sa.inspect(conn).get_table_names())
    if "catalog_info" in names:
        remedy = "Give Dagster a database of its own: both keep a table that says how far their schema is."
        return rate("Dagster's database rights", "The catalog lies in it", fail=remedy)
    if not {"runs", "event_logs"} <= names:
        create = conn.execute(sa.text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar()
        remedy = "" if create else "Grant CREATE on its schema: Dagster makes its tables at the first use."
        return rate("Dagster's database rights", "empty so far", fail=remedy)
    return rate("Dagster's database rights", f"{len(names)} tables")


def _clock(name: str, seconds: float) -> Finding:
    """How far a server's clock is off ours; leases and clean-up go by the server's alone."""
    off = abs(seconds)
    remedy = "Let both machines follow a time server."
    warn, fail = remedy if off > _CLOCKS_WARN else "", remedy if off > _CLOCKS_FAIL else ""
    return rate(name, f"{off:.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine's", warn=warn, fail=fail)
