"""Opening a file beneath a folder without ever leaving it, whatever links are swapped in meanwhile.

What belongs here: `open_beneath` and the translation of operating system errors into reasons. What does not: reading
(`ingest.originals`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import sys
from functools import cache

from mirror_realm_assets.errors import Failed, MirrorRealmError, Refused

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # NONBLOCK: opening a FIFO returns at once
# O_PATH needs only the right to pass through a folder, not to list it; other systems have no such flag.
_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECTORY

_OPENAT2 = 437  # the same on every architecture: calls since 5.1 share one numbering
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RACE_RETRIES = 16  # the kernel gives EAGAIN when a rename elsewhere made its proof of "beneath" impossible

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_NOT_A_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR})
_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG})  # old kernels, container filters


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def reason_of(error: OSError) -> MirrorRealmError:
    """The recorded reason for an operating system error met while opening or reading a file of a source."""
    text = os.strerror(error.errno) if error.errno else "unknown error"
    if error.errno in _GONE:
        return Failed("file_gone", f"The file is not there: {text}.")
    if error.errno in _DENIED:
        return Failed("unreadable", f"The file cannot be read: {text}.")
    if error.errno == errno.EXDEV:
        return Refused("outside_root", "The path leads out of the source's folder.")
    if error.errno in _NOT_A_FILE:
        return Refused("not_regular", f"It is no regular file: {text}.")
    return Failed("io_error", f"The file cannot be read: {text}.")


def open_beneath(root: bytes, path: bytes) -> int:
    """Open the regular file `path` beneath `root` for reading and return its file descriptor.

    Links inside the root that stay inside are followed where the kernel can prove it (`openat2`); elsewhere no link is.
    Neither `..`, an absolute path, a link nor a mount point leads out, also not when swapped in while we look.
    Never blocks on a FIFO.

    Args:
        root: the source's folder; links in it are the user's own choice and followed.
        path: relative to the root, as the disk spells it.

    Raises:
        Refused: `outside_root` or `not_regular`.
        Failed: `file_gone`, `unreadable` or `io_error`.
    """
    if not path or b"\0" in path:
        raise Failed("file_gone", "No file can have such a name.")
    try:
        root_fd = os.open(root, _FOLDER_FLAGS)
    except OSError as error:
        # Not `file_gone`: an unplugged drive must not look like a folder whose files were deleted.
        raise Failed("io_error", f"The source's folder cannot be opened: {os.strerror(error.errno or 0)}.") from error
    try:
        fd = _openat2(root_fd, path) if _has_openat2() else _open_by_component(root_fd, path)
    except OSError as error:
        raise reason_of(error) from error
    finally:
        os.close(root_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused("not_regular", "It is no regular file.")
    except BaseException:
        os.close(fd)
        raise
    return fd


@cache
def _has_openat2() -> bool:
    # 32-bit ABIs would need another layout of the varargs; they take the portable way.
    if sys.platform != "linux" or platform.architecture()[0] != "64bit":
        return False
    try:
        os.close(_call_openat2(-100, b"/", os.O_RDONLY | os.O_CLOEXEC, 0))  # -100: AT_FDCWD
    except OSError as error:
        return error.errno not in _NO_OPENAT2
    return True


def _call_openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags=flags, mode=0, resolve=resolve)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    fd = libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(folder),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def _openat2(root_fd: int, path: bytes) -> int:
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
    for _ in range(_RACE_RETRIES):
        try:
            return _call_openat2(root_fd, path, _FLAGS, resolve)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _open_by_component(root_fd: int, path: bytes) -> int:
    """Walk one component at a time, following no link: whatever is opened lies beneath what was opened before."""
    components = [component for component in path.split(b"/") if component not in (b"", b".")]
    if path.startswith(b"/") or b".." in components or not components:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    device = os.fstat(root_fd).st_dev
    folder = os.dup(root_fd)
    try:
        for component in components[:-1]:
            inner = _open_no_link(folder, component, _FOLDER_FLAGS)
            os.close(folder)
            folder = inner
        fd = _open_no_link(folder, components[-1], _FLAGS)
    finally:
        os.close(folder)
    if os.fstat(fd).st_dev != device:
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return fd


def _open_no_link(folder: int, name: bytes, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        # One component that is a link gives ELOOP, or ENOTDIR where a folder is wanted; it may lead anywhere, so it
        # counts as leading out.
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(folder, name)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV)) from error
        raise


def _is_link(folder: int, name: bytes) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
