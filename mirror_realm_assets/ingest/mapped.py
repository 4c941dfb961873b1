"""An original as a file object for decoders, which never get at the file itself.

What belongs here: those file objects. What does not: what is read from them.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_BUFFER_BYTES = 1 << 16


def as_file(data: mmap.mmap) -> BinaryIO:
    """A buffered file over the mapped bytes."""
    return _file(lambda begin, count: data[begin : begin + count], len(data))


def as_unmapped_file(fd: int) -> BinaryIO:
    """A buffered file over the descriptor's bytes, for files larger than the address space that we allow ourselves."""
    return _file(lambda begin, count: os.pread(fd, count, begin), os.fstat(fd).st_size)


def _file(read: Callable[[int, int], bytes], size: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Reader(read, size), _BUFFER_BYTES))


class _Reader(io.RawIOBase):
    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        chunk = self._read(self._position, len(view))
        view[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)
