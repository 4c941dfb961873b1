"""Creating the home: its folders, Dagster's configuration, and the refusal of places where data would be lost.

What belongs here: everything `mirror-realm init` does to the file system, safe to repeat. What does not: the catalog's
schema (`catalog`), the store's own files (`store`), downloading weights (`weights`).

Our `dagster.yaml` is a template that comes with the package. Dagster reads it in DAGSTER_HOME only, so it is copied
there, and the digest of what was copied is kept beside it: that is how an older copy of ours, which may be replaced,
is told from one that a person has edited, which is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import string
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mirror_realm_assets.errors import SetupError, as_error
from mirror_realm_assets.settings import Settings

TEMPLATE = Path(__file__).parent / "dagster_home" / "dagster.yaml"
"""Our `dagster.yaml` as it comes with the package."""
PRODUCTION = TEMPLATE.with_name("production.yaml")
"""What is added to it in production."""

_MOUNTINFO = Path("/proc/self/mountinfo")
_POSTGRES = "postgresql+psycopg2"  # with its driver: SQLAlchemy 2.1 takes plain `postgresql` for another one
_DIGEST_NAME = ".dagster.yaml.sha256"
# SQLite's locks are not reliable on these (sqlite.org/howtocorrupt.html, 2.1), and a file may change under a reader.
_NETWORK_KINDS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "gfs2",
    "ocfs2", "orangefs", "davfs", "webdav", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs",
    "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.davfs2", "fuse.smbnetfs", "fuse.juicefs", "fuse.mount-s3",
}  # fmt: skip
_STORAGE_IS_SET = re.compile(r"^(storage|run_storage|event_log_storage|schedule_storage)\s*:", re.MULTILINE)


@dataclass(frozen=True)
class Mount:
    """One line of the mount table: where something is mounted, the kind of file system, and from what."""

    point: Path
    kind: str
    source: str = ""


@dataclass(frozen=True)
class Installation:
    """What `install` found or made.

    Attributes:
        home: everything we keep.
        dagster_home: Dagster's home with `dagster.yaml`.
        store: the store's folder, or `None` if the store is not a local folder.
        models: the folder of weights.
        config: what happened to `dagster.yaml`: `installed` (there was none), `unchanged` (it is ours, current),
            `updated` (it was an older one of ours), `kept` (it is edited, and left as it is).
    """

    home: Path
    dagster_home: Path
    store: Path | None
    models: Path
    config: Literal["installed", "unchanged", "updated", "kept"]


def install(settings: Settings, *, mounts: Iterable[Mount] | None = None) -> Installation:
    """Creates what is missing of the home and changes nothing that is there; safe to repeat.

    Args:
        settings: where the home, Dagster's home and the store are.
        mounts: the mount table; by default the machine's own.

    Raises:
        SetupError: `home_unusable`, `disk_full` or `sqlite_on_network`; `invalid_argument` for a production that lacks
            a part.
    """
    if missing := lacking(settings):
        raise SetupError("invalid_argument", f"MIRROR_REALM_ENV is production, but {missing[0]}")
    table = tuple(read_mounts() if mounts is None else mounts)
    _refuse_sqlite_on_network(settings, table)
    if settings.on_cluster:  # the pod's own home; Dagster's configuration and the weights are mounted, or in the image
        _make_usable(settings.home)
        return Installation(settings.home, settings.dagster_home, None, settings.models_dir, "kept")
    store = settings.store_folder
    for folder in (settings.home, settings.dagster_home, settings.models_dir, *([store] if store else [])):
        _make_usable(folder)
    return Installation(
        home=settings.home,
        dagster_home=settings.dagster_home,
        store=store,
        models=settings.models_dir,
        config=_install_config(settings.dagster_home, dagster_config(settings)),
    )


def lacking(settings: Settings) -> list[str]:
    """What a production needs and these settings do not name, as ends of sentences; nothing of a local installation."""
    if settings.env == "local":
        return []
    found = []
    if _driver(settings.catalog_url) != _POSTGRES:
        found.append(f"MIRROR_REALM_CATALOG_URL does not name a PostgreSQL database ({_POSTGRES}://USER@HOST/NAME).")
    if settings.dagster_url is None or _driver(settings.dagster_url) != _POSTGRES:
        found.append(f"MIRROR_REALM_DAGSTER_URL does not name a PostgreSQL database ({_POSTGRES}://USER@HOST/NAME).")
    elif settings.dagster_url == settings.catalog_url:
        found.append(
            "MIRROR_REALM_DAGSTER_URL and MIRROR_REALM_CATALOG_URL name the same database; each needs its own."
        )
    if not (settings.bucket and settings.bucket[0]):
        found.append("MIRROR_REALM_STORE_URL does not name a bucket (s3://BUCKET/PREFIX).")
    return found


def dagster_config(settings: Settings) -> bytes:
    """The `dagster.yaml` of these settings."""
    text = TEMPLATE.read_text(encoding="utf-8")
    if settings.env == "local" or settings.bucket is None:
        return text.encode()
    bucket, prefix = settings.bucket
    values = {"bucket": bucket, "prefix": f"{prefix}compute-logs", "local_dir": str(settings.home / "compute-logs")}
    added = string.Template(PRODUCTION.read_text(encoding="utf-8"))
    text += added.substitute({name: json.dumps(value) for name, value in values.items()})  # JSON is YAML
    for name, value in (("endpoint_url", settings.s3_endpoint_url), ("region", settings.s3_region)):
        if value:
            text += f"    {name}: {json.dumps(value)}\n"
    return text.encode()


def _driver(url: str) -> str:
    return url.partition("://")[0]


def require(settings: Settings) -> None:
    """Makes sure that `install` has been run for these settings.

    On a cluster it is the migration's Job that runs it; the home of a pod is its own, new, and filled here.

    Raises:
        SetupError: `not_initialised`, naming what is missing; `home_unusable`.
    """
    if settings.on_cluster:
        _make_usable(settings.home)
        return
    for path in (settings.home, settings.models_dir, settings.dagster_home / "dagster.yaml"):
        if not path.exists():
            raise SetupError("not_initialised", f"{path} does not exist.")


def read_mounts(text: str | None = None) -> tuple[Mount, ...]:
    """The mount table in `text` (the form of `/proc/self/mountinfo`), by default the machine's own.

    Empty where the machine has no such table (macOS): nothing is refused then.
    """
    if text is None:
        try:
            text = _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ()
    found = []
    for line in text.splitlines():
        # The number of optional fields varies; a lone "-" ends them, the kind follows.
        left, _, right = line.partition(" - ")
        if right:
            kind, _, source = right.partition(" ")
            found.append(Mount(Path(_unescape(left.split(" ")[4])), kind, _unescape(source.split(" ")[0])))
    return tuple(found)


def mount_of(path: Path | str, mounts: Iterable[Mount] | None = None) -> Mount | None:
    """What holds `path` (which need not exist yet), or `None` if unknown."""
    resolved = Path(path).resolve()
    best: Mount | None = None
    for mount in read_mounts() if mounts is None else mounts:
        inside = resolved == mount.point or mount.point in resolved.parents
        # Of two mounts on one point the later one covers the earlier.
        if inside and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    return best


def kind_of_file_system(path: Path, mounts: Iterable[Mount]) -> str | None:
    """The kind of the file system that holds `path` (which need not exist yet), or `None` if unknown."""
    best = mount_of(path, mounts)
    return best.kind if best else None


def on_network(path: Path, mounts: Iterable[Mount] | None = None) -> bool:
    """Whether `path` lies on a network file system, as far as the mount table tells."""
    return kind_of_file_system(path, read_mounts() if mounts is None else mounts) in _NETWORK_KINDS


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` by `data`, so that a reader or a power cut meets the old or the new content, never a mixture."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    # The new name is in the folder, which needs a sync of its own.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unescape(name: str) -> str:
    # The kernel writes blanks, tabs, line ends and backslashes as three octal digits.
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), name)


def _sqlite_file(url: str) -> Path | None:
    scheme, _, rest = url.partition(":///")
    name = rest.partition("?")[0]
    return Path(name).absolute() if scheme.partition("+")[0] == "sqlite" and name not in {"", ":memory:"} else None


def _refuse_sqlite_on_network(settings: Settings, mounts: tuple[Mount, ...]) -> None:
    catalog = _sqlite_file(settings.catalog_url)
    kind = catalog and kind_of_file_system(catalog, mounts)
    if kind in _NETWORK_KINDS:
        raise SetupError("sqlite_on_network", f"The catalog {catalog} would be on a network file system ({kind}).")
    kind = kind_of_file_system(settings.dagster_home, mounts)
    if kind in _NETWORK_KINDS and not _storage_is_chosen(settings.dagster_home / "dagster.yaml"):
        raise SetupError(
            "sqlite_on_network",
            f"Dagster's database in {settings.dagster_home} would be on a network file system ({kind}).",
            remedy="Set DAGSTER_HOME to a folder on a local disk, or name a PostgreSQL storage in its dagster.yaml.",
        )


def _storage_is_chosen(config: Path) -> bool:
    # Whoever names the storage has decided; only the default, SQLite in DAGSTER_HOME, is ours to refuse.
    try:
        return _STORAGE_IS_SET.search(config.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def _make_usable(folder: Path) -> None:
    try:
        # The home holds private pictures. An existing folder keeps its mode: its owner has chosen it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"usable")
    except OSError as error:
        raise _as_setup_error(error, folder) from error


def _install_config(dagster_home: Path, template: bytes) -> Literal["installed", "unchanged", "updated", "kept"]:
    config, digest_file = dagster_home / "dagster.yaml", dagster_home / _DIGEST_NAME
    outcome: Literal["installed", "unchanged", "updated", "kept"]
    try:
        if not config.exists():
            outcome = "installed"
        elif (present := _digest(config.read_bytes())) == _digest(template):
            outcome = "unchanged"
        elif digest_file.exists() and digest_file.read_text(encoding="ascii", errors="replace").strip() == present:
            outcome = "updated"
        else:
            return "kept"
        if outcome != "unchanged":
            write_atomically(config, template, mode=0o644)
        # Last: if we are stopped before this, the next call finds our template and writes the digest.
        write_atomically(digest_file, f"{_digest(template)}\n".encode(), mode=0o644)
    except OSError as error:
        raise _as_setup_error(error, dagster_home) from error
    return outcome


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _as_setup_error(error: OSError, path: Path) -> SetupError:
    return SetupError(as_error(error, default="home_unusable").code, f"{path} cannot be used: {error.strerror}.")
