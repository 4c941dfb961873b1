"""Files of the exported folder: whether one is still ours, and putting one in its place.

What belongs here: single files, each there whole or not at all and never over a file that is not ours. What does not:
what is to be done with them (`decisions`), and the manifest.

Nothing goes through a link: a folder of the export that has become one would lead into somebody else's files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

from mirror_realm_assets.archive.places import rename_if_new
from mirror_realm_assets.catalog import media
from mirror_realm_assets.errors import Failed, MirrorRealmError, clean_reason
from mirror_realm_assets.export import xmp
from mirror_realm_assets.export.entries import ORIGINAL, SIDECAR, Entry, Wanted
from mirror_realm_assets.ingest.beneath import open_beneath
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.store.faults import chunks_of
from mirror_realm_assets.store.local import LocalStore

Link = Literal["auto", "copy", "hard"]
WORK = ".mirror-realm-export"
"""In the folder while a run works on it: drafts, and what it is about to do."""
_CLONE = getattr(fcntl, "FICLONE", 0x40049409)  # Python names it from 3.12 on
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

    def holds(self, entry: Entry) -> bool:
        """Whether the file of an entry is there and has its bytes.

        Size and time of writing tell it. Only where the time differs the bytes are read: a copied folder has other
        times, and the store sets those of its objects.
        """
        path = self.root / entry.name
        if self._leads_elsewhere(entry.name):
            return False
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.bytes:
                return False
            return found.st_mtime_ns == entry.mtime_ns or _digest(path) == entry.sha256
        except OSError:
            return False

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
                raise _taken(name)
        else:
            before = self.root / old.name
            if not self.holds(old):
                raise Failed("name_taken", f"Somebody has changed {name} meanwhile.")
            if old.name != name and os.path.lexists(target) and not before.samefile(target):
                raise _taken(name)
            draft.replace(before)
            before.rename(target)
            self._tidy(before.parent)
        self._unsynced.add(target.parent)

    def remove(self, entry: Entry) -> bool:
        """Remove a file that is ours, and the folders that are empty then; False when it is not ours any more.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.holds(entry):
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


class Placer:
    """Writes wanted files.

    Args:
        services: catalog and store.
        folder: where to.
        link: how files get their bytes: `auto` shares blocks with the store or the original where the file system can
            do that and copies elsewhere, `copy` always copies, `hard` makes the store's objects and the exported files
            one. A user's own original is never linked.
    """

    def __init__(self, services: Services, folder: Folder, link: Link) -> None:
        self._services = services
        self._folder = folder
        self._link = link
        self._no_clones: set[int] = set()  # devices from which the folder cannot share blocks
        self._umask = os.umask(0)
        os.umask(self._umask)

    def place(self, wanted: Wanted, old: Entry | None) -> Entry:
        """Put a file in its place, whole and verified.

        Args:
            wanted: the file.
            old: of the file that it replaces.

        Returns:
            Its entry.

        Raises:
            MirrorRealmError: `name_taken`, `disk_full`, `export_failed`, `not_verified`; whatever is wrong with the
                original or the stored object. What was there before is there still.
        """
        draft = self._folder.root / WORK / f"{secrets.token_hex(12)}.part"
        try:
            link = self._write(draft, wanted)
            if link != "hard":
                os.utime(draft, ns=(wanted.entry.mtime_ns, wanted.entry.mtime_ns))
            self._folder.put(draft, wanted.entry.name, old)
            found = (self._folder.root / wanted.entry.name).lstat()
            return replace(wanted.entry, mtime_ns=found.st_mtime_ns, link=link)
        except OSError as error:
            raise told(error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _write(self, draft: Path, wanted: Wanted) -> str:
        if wanted.entry.kind == SIDECAR:
            with draft.open("xb") as file:
                file.write(xmp.packet(wanted.said or {}))
                _flush(file)
            return "copy"
        if wanted.entry.kind == ORIGINAL:
            return self._original(draft, wanted.entry)
        assert wanted.key is not None  # noqa: S101 - an enhanced picture is an object
        return self._object(draft, wanted.entry, wanted.key)

    def _object(self, draft: Path, entry: Entry, key: str) -> str:
        store = self._services.store
        if self._link == "hard" and isinstance(store, LocalStore) and self._linked(draft, store.local_path, entry, key):
            return "hard"
        with store.open(key, entry.sha256) as file:
            if self._cloned(draft, file.fileno(), entry.sha256):
                return "clone"
            _copy(draft, file, entry.sha256)
        return "copy"

    def _original(self, draft: Path, entry: Entry) -> str:
        if self._link != "copy" and self._original_cloned(draft, entry.digest):
            return "clone"
        with open_original(self._services, entry.digest) as original, os.fdopen(os.dup(original.fd), "rb") as file:
            file.seek(0)
            _copy(draft, file, entry.digest)
        return "copy"

    def _original_cloned(self, draft: Path, digest: str) -> bool:
        """Whether the blocks of the original itself could be shared: reading verified makes a private copy."""
        with self._services.catalog.read() as conn:
            places, _stored = media.places(conn, digest)
        for place in places:
            try:
                fd = open_beneath(place.root, place.path)
            except (MirrorRealmError, OSError):
                continue
            try:
                if self._cloned(draft, fd, digest):
                    return True
            finally:
                os.close(fd)
        return False

    def _linked(
        self,
        draft: Path,
        local_path: Callable[[str, str], AbstractContextManager[Path]],
        entry: Entry,
        key: str,
    ) -> bool:
        with local_path(key, entry.sha256) as path:
            try:
                os.link(path, draft, follow_symlinks=False)
            except OSError:
                return False  # another file system, or one without links
        # One file now: without the right to write, most programs do not change the store's bytes by mistake.
        draft.chmod(0o444 & ~self._umask)
        return True

    def _cloned(self, draft: Path, source: int, sha256: str) -> bool:
        device = os.fstat(source).st_dev
        if self._link == "copy" or device in self._no_clones:
            return False
        with draft.open("xb") as file:
            try:
                fcntl.ioctl(file.fileno(), _CLONE, source)
            except OSError:
                self._no_clones.add(device)
                draft.unlink()
                return False
            _flush(file)
        if _digest(draft) == sha256:
            return True
        draft.unlink()  # it is being written just now: reading it verified says what is wrong
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


def _taken(name: str) -> Failed:
    return Failed("name_taken", f"Another file has the name {name}.")


def _copy(draft: Path, source: BinaryIO, sha256: str) -> None:
    digest = hashlib.sha256()
    with draft.open("xb") as file:
        for chunk in chunks_of(source, "the export"):
            digest.update(chunk)
            file.write(chunk)
        _flush(file)
    if digest.hexdigest() != sha256:
        raise Failed("not_verified", "What was read for the export has other bytes than are recorded.")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
