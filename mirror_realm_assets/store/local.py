"""The local form of the store: objects are files of one folder.

What belongs here: publishing, reading and trashing files. What does not: which keys are in use (`gc`), and whose store
this is (`opening`). Beside the objects the folder holds `tmp/` (drafts), `trash/` (the same keys again), `lock`,
`clock` and `store.json`.

A write: draft in `tmp/` -> fsync -> rename -> fsync of the folder and of those above it. Renames happen under the
shared lock and `trash` works under the exclusive one: that is what makes "nobody needs this" and "it is gone" one step.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat as modes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.faults import CHUNK, chunks_of, compare, reporting, unreadable
from mirror_realm_assets.store.folders import FILE_MODE, Root, Step, descend, locked, remove_empty, sync, walk
from mirror_realm_assets.store.interface import Entry, StoredObject, Swept

TEMPORARY = "tmp"
TRASH = "trash"
CLOCK = "clock"

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def no_step(name: str) -> None:
    """The step hook outside of fault tests: nothing."""


class LocalStore:
    """A `Store` in one folder; `opening.open_store` makes it.

    Safe to use from several threads and processes at once, and after a fork: nothing stays open between calls.

    Args:
        root: the folder.
        id: identity of the store.
        step: called with a step's name between any two steps of a write; for fault tests.
    """

    def __init__(self, root: Root, id: str, *, step: Step = no_step) -> None:
        self.root = root
        self._id = id
        self._step = step

    @property
    def id(self) -> str:
        """Identity of this store."""
        return self._id

    def put(self, key: str, data: bytes, *, soon_read: bool = False) -> StoredObject:
        """See `Store.put`."""
        made = StoredObject(key, hashlib.sha256(data).hexdigest(), len(data))
        if keys.content_digest(key) not in (None, made.sha256):
            raise ValueError(f"the bytes do not have the digest in their key: {key}")
        with reporting(key):
            if self._holds(made):
                return made
            view = memoryview(data)
            return self._publish(key, (view[at : at + CHUNK] for at in range(0, len(view), CHUNK)))

    def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        """See `Store.put_file`."""
        keys.parse(key)
        if not isinstance(source, Path):
            with reporting(key):
                return self._publish(key, chunks_of(source, key))
        try:
            file = source.open("rb")
        except OSError as error:
            raise unreadable(key, error) from error
        with file:
            return self.put_file(key, file)

    def read(self, key: str, sha256: str) -> bytes:
        """See `Store.read`."""
        with reporting(key), self._file(key) as file:
            data = file.read()
        compare(key, sha256, hashlib.sha256(data).hexdigest())
        return data

    @contextmanager
    def open(self, key: str, sha256: str) -> Iterator[BinaryIO]:
        """See `Store.open`."""
        with reporting(key):
            file = self._file(key)
        with file:
            with reporting(key):
                found = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            compare(key, sha256, found)
            yield file

    @contextmanager
    def local_path(self, key: str, sha256: str) -> Iterator[Path]:
        """See `Store.local_path`; here it is the object itself."""
        with self.open(key, sha256):
            yield self.root.path / key

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self.head(key) is not None

    def head(self, key: str) -> Entry | None:
        """See `Store.head`."""
        folders, name = _split(key)
        with reporting(key):
            try:
                with descend(self.root, folders) as fds:
                    found = os.stat(name, dir_fd=fds[-1], follow_symlinks=False)
            except FileNotFoundError:
                return None
        return _entry(key, found) if modes.S_ISREG(found.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`; in order of key within each folder."""
        keys.check_prefix(prefix)

        def leads_there(folder: str) -> bool:
            return folder.startswith(prefix) or prefix.startswith(folder)

        with reporting(prefix or "listing"):
            for area in keys.AREAS:
                if not leads_there(f"{area}/"):
                    continue
                for key, found in walk(self.root, (area,), leads_there):
                    if key.startswith(prefix) and keys.is_key(key):
                        yield _entry(key, found)

    def trash(self, key: str, *, unless: Callable[[str], bool] | None = None) -> bool:
        """See `Store.trash`; the trash holds the same keys below `trash/`, so that a person can put one back."""
        folders, name = _split(key)
        with reporting(key), self._locked(alone=True):
            try:
                with descend(self.root, folders) as fds:
                    os.stat(name, dir_fd=fds[-1], follow_symlinks=False)
                    if unless is not None and unless(key):
                        return False
                    with descend(self.root, [TRASH, *folders], make=True, step=self._step) as to:
                        # Stamped before the move: killed in between, it looks young, not ready to be purged.
                        os.utime(name, dir_fd=fds[-1], follow_symlinks=False)
                        self._step("stamped")
                        os.rename(name, name, src_dir_fd=fds[-1], dst_dir_fd=to[-1])
                        self._step("moved to the trash")
                        sync(to)
                    remove_empty(folders, fds, keep=1)
                    return True
            except FileNotFoundError:
                return False

    def empty_trash(
        self, older_than: timedelta, *, dry_run: bool = False, needed: Callable[[str], bool] | None = None
    ) -> Swept:
        """See `Store.empty_trash`; here nothing that is needed gets there."""
        return self._sweep(TRASH, older_than, dry_run)

    def sweep_unfinished(self, older_than: timedelta, *, dry_run: bool = False) -> Swept:
        """See `Store.sweep_unfinished`."""
        return self._sweep(TEMPORARY, older_than, dry_run)

    def clock(self) -> datetime:
        """See `Store.clock`; on a network drive it is the server's time."""
        with reporting(CLOCK), descend(self.root, []) as (top,):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(CLOCK, flags, FILE_MODE, dir_fd=top), "wb") as file:
                os.utime(file.fileno())
                return _time(os.fstat(file.fileno()))

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        with reporting("free space"), descend(self.root, []) as (top,):
            found = os.fstatvfs(top)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def _locked(self, *, alone: bool) -> Iterator[None]:
        with descend(self.root, []) as (top,), locked(top, alone=alone):
            yield

    def _file(self, key: str) -> io.BufferedReader:
        folders, name = _split(key)
        try:
            with descend(self.root, folders) as fds:
                return os.fdopen(os.open(name, _OLD, dir_fd=fds[-1]), "rb")
        except FileNotFoundError:
            raise Failed("store_failed", f"The object {key} is missing from the store.") from None

    def _holds(self, wanted: StoredObject) -> bool:
        """Whether these very bytes are there already; then they count as written now, and durably."""
        folders, name = _split(wanted.key)
        with self._locked(alone=False):
            try:
                with descend(self.root, folders) as fds, os.fdopen(os.open(name, _OLD, dir_fd=fds[-1]), "rb") as file:
                    if os.fstat(file.fileno()).st_size != wanted.size:
                        return False
                    if hashlib.file_digest(file, "sha256").hexdigest() != wanted.sha256:
                        return False
                    self._step("found")
                    os.utime(file.fileno())
                    os.fsync(file.fileno())  # its writer may have died before this
                    sync(fds)
                    return True
            except OSError:
                return False  # missing, a link or unreadable: publishing replaces it, or names the error

    def _publish(self, key: str, chunks: Iterable[bytes | memoryview]) -> StoredObject:
        folders, name = _split(key)
        with descend(self.root, [TEMPORARY], make=True, step=self._step) as (_, temporary):
            draft = f"{secrets.token_hex(12)}.part"
            try:
                made = self._write(key, os.open(draft, _NEW, FILE_MODE, dir_fd=temporary), chunks)
                with self._locked(alone=False), descend(self.root, folders, make=True, step=self._step) as fds:
                    os.rename(draft, name, src_dir_fd=temporary, dst_dir_fd=fds[-1])
                    self._step("renamed")
                    sync(fds)
                self._step("durable")
            except BaseException:
                with suppress(OSError):
                    os.unlink(draft, dir_fd=temporary)
                raise
            return made

    def _write(self, key: str, fd: int, chunks: Iterable[bytes | memoryview]) -> StoredObject:
        digest, size = hashlib.sha256(), 0
        with os.fdopen(fd, "wb") as file:
            self._step("draft begun")
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
                file.flush()
                self._step(f"{size} bytes written")
            os.fsync(file.fileno())
        self._step("draft synced")
        if keys.content_digest(key) not in (None, digest.hexdigest()):
            raise Failed("changed_while_reading", f"What was to be stored as {key} changed while it was read.")
        return StoredObject(key, digest.hexdigest(), size)

    def _sweep(self, area: str, older_than: timedelta, dry_run: bool) -> Swept:
        before = self.clock() - older_than
        count = size = 0
        with reporting(area):
            for path, found in walk(self.root, (area,), lambda _: True):
                if _time(found) < before and (dry_run or self._delete(path, found)):
                    count += 1
                    size += found.st_size
        return Swept(count, size)

    def _delete(self, path: str, seen: os.stat_result) -> bool:
        *folders, name = path.split("/")
        with self._locked(alone=True):
            try:
                with descend(self.root, folders) as fds:
                    if os.stat(name, dir_fd=fds[-1], follow_symlinks=False).st_mtime_ns != seen.st_mtime_ns:
                        return False  # replaced since the listing
                    os.unlink(name, dir_fd=fds[-1])
                    remove_empty(folders, fds, keep=1)
                    return True
            except FileNotFoundError:
                return False


def _split(key: str) -> tuple[tuple[str, ...], str]:
    keys.parse(key)
    *folders, name = key.split("/")
    return tuple(folders), name


def _entry(key: str, found: os.stat_result) -> Entry:
    return Entry(key, found.st_size, _time(found))


def _time(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime_ns / 1e9, UTC)
