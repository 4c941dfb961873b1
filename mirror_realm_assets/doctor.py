"""What is installed, found and missing on this machine, and how to mend it.

What belongs here: looking, and one sentence with a remedy for each thing looked at. What does not: mending; nothing is
created, fetched or changed, and no model is loaded. Versions come from package metadata, so that torch is not imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import psutil
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from mirror_realm_assets import installation, liveness, ports
from mirror_realm_assets.catalog import sources, workers
from mirror_realm_assets.catalog.engine import Catalog, alembic_config
from mirror_realm_assets.errors import REASONS, MirrorRealmError, SetupError, as_error, clean_reason
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.opening import IDENTITY, open_store
from mirror_realm_assets.weights.fetch import state
from mirror_realm_assets.weights.hardware import Device, choose_precision, cpu_flags, free_memory
from mirror_realm_assets.weights.registry import MODELS

Level = Literal["ok", "warn", "fail"]

_GIB = 1024**3
# Below this, an enhancement run (1 GB for the process, more for a tile) is likely to be ended by the kernel.
_MIN_MEMORY_BYTES = 2 * _GIB
# One watch is used by every folder of a source; a photo library of decades has some ten thousand.
_MIN_WATCHES = 65_536
# Any of them says that a GPU's driver is loaded: NVIDIA's own, within a container, under Windows, AMD's.
_GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the check, stable: scripts may look for it.
        level: `fail` keeps something from working, `warn` makes it worse than it could be.
        found: what is so, for people.
        remedy: what a person can do; empty when nothing needs to be done.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; never raises: a check that goes wrong is a finding too."""
    found: list[Finding] = []
    for name, check in _CHECKS:
        try:
            found += check(settings)
        except MirrorRealmError as error:
            found.append(_rate(name, error.message, fail=error.remedy))
        except Exception as error:
            text = clean_reason(f"It could not be looked at: {type(error).__name__}: {error}")
            found.append(_rate(name, text, fail="Mend what it names, or report it as a fault of Mirror Realm."))
    return found


def open_catalog(url: str) -> Catalog:
    """The catalog at `url`, whether or not anything is there.

    Raises:
        SetupError: `invalid_argument` when no database can be meant by such a URL.
    """
    try:
        return Catalog(url)
    except (sa.exc.ArgumentError, ImportError, ValueError) as error:
        raise SetupError(
            "invalid_argument",
            f"The catalog's URL means no database that we can open: {error}.",
            remedy="Set MIRROR_REALM_CATALOG_URL to sqlite:////PATH or postgresql+psycopg2://USER@HOST/NAME.",
        ) from error


def _rate(name: str, found: str, *, warn: str = "", fail: str = "") -> Finding:
    """A finding whose level follows from the remedy that is needed, if any."""
    return Finding(name, "fail" if fail else "warn" if warn else "ok", found, fail or warn)


def _software(_settings: Settings) -> list[Finding]:
    wrong = "" if sys.version_info[:2] == (3, 11) else "Use Python 3.11; the pinned packages need it."
    python = _rate("python", f"Python {platform.python_version()}", fail=wrong)
    pins = [line.split("==") for line in metadata.requires("mirror-realm") or [] if "==" in line and ";" not in line]
    versions = {name: _version(name) for name, _ in pins}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return [python, _rate("packages", f"Not installed: {', '.join(missing)}", fail="Install the package again.")]
    other = [f"{name} {versions[name]} (pinned: {pinned})" for name, pinned in pins if versions[name] != pinned]
    found = "; ".join([f"dagster {_version('dagster')}, torch {_version('torch')}", *other])
    return [python, _rate("packages", found, warn="Install the pinned versions." if other else "")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]  # after "+" stands the build, as in 2.14.1+cpu
    except metadata.PackageNotFoundError:
        return None


def _expected_device(settings: Settings) -> Device:
    """What torch will choose, as far as can be told without loading it."""
    gpu = "+cpu" not in metadata.version("torch") and any(Path(driver).exists() for driver in _GPU_DRIVERS)
    return "cuda" if gpu and settings.device != "cpu" else "cpu"


def _device(settings: Settings) -> list[Finding]:
    device = _expected_device(settings)
    if settings.device == "cuda" and device == "cpu":
        remedy = "Set MIRROR_REALM_DEVICE to auto or cpu, or install the GPU's driver and torch for it."
        return [_rate("device", "The device is set to cuda; there is no GPU that torch could use.", fail=remedy)]
    return [_rate("device", f"{device} (setting: {settings.device})")]


def _precision(settings: Settings) -> list[Finding]:
    device, flags = _expected_device(settings), cpu_flags()
    precision = choose_precision(settings.precision, device, flags)
    if precision == "bf16" and device == "cpu" and choose_precision("auto", "cpu", flags) != "bf16":
        found = "bf16, which this CPU has to emulate: about 10 times slower than fp32"
        return [_rate("precision", found, warn="Set MIRROR_REALM_PRECISION to auto.")]
    return [_rate("precision", f"{precision} (setting: {settings.precision})")]


def _machine(settings: Settings) -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fewer = f"Set MIRROR_REALM_THREADS to {cores}: more slows everything." if settings.threads > cores else ""
    free = free_memory("cpu")
    more = "Free some memory: enhancement wants at least 2 GiB." if free < _MIN_MEMORY_BYTES else ""
    return [
        _rate("cpu", f"{cores} cores, {settings.threads} threads for a model", warn=fewer),
        _rate("memory", f"{free / _GIB:.1f} GiB free", warn=more),
    ]


def _home(settings: Settings) -> list[Finding]:
    if not settings.home.is_dir():
        return [_rate("home", f"{settings.home} is not there", fail=REASONS["not_initialised"].remedy)]
    try:
        with tempfile.TemporaryFile(dir=settings.home) as probe:
            probe.write(b"usable")
    except OSError as error:
        found = f"{settings.home} cannot be written to: {error.strerror}"
        return [_rate("home", found, fail=REASONS[as_error(error, default="home_unusable").code].remedy)]
    store = _store_folder(settings.store_url)
    folders = [settings.home, *([store] if store and store.is_dir() else [])]
    free, where = min((shutil.disk_usage(folder).free, folder) for folder in folders)
    wanted = f"Free space until there are {settings.low_space_bytes / _GIB:.1f} GiB; enhancement waits for it."
    low = free < settings.low_space_bytes
    space = _rate("space", f"{free / _GIB:.1f} GiB free in {where}", warn=wanted if low else "")
    return [_rate("home", str(settings.home)), space]


def _store_folder(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in url else Path(url).expanduser().absolute()


def _ledger(settings: Settings) -> list[Finding]:
    """The catalog, and what only it knows: whose the store is, the sources, the workers."""
    catalog = open_catalog(settings.catalog_url)
    try:
        if catalog.is_sqlite:
            _require_sqlite(Path(catalog.url.database or ""))
        catalog_uuid = catalog.uuid()
        found = [_revision(catalog), _store(settings, catalog_uuid)]
        if found[0].level == "ok":
            found += [*_sources(catalog), _workers(catalog)]
        return found
    except (sa.exc.DBAPIError, sqlite3.Error, SetupError) as error:
        if isinstance(error, SetupError) and error.code != "catalog_failed":
            raise
        where = catalog.url.render_as_string()
        cause = error.__cause__ or error
        text = clean_reason(f"{where} cannot be read: {getattr(cause, 'orig', None) or cause}")
        remedy = "Start the database, correct MIRROR_REALM_CATALOG_URL, or restore the catalog from a backup."
        return [_rate("catalog", text, fail=remedy)]
    finally:
        catalog.close()


def _require_sqlite(file: Path) -> None:
    if not file.is_file():  # asking SQLite would make it
        raise SetupError("not_initialised", f"There is no catalog at {file}.")
    if installation.on_network(file):
        raise SetupError("sqlite_on_network", f"The catalog {file} is on a network file system.")


def _revision(catalog: Catalog) -> Finding:
    script = ScriptDirectory.from_config(alembic_config())
    known = [revision.revision for revision in script.walk_revisions()]
    with catalog.read() as conn:
        current = MigrationContext.configure(conn).get_current_revision()
    where = catalog.url.render_as_string()
    if current == known[0]:
        return _rate("catalog", f"{where}, revision {current}")
    if current in known or current is None:
        found = f"{where} has the older revision {current}; {known[0]} is wanted"
        return _rate("catalog", found, fail="Run `mirror-realm init`; it brings the catalog up to date.")
    found = f"{where} has the revision {current}, which this version does not know"
    return _rate("catalog", found, fail="Install the newer Mirror Realm that made it.")


def _store(settings: Settings, catalog_uuid: str) -> Finding:
    folder = _store_folder(settings.store_url)
    if folder is not None and not (folder / IDENTITY).exists():
        # Opening it would make it; and an unmounted drive must not be taken for a new store.
        remedy = "Mount the drive if it is on one, else run `mirror-realm init`."
        return _rate("store", f"There is no store in {folder}", fail=remedy)
    try:
        open_store(settings.store_url, catalog_uuid)
    except SetupError as error:
        return _rate("store", error.message, fail=error.remedy)
    return _rate("store", f"{settings.store_url}, of this catalog")


def _sources(catalog: Catalog) -> list[Finding]:
    with catalog.read() as conn:
        registered = sources.all_sources(conn)
    found = []
    for source in registered:
        name = f"source {source.name}"
        # Bytes: a path need not be text.
        if not os.path.isdir(source.root) or not os.access(source.root, os.R_OK | os.X_OK):  # noqa: PTH112
            text = f"The folder {source.root_display} is missing or cannot be read"
            found.append(_rate(name, text, fail=REASONS["folder_missing"].remedy))
        elif not source.active:
            text = f"{source.state}: {source.state_reason or 'no reason recorded'}"
            found.append(_rate(name, text, warn=f"`mirror-realm sources resume {source.name}` goes on with it."))
    return found or [_rate("sources", f"{len(registered)} registered")]


def _workers(catalog: Catalog) -> Finding:
    with catalog.read() as conn:
        alive = [liveness.is_alive(worker.process) for worker in workers.open_workers(conn)]
    dead = alive.count(False)
    remedy = "`mirror-realm up` puts their work back; so does the next `mirror-realm ingest`."
    found = f"{len(alive) - dead} at work, {dead} ended without saying so"
    return _rate("workers", found, warn=remedy if dead else "")


def _weights(settings: Settings) -> list[Finding]:
    found = []
    for model in MODELS.values():
        name, its_state = f"model {model.name}", state(model, settings.models_dir)
        remedy = "" if its_state == "ok" else REASONS[f"weights_{its_state}"].remedy
        found.append(_rate(name, f"{settings.models_dir / model.filename} is {its_state}", fail=remedy))
    return found


def _dagster_config(settings: Settings) -> list[Finding]:
    config = settings.dagster_home / "dagster.yaml"
    try:
        content = config.read_bytes()
    except FileNotFoundError:
        return [_rate("dagster.yaml", f"{config} is missing", fail=REASONS["not_initialised"].remedy)]
    chosen = any(line.startswith((b"storage:", b"run_storage:")) for line in content.splitlines())
    if not chosen and installation.on_network(settings.dagster_home):
        text = f"Dagster's database in {settings.dagster_home} is on a network file system"
        remedy = "Set DAGSTER_HOME to a folder on a local disk, or name a PostgreSQL storage in its dagster.yaml."
        return [_rate("dagster.yaml", text, fail=remedy)]
    ours = content == installation.TEMPLATE.read_bytes()
    return [_rate("dagster.yaml", f"{config} {'is ours' if ours else 'was edited and is kept, or is an older one'}")]


def _serving(settings: Settings) -> list[Finding]:
    pid = liveness.held(settings.home / "up.lock")
    supervisor = _rate("supervisor", f"`mirror-realm up` runs as process {pid}" if pid else "not running")
    where = f"{settings.host}:{settings.port}"
    if ports.free_port(settings.host, settings.port):
        return [supervisor, _rate("port", f"{where} is free")]
    ours = pid and ports.wait_ready(f"http://{where}", 1.0)
    remedy = "" if ours else "Stop it, or set MIRROR_REALM_PORT to another port (`mirror-realm up --port`)."
    return [supervisor, _rate("port", f"{where} is taken by {_listener(settings.port)}", warn=remedy)]


def _listener(port: int) -> str:
    """Who listens on a port, as far as we may know: the system shows only a user's own programs."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:
        pass  # not ours to see, or gone meanwhile
    return "another program"


def _inotify(_settings: Settings) -> list[Finding]:
    try:
        watches, instances = (int((_INOTIFY / name).read_text()) for name in ("max_user_watches", "max_user_instances"))
    except (OSError, ValueError):
        return [_rate("inotify", "no limits of this kind here; folders are polled")]
    remedy = "`sudo sysctl fs.inotify.max_user_watches=524288`; until then large sources are polled."
    found = f"{watches} folders can be watched, by {instances} programs"
    return [_rate("inotify", found, warn=remedy if watches < _MIN_WATCHES else "")]


_CHECKS: tuple[tuple[str, Callable[[Settings], list[Finding]]], ...] = (
    ("packages", _software),
    ("device", _device),
    ("precision", _precision),
    ("machine", _machine),
    ("home", _home),
    ("dagster.yaml", _dagster_config),
    ("catalog", _ledger),
    ("models", _weights),
    ("port", _serving),
    ("inotify", _inotify),
)
