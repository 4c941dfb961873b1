"""Walking a source's folder and comparing what is there with what the ledger knows.

What belongs here: one walk, its errors, and the differences. What does not: waiting until a file rests and what follows
from a difference (`watch`), reading bytes (`originals`). Nothing here opens a file or writes into a source.

Walk and ledger are both in the byte order of whole paths, so that they are compared like two sorted lists: of a million
files neither is ever in memory.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mirror_realm_assets.catalog.companions import SUFFIXES
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.catalog.known import KnownRow
from mirror_realm_assets.ingest.ignore import Rules
from mirror_realm_assets.ingest.root_identity import identity_of

_GONE = (errno.ENOENT, errno.ENOTDIR)
# A quick first look at every name in a folder with ignored ones.
_SIDECAR_ENDS = frozenset(os.fsencode(suffix[-4:]) for suffix in SUFFIXES)


class Entry(NamedTuple):
    """A regular file as a walk saw it; `path` is relative to the root, raw bytes."""

    path: bytes
    size: int
    mtime_ns: int
    inode: int
    device: int


class Folder(NamedTuple):
    """What a walk saw in one folder.

    Attributes:
        fingerprint: of all names and stats in it; `UNKNOWN` when it has to be looked at again.
        files: regular files that are not ignored.
        ignored: names that are.
        folders: its folders, as prefixes of paths.
        odd: links and the like, each with a reason code.
    """

    fingerprint: int
    files: int
    ignored: int
    folders: tuple[bytes, ...]
    odd: tuple[tuple[bytes, str], ...]


UNKNOWN = -1
"""Fingerprint of no folder: `hash` never returns it."""


class Changed(NamedTuple):
    """A folder that is not as it is remembered: its files, in order, and those of its folders that are gone."""

    prefix: bytes
    entries: list[Entry]
    gone: tuple[bytes, ...]


class Walk:
    """One walk over all files beneath a folder.

    Iterating yields every file in the byte order of whole paths; `changes` yields only folders that are not as they are
    remembered. One or the other, once. A folder's prefix is its path with a slash at the end, empty for the root.

    Args:
        root: the folder.
        patterns: the source's own ignore patterns.
        own: device and inode of folders of ours: what we make is never an input.
        disk: has `scandir`, `stat` and `lstat`; the system's own by default.
        on_folder: called before a folder is entered.
        on_sidecars: told of each folder that is looked into, with the sidecars in it; none are files of the walk.

    Raises:
        SetupError: `folder_missing` when the root itself cannot be looked at.

    Attributes:
        identity: what the root is known by.
        files: regular files that are there.
        odd: links, sockets, mounts and the like, each with a reason code.
        ignored: how many names were ignored by pattern.
        errors: folders or files that could not be looked at; with any, the walk is partial and proves no absence.
        folders: what was seen in each folder, by prefix.
    """

    def __init__(
        self,
        root: bytes,
        patterns: Sequence[str] = (),
        own: Collection[tuple[int, int]] = (),
        *,
        disk: Any = os,
        on_folder: Callable[[Walk], None] = lambda _walk: None,
        on_sidecars: Callable[[bytes, Sequence[Entry]], None] | None = None,
    ) -> None:
        self.identity = identity_of(root, disk)
        self.files = 0
        self.odd: list[tuple[bytes, str]] = []
        self.ignored = 0
        self.errors: list[str] = []
        self.folders: dict[bytes, Folder] = {}
        self._root = root.rstrip(b"/") or b"/"
        self._rules = Rules(patterns)
        self._own = frozenset(own)
        self._disk = disk
        self._on_folder = on_folder
        self._on_sidecars = on_sidecars

    @property
    def complete(self) -> bool:
        """Whether everything beneath the root was seen, as far as it has been walked."""
        return not self.errors

    def __iter__(self) -> Iterator[Entry]:
        stack = [iter(self._sorted(b"", *self._read(b"")))]
        while stack:
            for path, entry in stack[-1]:
                if entry is None:
                    self._on_folder(self)
                    stack.append(iter(self._sorted(path, *self._read(path))))
                    break
                yield entry
            else:
                stack.pop()

    def changes(self, remembered: Mapping[bytes, Folder]) -> Iterator[Changed]:
        """Folders that differ from what an earlier walk saw; no file of the others is handled, only looked at."""
        stack = [b""]
        while stack:
            prefix = stack.pop()
            self._on_folder(self)
            seen, fingerprint = self._read(prefix)
            before = remembered.get(prefix)
            if before is not None and before.fingerprint == fingerprint != UNKNOWN:
                self._note(prefix, before)
                stack.extend(before.folders)
                continue
            entries = [entry for _path, entry in self._sorted(prefix, seen, fingerprint) if entry is not None]
            here = self.folders[prefix].folders
            stack.extend(here)
            gone = tuple(folder for folder in before.folders if folder not in here) if before else ()
            yield Changed(prefix, entries, gone)

    def glance(self, prefix: bytes) -> tuple[list[Entry], list[bytes]]:
        """The last files in one folder by their names, and the prefixes of the folders in it."""
        found = self._sorted(prefix, *self._read(prefix, _last_names))
        return [entry for _path, entry in found if entry is not None], [path for path, entry in found if entry is None]

    def _read(
        self, prefix: bytes, choose: Callable[[Iterable[Any]], Iterable[Any]] = iter
    ) -> tuple[list[tuple[bytes, os.stat_result]], int]:
        """Every name in a folder, or those chosen, with its stat, and the fingerprint of all of them."""
        seen: list[tuple[bytes, os.stat_result]] = []
        parts: list[object] = []
        add, note = seen.append, parts.append
        whole = True
        try:
            with self._disk.scandir(b"%s/%s" % (self._root, prefix)) as listing:
                for item in choose(listing):
                    name = item.name
                    try:
                        found = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # it went between listing and looking, as files do
                    except OSError as error:
                        self.errors.append(f"{error.strerror}")
                        whole = False
                        continue
                    add((name, found))
                    note(name)
                    note(found.st_mtime_ns)
                    note(found.st_size)
                    note(found.st_ino)
                    note(found.st_mode)
        except OSError as error:
            self.errors.append(f"{error.strerror}")
            whole = False
        return seen, hash(tuple(parts)) if whole else UNKNOWN

    def _sorted(
        self, prefix: bytes, seen: list[tuple[bytes, os.stat_result]], fingerprint: int
    ) -> list[tuple[bytes, Entry | None]]:
        """Files and folders in a folder, in order; a folder's path ends with a slash, so that it sorts as its files."""
        found: list[tuple[bytes, Entry | None]] = []
        odd: list[tuple[bytes, str]] = []
        excluded = self._rules.exclude
        files = ignored = 0
        for name, stats in seen:
            path = prefix + name
            mode = stats.st_mode
            if excluded(name, path):
                ignored += 1
            elif stat.S_ISREG(mode):
                files += 1
                found.append((path, Entry(path, stats.st_size, stats.st_mtime_ns, stats.st_ino, stats.st_dev)))
            elif not stat.S_ISDIR(mode):
                odd.append((path, _link_code(self._root, path) if stat.S_ISLNK(mode) else "not_regular"))
            elif (stats.st_dev, stats.st_ino) in self._own:
                pass
            elif stats.st_dev != self.identity["device"]:  # a mount: opening would refuse it too
                odd.append((path, "outside_root"))
            else:
                found.append((path + b"/", None))
        found.sort(key=_path)
        folders = tuple(path for path, entry in found if entry is None)
        self._note(prefix, Folder(fingerprint, files, ignored, folders, tuple(odd)))
        if self._on_sidecars is not None:
            self._on_sidecars(prefix, self._sidecars(prefix, seen) if ignored else ())
        return found

    def _sidecars(self, prefix: bytes, seen: list[tuple[bytes, os.stat_result]]) -> list[Entry]:
        is_sidecar = self._rules.is_sidecar
        return [
            Entry(prefix + name, stats.st_size, stats.st_mtime_ns, stats.st_ino, stats.st_dev)
            for name, stats in seen
            if name[-4:].lower() in _SIDECAR_ENDS and stat.S_ISREG(stats.st_mode) and is_sidecar(name, prefix + name)
        ]

    def _note(self, prefix: bytes, folder: Folder) -> None:
        self.folders[prefix] = folder
        self.files += folder.files
        self.ignored += folder.ignored
        self.odd.extend(folder.odd)


def newest_of_each_folder(
    walk: Walk, *, most: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> list[Entry]:
    """The newest file of each folder, the newest of all first; folders near the root before those deep inside.

    Of a large folder only the last names are looked at: cameras and phones count up, and looking at every file of a
    network drive costs as much as the walk that follows.

    Args:
        walk: is used up.
        most: how many files are enough.
        seconds: after which it ends wherever it is.
        clock: monotonic seconds.
    """
    end = clock() + seconds
    found: list[Entry] = []
    folders = deque([b""])
    while folders and len(found) < most and clock() < end:
        files, below = walk.glance(folders.popleft())
        folders.extend(below)
        if files:
            found.append(max(files, key=lambda entry: entry.mtime_ns))
    return sorted(found, key=lambda entry: -entry.mtime_ns)


def _last_names(listing: Iterable[Any]) -> list[Any]:
    folders: list[Any] = []
    others: list[Any] = []
    for item in listing:
        (folders if item.is_dir(follow_symlinks=False) else others).append(item)
    return folders + sorted(others, key=lambda item: item.name)[-_GLANCE_FILES:]


def _path(item: tuple[bytes, Entry | None]) -> bytes:
    return item[0]


def _link_code(root: bytes, path: bytes) -> str:
    """No link is followed: what it leads to inside the folder is seen there, and what is outside is refused."""
    top = os.path.realpath(root)
    target = os.path.realpath(os.path.join(top, path))  # noqa: PTH118 - pathlib has no bytes paths
    return "not_regular" if target == top or target.startswith(top.rstrip(b"/") + b"/") else "outside_root"


SAMPLE_FILES = 1000
"""So many files of a new source are taken first, the newest of each folder."""

_GLANCE_FILES = 64


class Difference(NamedTuple):
    """A path whose file differs from what is known; `entry` is None when it is not there, `known` when it is new."""

    path: bytes
    entry: Entry | None
    known: KnownRow | None


AWAY = ("missing", "deleted")
"""States of files that are not there."""

_LOST = (*AWAY, "gone")


def differences(entries: Iterable[Entry], known: Iterable[KnownRow], *, inodes: bool = False) -> Iterator[Difference]:
    """Where a walk differs from the ledger: new and changed files, those that are back, and those that are not there.

    What is known to be no regular file is not missed.

    Args:
        entries: of a walk, in the byte order of their paths.
        known: rows of the ledger, in the same order.
        inodes: whether a file with another inode is another file, whatever its size and mtime.
    """
    rows = iter(known)
    row = next(rows, None)
    for entry in entries:
        path = entry[0]
        while row is not None and row[0] < path:
            if row[3] != "ignored":
                yield Difference(row[0], None, row)
            row = next(rows, None)
        if row is None or row[0] != path:
            yield Difference(path, entry, None)
            continue
        if _differs(entry, row, inodes):
            yield Difference(path, entry, row)
        row = next(rows, None)
    while row is not None:
        if row[3] != "ignored":
            yield Difference(row[0], None, row)
        row = next(rows, None)


def differences_in(entries: Iterable[Entry], known: Mapping[bytes, KnownRow], *, inodes: bool) -> Iterator[Difference]:
    """As `differences`, of one folder; `known` are the rows of the files that lie in it."""
    rows = dict(known)
    for entry in entries:
        row = rows.pop(entry.path, None)
        if row is None or _differs(entry, row, inodes):
            yield Difference(entry.path, entry, row)
    for path, row in rows.items():
        if row[3] != "ignored":
            yield Difference(path, None, row)


def _differs(entry: Entry, row: KnownRow, inodes: bool) -> bool:
    other = row[1] != entry[1] or row[2] != entry[2] or row[3] in _LOST
    return other or (inodes and row[5] is not None and row[5] != entry[3])


def sighting(entry: Entry) -> Sighting:
    """The journal row for a file that rests."""
    return Sighting("seen", *entry)


def look_at(
    root: bytes,
    path: bytes,
    patterns: Sequence[str] = (),
    own: Collection[tuple[int, int]] = (),
    disk: Any = os,
) -> Entry | None:
    """One file that a walk would take, or None: not there, ignored, ours, no regular file, behind a link or a mount.

    Raises:
        OSError: it cannot be looked at, so that nothing is known of it.
    """
    *folders, name = path.split(b"/")
    rules = Rules(patterns)
    place, beneath = root, b""
    try:
        device = disk.stat(root).st_dev
        for folder in folders:
            beneath = beneath + b"/" + folder if beneath else folder
            place = os.path.join(place, folder)  # noqa: PTH118
            if rules.exclude(folder, beneath):
                return None
            above = disk.lstat(place)
            if not stat.S_ISDIR(above.st_mode) or above.st_dev != device or (above.st_dev, above.st_ino) in own:
                return None
        if rules.exclude(name, path):
            return None
        seen = disk.lstat(os.path.join(root, path))  # noqa: PTH118
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    if not stat.S_ISREG(seen.st_mode):
        return None
    return Entry(path, seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_dev)
