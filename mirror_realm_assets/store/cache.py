"""Copies of remote objects on this machine, by the digest of their bytes, within a limit.

What belongs here: keeping, finding and evicting files. What does not: where they come from (`s3`). A copy is checked
whenever it is lent, so a damaged disk costs another download and never a wrong byte. What is lent is not evicted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DRAFT = ".part"
_DRAFT_SECONDS = 24 * 3600  # then its writer is dead
_KEPT_SHARE = 0.8  # of the limit, after an eviction: not one for every new copy


class DiskCache:
    """Files of one folder, named by the sha256 of their bytes; safe to use from several threads and processes.

    Args:
        folder: made when it is not there; everything in it may be deleted at any time.
        max_bytes: of all copies together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None  # what was here when last counted, and what was added since

    @contextmanager
    def lend(self, sha256: str, fetch: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
        """The bytes with this digest as a read-only file with a path, fetched if they are not here.

        Args:
            sha256: of the bytes.
            fetch: writes them into the file that it is given; asked once more when what it wrote was wrong.

        Raises:
            ValueError: `sha256` is not one, or the fetched bytes have another.
            Whatever `fetch` raises.
        """
        if not _DIGEST.fullmatch(sha256):
            raise ValueError(f"not a lower-case sha256: {sha256[:100]!r}")
        with self._held(sha256) or self._fetched(sha256, fetch) as file:
            yield file

    def keep(self, sha256: str, data: bytes) -> None:
        """Have a copy here of bytes with this digest, which somebody will ask for soon; or not, where that fails."""
        if not self.path(sha256).exists():
            with suppress(OSError):
                self._fetched(sha256, lambda file: file.write(data)).close()

    def path(self, sha256: str) -> Path:
        """Where a copy lies, if there is one."""
        return self.folder / sha256[:2] / sha256

    def _held(self, sha256: str) -> BinaryIO | None:
        """The copy, opened, checked and locked against eviction; None when there is no good one."""
        try:
            file = self.path(sha256).open("rb")
        except OSError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_still(self.path(sha256), file):
            file.close()  # evicted before it was locked
            return None
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            file.close()
            self.path(sha256).unlink(missing_ok=True)
            return None
        file.seek(0)
        with suppress(OSError):
            os.utime(self.path(sha256))  # used now: the oldest is evicted first
        return file

    def _fetched(self, sha256: str, fetch: Callable[[BinaryIO], object]) -> BinaryIO:
        place = self.path(sha256)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = place.parent / f"{secrets.token_hex(12)}{_DRAFT}"
        try:
            with draft.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                fetch(file)
                size = file.tell()
                found = draft.open("rb")
                fcntl.flock(found, fcntl.LOCK_SH)
            if hashlib.file_digest(found, "sha256").hexdigest() != sha256:
                found.close()
                raise ValueError(f"the fetched bytes are not those of {sha256}")
            draft.rename(place)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        found.seek(0)
        self._make_room(size)
        return found

    def _make_room(self, added: int) -> None:
        with self._lock:
            if self._bytes is not None:
                self._bytes += added
            if self._bytes is not None and self._bytes <= self.max_bytes:
                return
            copies = self._copies()
            total = sum(size for _at, size, _path in copies)
            if total > self.max_bytes:
                for _at, size, path in copies:
                    if total <= self.max_bytes * _KEPT_SHARE:
                        break
                    if _evicted(path):
                        total -= size
            self._bytes = total

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Time of the last use, size and path of each copy, the longest unused first."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):
                stat = path.stat()
                if path.suffix != _DRAFT or stat.st_mtime < time.time() - _DRAFT_SECONDS:
                    found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _evicted(path: Path) -> bool:
    """Delete a copy unless somebody uses it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True
