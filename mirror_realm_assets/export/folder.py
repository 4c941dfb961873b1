"""The exported folder: whether a file in it is still ours, and giving one its name or taking it away.

What belongs here: names and folders. What does not: making files (`placing`), and what is to be done with which.

Nothing goes through a link: a folder of the export that has become one would lead into somebody else's files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from mirror_realm_assets.archive.places import rename_if_new
from mirror_realm_assets.errors import Failed, MirrorRealmError, clean_reason
from mirror_realm_assets.export.entries import Entry

WORK = ".mirror-realm-export"
"""In the folder while a run works on it: drafts, and what it is about to do."""
_FOLDERS = 10_000  # that are known to be none of links, so that most are looked at once


class Folder:
    """The exported folder.

    Args:
        root: without links.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real: OrderedDict[str, None] = OrderedDict()
        self._unsynced: set[Path] = set()

    def exists(self, name: str) -> bool:
        """Whether anything has that name, or one of its folders is none."""
        return self._leads_elsewhere(name) or os.path.lexists(self.root / name)

    def held(self, entry: Entry, *, read: bool = False) -> Entry | None:
        """An entry whose file is there and has its bytes, with the time that it has now; else None.

        Size and time of writing tell it. Only where the time differs the bytes are read: a copied folder has other
        times, and the store sets those of its objects.

        Args:
            entry: what it should be.
            read: whether the bytes are read in any case.
        """
        path = self.root / entry.name
        if self._leads_elsewhere(entry.name):
            return None
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.bytes:
                return None
            if (read or found.st_mtime_ns != entry.mtime_ns) and digest_of(path) != entry.sha256:
                return None
        except OSError:
            return None
        return replace(entry, mtime_ns=found.st_mtime_ns, edited=False)

    def put(self, draft: Path, name: str, old: Entry | None) -> None:
        """Give a draft its name.

        Args:
            draft: beneath the root.
            name: its name.
            old: of the file that it replaces, which may differ in case alone.

        Raises:
            Failed: `name_taken`.
            OSError: it is not possible.
        """
        target = self.root / name
        self._make(target.parent)
        if old is None:
            if not rename_if_new(draft, target):
                raise taken(name)
        else:
            before = self.root / old.name
            if self.held(old) is None:
                raise Failed("name_taken", f"Somebody has changed {name} meanwhile.")
            if old.name != name and os.path.lexists(target) and not before.samefile(target):
                raise taken(name)
            draft.replace(before)
            before.rename(target)
            self._tidy(before.parent)
        self._unsynced.add(target.parent)

    def remove(self, entry: Entry) -> bool:
        """Remove a file that is ours, and the folders that are empty then; False when it is not ours any more.

        Raises:
            OSError: it cannot be removed.
        """
        if self.held(entry) is None:
            return False
        path = self.root / entry.name
        path.unlink()
        self._unsynced.add(path.parent)
        self._tidy(path.parent)
        return True

    def sync(self) -> None:
        """Make names durable."""
        for folder in self._unsynced:
            with suppress(FileNotFoundError):
                sync(folder)
        self._unsynced.clear()

    def _tidy(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return
            self._real.pop(str(folder.relative_to(self.root)), None)
            folder = folder.parent

    def _make(self, folder: Path) -> None:
        missing = []
        while folder != self.root and not os.path.lexists(folder):
            missing.append(folder)
            folder = folder.parent
        if self._leads_elsewhere(f"{(folder / 'x').relative_to(self.root)}"):
            raise Failed("name_taken", f"{folder.relative_to(self.root)} is in the way: it is no folder, or a link.")
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            self._unsynced.add(each.parent)

    def _leads_elsewhere(self, name: str) -> bool:
        """Whether something that is no folder stands where one of a name's folders should be."""
        parts = name.split("/")[:-1]
        for n in range(1, len(parts) + 1):
            folder = "/".join(parts[:n])
            if folder in self._real:
                continue
            try:
                if not stat.S_ISDIR((self.root / folder).lstat().st_mode):
                    return True
            except OSError as error:
                return error.errno != errno.ENOENT
            self._real[folder] = None
            if len(self._real) > _FOLDERS:
                self._real.popitem(last=False)
        return False


def told(error: OSError) -> MirrorRealmError:
    """What the system says about the exported folder, as one of our errors."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(
            "disk_full",
            "There is no space left in the exported folder.",
            remedy="Free space on its disk and run the command again: it goes on where it stopped.",
        )
    return Failed("export_failed", clean_reason(f"The file could not be exported: {error.strerror or error}."))


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _tolerant():
            os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _tolerant() -> Iterator[None]:
    """Some network shares cannot sync a folder, and say that it is an invalid argument."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def taken(name: str) -> Failed:
    """The failure of a file whose name is another one's."""
    return Failed("name_taken", f"Another file has the name {name}.")


def digest_of(path: Path) -> str:
    """The sha256 of a regular file; a link is not followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
