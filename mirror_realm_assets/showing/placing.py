"""Where a file that is made for people may be put, and putting it there.

What belongs here: the promise that no original and no foreign file is ever replaced, and that nothing of ours appears
within a source. What does not: what is in the file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError, as_error
from mirror_realm_assets.ingest.folder_watch import own_folders
from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.settings import Settings

# Enough of a file to see whether we made it.
_HEAD_BYTES = 1024
_Folder = tuple[int, int]  # device and inode: links, bind mounts and other spellings lead to the same


def require_place(settings: Settings, catalog: Catalog, target: Path, *, mark: bytes) -> Path:
    """The place of a file to be written, made absolute.

    Args:
        settings: where our own folders are.
        catalog: which folders are sources.
        target: the file; it may exist only if it is an earlier one of ours.
        mark: what begins every file of this kind, within its first 1024 bytes.

    Raises:
        SetupError: the folder does not exist, it lies within a source or the store, or something else has that name.
    """
    place = target.expanduser().absolute()
    with catalog.read() as conn:
        registered = sources.all_sources(conn)
    if not place.parent.is_dir():
        raise SetupError("not_found", f"There is no folder {place.parent}.", remedy="Make it, or choose another place.")
    _refuse_sources(settings, registered, place)
    _refuse_foreign(place, mark)
    return place


def put(place: Path, data: bytes) -> None:
    """Write a file so that a reader meets the old one or the whole new one; its owner alone can read it.

    Raises:
        SetupError: `disk_full` or `invalid_argument`, naming the file.
    """
    try:
        write_atomically(place, data)
    except OSError as error:
        code = "disk_full" if as_error(error).code == "disk_full" else "invalid_argument"
        raise SetupError(
            code,
            f"{place} cannot be written: {error.strerror or error}.",
            remedy="Choose a place that you may write to.",
        ) from error


def _refuse_sources(settings: Settings, registered: list[Source], place: Path) -> None:
    watched = {root: source.name for source in registered if (root := _identity(source.root)) is not None}
    working = {_identity(os.fsencode(ours)) for ours in (settings.store_folder, settings.dagster_home) if ours}
    own = own_folders(settings)
    real = Path(os.path.realpath(place.parent))
    for folder in (real, *real.parents):
        found = _identity(os.fsencode(folder))
        if found is None:
            continue
        if found in watched:
            raise SetupError(
                "invalid_argument",
                f"{place} would lie within the source {watched[found]}, where nothing is ever written.",
                remedy="Choose a folder that is no source.",
            )
        if found in working:
            raise SetupError(
                "invalid_argument", f"{place} would lie within {folder}.", remedy="Choose a folder of your own."
            )
        if found in own:  # what lies above the home does not count: the home is never read as a source
            return


def _refuse_foreign(place: Path, mark: bytes) -> None:
    try:
        mode = place.lstat().st_mode
        ours = stat.S_ISREG(mode) and mark in _head(place)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SetupError("invalid_argument", f"{place} cannot be used: {error.strerror or error}.") from error
    if not ours:
        raise SetupError(
            "already_exists", f"{place} exists and was not made by us, so it stays.", remedy="Choose another name."
        )


def _head(place: Path) -> bytes:
    with place.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _identity(folder: bytes) -> _Folder | None:
    try:
        found = os.stat(folder)  # noqa: PTH116 - bytes
    except OSError:
        return None
    return found.st_dev, found.st_ino
