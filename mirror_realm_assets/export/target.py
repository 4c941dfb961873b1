"""Where an export may go: never into what is watched, never into what is ours, and only where nothing else is.

What belongs here: those checks, and the lock of a run. What does not: writing files (`placing`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.export.folder import WORK
from mirror_realm_assets.export.manifest import MANIFEST
from mirror_realm_assets.settings import Settings


def check(folder: Path, settings: Settings, sources: Sequence[Source], *, into_existing: bool) -> Path:
    """The folder to export to, without links.

    Args:
        folder: as a person named it.
        settings: say what is ours.
        sources: say what is watched.
        into_existing: whether other files may lie there.

    Raises:
        SetupError: `invalid_argument` when it is in or around one of those, or is not empty; `folder_missing` when
            there is no folder to make it in.
    """
    root = folder.expanduser().absolute().resolve()
    ours = (settings.home, settings.dagster_home, settings.models_dir, settings.store_folder)
    for place in [each for each in ours if each]:
        _refuse(root, place, f"{root} and {place}, which belongs to Mirror Realm itself, lie in each other.")
    for source in sources:
        place = Path(os.fsdecode(source.root))
        _refuse(root, place, f"{root} and the folder of the source {source.name} lie in each other.")
    if not os.path.lexists(root):
        if not root.parent.is_dir():
            raise SetupError("folder_missing", f"There is no folder {root.parent} to make {root.name} in.")
        return root
    if not root.is_dir():
        raise SetupError("invalid_argument", f"{root} is no folder.", remedy="Choose another one.")
    if not into_existing:
        _require_ours(root)
    return root


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Make the folder and keep other exports out of it.

    Raises:
        SetupError: `already_running`, or `export_failed` when it cannot be made or opened.
    """
    try:
        root.mkdir(exist_ok=True)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError("export_failed", f"{root} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SetupError(
            "already_running", f"Another export writes to {root}.", remedy="Wait until it has ended."
        ) from error
    except OSError:
        pass  # a share without locks
    try:
        yield
    finally:
        os.close(fd)


def _refuse(root: Path, place: Path, why: str) -> None:
    other = place.resolve()
    if root.is_relative_to(other) or other.is_relative_to(root):
        raise SetupError("invalid_argument", why, remedy="Choose a folder elsewhere.")


def _require_ours(root: Path) -> None:
    try:
        names = {entry.name for entry in os.scandir(root)}
    except OSError as error:
        raise SetupError("export_failed", f"{root} cannot be read: {error.strerror}.") from error
    if names and not names & {MANIFEST, WORK}:
        raise SetupError(
            "invalid_argument",
            f"{root} is not empty, and nothing was exported to it before.",
            remedy="Choose an empty folder, or say --into-existing: no file there is ever changed.",
        )
