"""Whether a process that took something on is still there: identities of processes, and the lock of a home.

What belongs here: naming a process so that it cannot be confused with a later one, and telling whether it lives. What
does not: leases and heartbeats of workers (`catalog`), and what is done about a dead one (`recovery`, `supervise`).

A pid alone proves nothing: pids are used again, and a restart of the machine starts them anew. The pid together with
the machine's boot id and the process's start time is never used twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from mirror_realm_assets.errors import SetupError, as_error

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys" / "kernel" / "random" / "boot_id"
# States of a process that has ended and waits to be collected (Z), or is being collected (X, x).
_ENDED = {"Z", "X", "x"}
# Fields of /proc/PID/stat after the command in brackets: state is field 3, the start time is field 22.
_STATE, _STARTED = 0, 19
# Asking takes the lock for microseconds, so whoever takes it for good tries a few times before refusing.
_TRIES, _PAUSE = 20, 0.05


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, never to be confused with another.

    Attributes:
        host: the machine's name; only on the same machine can we tell whether a process lives.
        boot_id: the kernel's id of this start of the machine (or container host).
        pid: the process id.
        started: clock ticks from the start of the machine to the start of the process.
    """

    host: str
    boot_id: str
    pid: int
    started: int


def identity(pid: int | None = None) -> ProcessIdentity:
    """The identity of process `pid`, by default of the calling one.

    Raises:
        ProcessLookupError: if there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    found = _look_up(pid)
    if found is None:
        raise ProcessLookupError(f"There is no process {pid}.")
    return ProcessIdentity(host=socket.gethostname(), boot_id=_boot_id(), pid=pid, started=found[1])


def is_alive(process: ProcessIdentity) -> bool | None:
    """Whether `process` lives: `False` only if it is provably gone, `None` if that cannot be told from here."""
    if process.host != socket.gethostname():
        return None
    if process.boot_id != _boot_id():
        return False
    found = _look_up(process.pid)
    return found is not None and found[0] not in _ENDED and found[1] == process.started


def parse_stat(text: str) -> tuple[str, int]:
    """State and start time in a `/proc/PID/stat` line.

    The second field is the program's name in brackets and may itself hold blanks, brackets and line ends; the last
    closing bracket ends it.
    """
    fields = text[text.rindex(")") + 1 :].split()
    return fields[_STATE], int(fields[_STARTED])


def _look_up(pid: int) -> tuple[str, int] | None:
    if not (_PROC / "self" / "stat").exists():
        return _look_up_portably(pid)
    try:
        # A name may hold any bytes.
        return parse_stat((_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _look_up_portably(pid: int) -> tuple[str, int] | None:
    # macOS: psutil gives the start as a time; hundredths are the ticks that Linux counts in.
    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "R"
        return state, round(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # The clock may be set by a second or two while the machine runs; a minute is coarse enough.
        return f"booted-{round(psutil.boot_time() / 60)}"


class HomeLock:
    """The lock of a home, held by the one process that supervises it.

    The kernel frees it however the process ends, so it is never stale. The file stays: removing it would let two
    processes lock two files of the same name.

    Args:
        path: the file, usually `<home>/up.lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock and writes our identity into the file.

        Raises:
            SetupError: `already_running` if another process holds it, `home_unusable` or `disk_full`.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(
                as_error(error, default="home_unusable").code, f"{self.path}: {error.strerror}."
            ) from error
        if not _lock(descriptor, fcntl.LOCK_EX, tries=_TRIES):
            os.close(descriptor)
            raise SetupError(
                "already_running", f"Process {held(self.path) or 'unknown'} is already supervising {self.path.parent}."
            )
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(identity())).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise SetupError(
                as_error(error, default="home_unusable").code, f"{self.path}: {error.strerror}."
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> HomeLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def held(path: Path) -> int | None:
    """The pid of the process that holds the lock at `path`, or `None` if nobody does.

    The kernel is asked, not the file: a pid left behind by a killed process is not reported.

    Raises:
        SetupError: `already_running` if the lock is held but its holder has not said who it is within a second.
    """
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if _lock(descriptor, fcntl.LOCK_SH, tries=1):
                return None
            text = os.pread(descriptor, 4096, 0)
        finally:
            os.close(descriptor)
        holder = _holder(text)
        # Between taking the lock and writing, the file still names the last holder, who is gone.
        if holder is not None and is_alive(holder) is not False:
            return holder.pid
        time.sleep(_PAUSE)
    raise SetupError("already_running", f"{path} is locked by a process that has not written its id.")


def _holder(text: bytes) -> ProcessIdentity | None:
    try:
        return ProcessIdentity(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _lock(descriptor: int, kind: int, *, tries: int) -> bool:
    for attempt in range(tries):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(_PAUSE)
        else:
            return True
    return False
