"""A file system that fails as network drives do, laid over a real folder."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

ERRORS = (errno.EIO, errno.EACCES, errno.ESTALE)


@dataclass
class Item:
    """A directory entry."""

    disk: FaultyDisk
    name: bytes
    path: bytes

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self.stat(follow_symlinks=follow_symlinks).st_mode)

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        assert not follow_symlinks
        return self.disk.lstat(self.path)


@dataclass
class FaultyDisk:
    """Stands for the module `os`, as far as a scan uses it.

    Attributes:
        failing: the error of a path and all beneath it, by listing and by looking.
        empty: folders that list nothing, though what they hold can be looked at.
        half: folders that list a half of what they hold.
        gone: paths that do not exist, with all beneath them: a mount that is away.
        device: added to every device number.
        rng: chooses halves.
    """

    failing: dict[bytes, int] = field(default_factory=dict)
    empty: set[bytes] = field(default_factory=set)
    half: set[bytes] = field(default_factory=set)
    gone: set[bytes] = field(default_factory=set)
    device: int = 0
    rng: random.Random = field(default_factory=random.Random)

    def heal(self) -> None:
        for faults in (self.failing, self.empty, self.half, self.gone):
            faults.clear()
        self.device = 0

    def stat(self, path: bytes) -> Any:
        self._fail(path)
        return self._told(os.stat(path))  # noqa: PTH116 - pathlib has no bytes paths

    def lstat(self, path: bytes) -> Any:
        self._fail(path)
        return self._told(os.lstat(path))

    @contextmanager
    def scandir(self, path: bytes) -> Iterator[Iterator[Item]]:
        self._fail(path)
        names = sorted(os.listdir(path))  # noqa: PTH208
        folder = path.rstrip(b"/")
        if folder in self.empty:
            names = []
        if folder in self.half:
            names = self.rng.sample(names, len(names) // 2)
        yield (Item(self, name, folder + b"/" + name) for name in names)

    def _fail(self, path: bytes) -> None:
        path = path.rstrip(b"/")
        for place in self.gone:
            if path == place or path.startswith(place + b"/"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for place, number in self.failing.items():
            if path == place or path.startswith(place + b"/"):
                raise OSError(number, os.strerror(number))

    def _told(self, seen: os.stat_result) -> Any:
        names = ("st_mode", "st_dev", "st_ino", "st_size", "st_mtime_ns")
        told = SimpleNamespace(**{name: getattr(seen, name) for name in names})
        told.st_dev += self.device
        return told
