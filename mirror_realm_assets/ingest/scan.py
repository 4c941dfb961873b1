"""Walking a source's folder and comparing what is there with what the ledger knows.

What belongs here: one walk, its errors, and the sightings that follow. What does not: waiting until a file rests
(`watch`), reading bytes (`originals`). Nothing here opens a file or writes into a source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mirror_realm_assets.catalog.files import Known, Sighting
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest.ignore import ignored


@dataclass(frozen=True)
class Entry:
    """A regular file as a walk saw it; `path` is relative to the root, raw bytes."""

    path: bytes
    size: int
    mtime_ns: int
    inode: int
    device: int


@dataclass
class Walk:
    """What one walk saw.

    Attributes:
        entries: regular files that are not ignored.
        odd: links, sockets, mounts and the like, each with a reason code.
        ignored: how many names were ignored by pattern.
        errors: folders or files that could not be looked at; with any, the walk is partial and proves no absence.
        identity: device and inode of the root.
    """

    entries: list[Entry] = field(default_factory=list)
    odd: list[tuple[bytes, str]] = field(default_factory=list)
    ignored: int = 0
    errors: list[str] = field(default_factory=list)
    identity: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether everything beneath the root was seen."""
        return not self.errors


def walk(
    root: bytes,
    patterns: Sequence[str] = (),
    own: Collection[tuple[int, int]] = (),
    *,
    on_progress: Callable[[Walk], None] = lambda _walk: None,
) -> Walk:
    """Look at every file beneath `root`.

    Args:
        root: the folder.
        patterns: the source's own ignore patterns.
        own: device and inode of folders of ours: what we make is never an input.
        on_progress: shown what was seen so far, folder by folder.

    Raises:
        SetupError: `folder_missing` when the root itself cannot be listed.
    """
    try:
        top = os.stat(root)  # noqa: PTH116 - pathlib has no bytes paths
        if not stat.S_ISDIR(top.st_mode):
            raise SetupError("folder_missing", f"{os.fsdecode(root)} is no folder.")
    except OSError as error:
        raise SetupError("folder_missing", f"The folder {os.fsdecode(root)} cannot be opened.") from error
    found = Walk(identity={"device": top.st_dev, "inode": top.st_ino})
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listing:  # noqa: PTH118 - pathlib has no bytes paths
                for item in listing:
                    _look(found, root, folder, item, folders, patterns, own, top.st_dev)
        except OSError as error:
            found.errors.append(f"{error.strerror}")
        on_progress(found)
    return found


def _link_code(root: bytes, path: bytes) -> str:
    """No link is followed: what it leads to inside the folder is seen there, and what is outside is refused."""
    top = os.path.realpath(root)
    target = os.path.realpath(os.path.join(top, path))  # noqa: PTH118 - pathlib has no bytes paths
    return "not_regular" if target == top or target.startswith(top.rstrip(b"/") + b"/") else "outside_root"


def _look(
    found: Walk,
    root: bytes,
    folder: bytes,
    item: os.DirEntry[bytes],
    folders: list[bytes],
    patterns: Sequence[str],
    own: Collection[tuple[int, int]],
    device: int,
) -> None:
    path = folder + b"/" + item.name if folder else item.name
    if ignored(path, patterns):
        found.ignored += 1
        return
    try:
        seen = item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # it went between listing and looking, as files do
    except OSError as error:
        found.errors.append(f"{error.strerror}")
        return
    if stat.S_ISREG(seen.st_mode):
        found.entries.append(Entry(path, seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_dev))
    elif stat.S_ISDIR(seen.st_mode):
        if (seen.st_dev, seen.st_ino) in own:
            return
        if seen.st_dev != device:  # a mount: opening would refuse it too
            found.odd.append((path, "outside_root"))
        else:
            folders.append(path)
    else:
        found.odd.append((path, _link_code(root, path) if stat.S_ISLNK(seen.st_mode) else "not_regular"))


def changed(found: Walk, known: Mapping[bytes, Known]) -> Iterator[Entry]:
    """Entries that are new, differ in size or mtime from what is known, or were missing."""
    for entry in found.entries:
        old = known.get(entry.path)
        if old is None or (old.size, old.mtime_ns) != (entry.size, entry.mtime_ns) or old.state == "missing":
            yield entry


def sighting(entry: Entry) -> Sighting:
    """The journal row for a file that rests."""
    return Sighting("seen", entry.path, entry.size, entry.mtime_ns, entry.inode, entry.device)


def odd_sightings(found: Walk, known: Mapping[bytes, Known]) -> list[Sighting]:
    """Journal rows for links and other things that are not read, the first time they are seen."""
    return [Sighting("ignored", path, code=code) for path, code in found.odd if path not in known]


def missing_sightings(found: Walk, known: Mapping[bytes, Known], identity: Mapping[str, int] | None) -> list[Sighting]:
    """Journal rows for known files that are not there any more.

    Only a complete walk of a root with the recorded identity that saw anything at all is believed: a share that
    vanishes, lists empty or lists partly proves nothing.
    """
    if not found.complete or (identity is not None and dict(identity) != found.identity):
        return []
    here = {entry.path for entry in found.entries}
    if not here and known:
        return []
    return [
        Sighting("missing", path)
        for path, old in known.items()
        if old.state in ("present", "unreadable") and path not in here
    ]


def look_at(
    root: bytes, path: bytes, patterns: Sequence[str] = (), own: Collection[tuple[int, int]] = ()
) -> Entry | None:
    """One file that `walk` would take, or None: ignored, ours, no regular file, or reached through a link or mount."""
    if ignored(path, patterns):
        return None
    *folders, _name = path.split(b"/")
    place = root
    try:
        device = os.stat(root).st_dev  # noqa: PTH116 - pathlib has no bytes paths
        for folder in folders:
            place = os.path.join(place, folder)  # noqa: PTH118
            above = os.lstat(place)
            if not stat.S_ISDIR(above.st_mode) or above.st_dev != device or (above.st_dev, above.st_ino) in own:
                return None
        seen = os.lstat(os.path.join(root, path))  # noqa: PTH118
    except OSError:
        return None
    if not stat.S_ISREG(seen.st_mode):
        return None
    return Entry(path, seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_dev)
