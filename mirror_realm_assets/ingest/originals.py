"""Reading an original once, so that the bytes hashed are the bytes decoded.

What belongs here: opening beneath the root, the copy into sealed memory, the digest of exactly those bytes, and the
proof that the file rested meanwhile. What does not: what the bytes mean (`ingest.decoder`) and where else the same
original lies (`catalog`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror_realm_assets.errors import Failed, Refused
from mirror_realm_assets.ingest.beneath import open_beneath, reason_of

__all__ = ["FileStat", "Original", "open_beneath", "read_original", "read_verified"]

IN_MEMORY_BYTES = 512 << 20
"""Originals up to this size are copied into memory, larger ones into a temporary file."""

_FINE_GRANULE_NS, _COARSE_GRANULE_NS = 20_000_000, 2_000_000_000
_CHUNK_BYTES = 1 << 20  # larger reads were no faster, and a network drive delivers about this much at once


@dataclass(frozen=True)
class FileStat:
    """What identifies one state of one file, as `fstat` told it.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last change of content, nanoseconds since 1970.
        inode: number of the file within its device.
        device: number of the device.
    """

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, fd: int) -> FileStat:
        """The present state of the open file `fd`."""
        found = os.fstat(fd)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


@dataclass(frozen=True)
class Original:
    """The bytes of one original: in memory, or in a private file without a name if they are many.

    Attributes:
        digest: sha256 of the bytes, 64 hexadecimal characters.
        stat: the file's state before and after reading.
        size: in bytes.
        fd: an anonymous file with exactly the hashed bytes, sealed or open for reading alone; valid inside the `with`
            block. Its offset is shared with everything that it is handed to, so read it by `os.pread`.
    """

    digest: str
    stat: FileStat
    size: int
    fd: int


@contextmanager
def read_original(
    root: bytes,
    path: bytes,
    *,
    max_bytes: int,
    on_open: Callable[[int], None] | None = None,
    pace: Callable[[int], None] | None = None,
) -> Iterator[Original]:
    """Open `path` beneath `root` once, copy its bytes while hashing them, and lend the copy.

    Up to 512 MB they are copied into memory, more into a file of the folder for temporary files (`TMPDIR`), which has
    no name and is gone with this process however it ends.

    Args:
        root: the source's folder.
        path: relative to the root, as the disk spells it.
        max_bytes: larger files are refused before a byte is read.
        on_open: called with the source's file descriptor after the first stat and before the first read.
        pace: called after each read with the number of bytes, and may wait.

    Yields:
        The original; its `fd` is closed at the end of the block.

    Raises:
        Refused: `outside_root`, `not_regular`, `empty_file` or `too_many_bytes`.
        Failed: `file_gone`, `unreadable`, `io_error`, `out_of_memory` or `changed_while_reading`.
    """
    source = open_beneath(root, path)
    try:
        original = _copied(source, max_bytes, on_open, pace)
    finally:
        os.close(source)
    try:
        yield original
    finally:
        os.close(original.fd)


@contextmanager
def read_verified(
    root: bytes, path: bytes, digest: str, *, max_bytes: int, on_open: Callable[[int], None] | None = None
) -> Iterator[Original]:
    """As `read_original`, for an original that is already known.

    Raises:
        Failed: also `original_changed` when the bytes are not those of `digest`.
    """
    with read_original(root, path, max_bytes=max_bytes, on_open=on_open) as original:
        if original.digest != digest:
            raise Failed("original_changed", "The file's bytes are not those that were recorded.")
        yield original


def _copied(
    source: int, max_bytes: int, on_open: Callable[[int], None] | None, pace: Callable[[int], None] | None
) -> Original:
    before = FileStat.of(source)
    if before.size == 0:
        raise Refused("empty_file", "The file has 0 bytes.")
    if before.size > max_bytes:
        raise Refused("too_many_bytes", f"The file has {before.size} bytes; {max_bytes} are allowed.")
    if on_open is not None:
        on_open(source)
    in_memory = before.size <= IN_MEMORY_BYTES
    copy = _memory_file() if in_memory else _spool_file()
    try:
        digest, size = _copy(source, copy, before.size, pace)
        after = FileStat.of(source)
        if before != after or size != before.size:
            raise Failed("changed_while_reading", "The file changed while it was read.")
        rest = _rest_of_granule(before.mtime_ns, time.time_ns())
        if rest and not _reads_the_same(source, digest, size, after_seconds=rest):
            raise Failed("changed_while_reading", "The file changed while it was read, within one tick of its time.")
        if in_memory:
            _seal(copy)
        else:
            copy = _for_reading(copy)
    except BaseException:
        os.close(copy)
        raise
    return Original(digest=digest, stat=before, size=size, fd=copy)


def _rest_of_granule(mtime_ns: int, now_ns: int) -> float:
    """For how many seconds a write might still leave the file's time as it is; 0 for all but the newest files.

    File systems take their times from a clock that ticks every few milliseconds; FAT counts in steps of two seconds,
    some network drives in whole seconds. A time without a fraction may come from such a one.
    """
    granule = _COARSE_GRANULE_NS if mtime_ns % 1_000_000_000 == 0 else _FINE_GRANULE_NS
    age = now_ns - mtime_ns
    return (granule - age) / 1e9 if 0 <= age < granule else 0.0


def _reads_the_same(source: int, digest: str, size: int, *, after_seconds: float) -> bool:
    """Whether the file reads as before, once the time is over in which a write leaves no trace."""
    time.sleep(after_seconds)
    again = hashlib.sha256()
    at = 0
    while at <= size:
        try:
            chunk = os.pread(source, _CHUNK_BYTES, at)
        except OSError as error:
            raise reason_of(error) from error
        if not chunk:
            break
        again.update(chunk)
        at += len(chunk)
    return again.hexdigest() == digest


def _copy(source: int, copy: int, size: int, pace: Callable[[int], None] | None) -> tuple[str, int]:
    """Digest and count of the bytes copied: at most one more than `size`, which is enough to see a file grow."""
    digest = hashlib.sha256()
    count = 0
    while count <= size:
        try:
            chunk = os.read(source, min(_CHUNK_BYTES, size + 1 - count))
        except OSError as error:
            raise reason_of(error) from error
        if not chunk:
            break
        digest.update(chunk)
        count += len(chunk)
        _write(copy, chunk)
        if pace is not None:
            pace(len(chunk))
    return digest.hexdigest(), count


def _write(copy: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(copy, rest) :]
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise Failed("out_of_memory", "No memory left for the bytes of the file.") from error
            raise


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("original", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _spool_file() -> int:
    """A file on disk that nobody else can open; it has no name where the system knows such files."""
    with tempfile.TemporaryFile(prefix="mirror-realm-") as file:
        return os.dup(file.fileno())


def _for_reading(fd: int) -> int:
    """The same file, open for reading alone: files on disk cannot be sealed."""
    path = f"/proc/self/fd/{fd}"
    if not Path(path).exists():
        return fd
    reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return reading


def _seal(fd: int) -> None:
    """Make the copy immutable: a decoder that is taken over cannot change what we go on to store."""
    if hasattr(fcntl, "F_ADD_SEALS") and hasattr(os, "memfd_create"):
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
