"""Folders below one root, walked without ever following a link, and the lock of that root.

What belongs here: opening, making, syncing and removing folders by descriptors, walking files, the lock. What does
not: what the files mean. Every step opens one name relative to the folder before it with `O_NOFOLLOW`, so that a link
planted below the root leads to an error instead of out of it, also when it is planted between a check and a use.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER_MODE = 0o700
FILE_MODE = 0o600
LOCK = "lock"

Step = Callable[[str], None]


@dataclass(frozen=True)
class Root:
    """The store's folder and which folder that was when it was opened.

    An unmounted drive leaves an empty folder at the same path: writing there would look like success.
    """

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Root:
        """The root at `path`, which must exist; links on the way to it are resolved once, here."""
        path = path.resolve(strict=True)
        found = path.stat()
        return cls(path, found.st_dev, found.st_ino)

    def open(self) -> int:
        """A descriptor of the root.

        Raises:
            OSError: it is gone, or another folder stands in its place.
        """
        try:
            fd = os.open(self.path, _FOLDER | os.O_NOFOLLOW)
        except FileNotFoundError:
            # Not to be taken for a missing object.
            raise OSError(errno.ESTALE, "the store's folder is gone") from None
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (self.device, self.inode):
            os.close(fd)
            raise OSError(errno.ESTALE, "another folder stands in the place of the store: was a drive unmounted?")
        return fd


@contextmanager
def descend(root: Root, names: Sequence[str], *, make: bool = False, step: Step | None = None) -> Iterator[list[int]]:
    """Descriptors of the root and of each folder below it along `names`, closed on leaving.

    Args:
        root: where to begin.
        names: folder names, one a level.
        make: make the folders that are missing.
        step: called after each level that may have been made.
    """
    fds = [root.open()]
    try:
        for name in names:
            if make:
                _make(name, fds[-1])
            fds.append(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fds[-1]))
            if make and step:
                step(f"folder {len(fds) - 1} made")
        yield fds
    finally:
        for fd in reversed(fds):
            os.close(fd)


def _make(name: str, parent: int) -> None:
    try:
        os.mkdir(name, _FOLDER_MODE, dir_fd=parent)
    except FileExistsError:
        return


@contextmanager
def locked(top: int, *, alone: bool) -> Iterator[None]:
    """Hold the lock of the root whose descriptor is `top`: shared with others, or alone.

    The lock is an `flock` of the root's file `lock`: the system frees it when its holder dies.
    """
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=top)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        # Not left to closing: a child forked meanwhile by another thread has the descriptor too and would keep it.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def sync(fds: Sequence[int]) -> None:
    """Make the names in these folders durable, innermost first.

    All of them, not just those made now: another writer may have made one and died before this. Five clean folders
    take 0.3 ms.
    """
    for fd in reversed(fds):
        os.fsync(fd)


def remove_empty(names: Sequence[str], fds: Sequence[int], *, keep: int) -> None:
    """Remove the folders along `names` that are empty, innermost first, but not the first `keep` of them."""
    for level in range(len(names) - 1, keep - 1, -1):
        try:
            os.rmdir(names[level], dir_fd=fds[level])
        except OSError:
            return  # not empty, or used by someone: that is the usual end


def walk(root: Root, names: tuple[str, ...], wanted: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below the folder `names`, as relative paths with `/` and their stat, in order of name.

    Links and other special files are passed over, and so are folders that go away meanwhile or are not there.

    Args:
        root: the root.
        names: where to begin.
        wanted: asked with the path of each folder, ending in `/`: whether to look into it.
    """
    files: list[tuple[str, os.stat_result]] = []
    inner: list[str] = []
    try:
        with descend(root, names) as fds, os.scandir(fds[-1]) as found:
            for item in sorted(found, key=lambda item: item.name):
                if item.is_dir(follow_symlinks=False):
                    inner.append(item.name)
                elif item.is_file(follow_symlinks=False):
                    _note(item, files)
    except FileNotFoundError:
        return  # never made, or collected since the listing; a root that is gone raises another error
    path = "".join(f"{name}/" for name in names)
    for name, stat in files:
        yield path + name, stat
    for name in inner:
        if wanted(f"{path}{name}/"):
            yield from walk(root, (*names, name), wanted)


def _note(item: os.DirEntry[str], files: list[tuple[str, os.stat_result]]) -> None:
    try:
        files.append((item.name, item.stat(follow_symlinks=False)))
    except FileNotFoundError:
        return  # published elsewhere or collected since the listing
