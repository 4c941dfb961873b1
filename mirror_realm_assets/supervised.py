"""The guardian of one supervised program: starts it, ends with it, and ends it when the supervisor is gone.

What belongs here: what must work after `kill -9` of the supervisor, and what has to be set before the program's first
instruction. What does not: when programs are started and stopped (`supervise`).

A program that dies with its parent is not enough: dagster's code server waits for its run workers, and a run may take
half an hour. So the guardian leads the process group that all of them are in, and outlives the supervisor by the few
seconds that it takes to end the group. It is run as a file by a bare interpreter (`python -I -S supervised.py PARENT
LEAVE INTERRUPT PROGRAM [ARGUMENT]...`) and imports the standard library only: 9 MB, 20 ms, no processor time.

It takes the place of `subprocess`'s `preexec_fn`, which runs Python between `fork` and `exec` of a process with other
threads, where a lock held by one of them stays locked for ever. Here is no other thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BLOCKED = {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP}
_LOOK_SECONDS = 1.0  # where the kernel tells nothing of the supervisor's death
_CANNOT_EXECUTE = 127  # what a shell says of a program that cannot be started


def main(arguments: list[str]) -> int:
    """Guards one program; returns its exit status, or 128 and the number of the signal that ended it."""
    parent, leave, interrupt, *command = arguments
    _reset_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    _die_with_parent()
    if os.getppid() != int(parent):  # it died before `prctl` took effect, which then sends nothing
        return 0
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, guardian)
    return _guard(child, int(parent), float(leave), float(interrupt))


def _become(command: list[str], guardian: int) -> None:
    try:
        _reset_signals()
        # Should the guardian itself be killed. SIGTERM and not SIGKILL: the daemon then ends what it is doing, and the
        # code server waits for its run workers.
        _die_with_parent()
        if os.getppid() == guardian:
            os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(_CANNOT_EXECUTE)


def _guard(child: int, parent: int, leave: float, interrupt: float) -> int:
    # SIGTERM comes from the supervisor, which then sees to the group itself, or from the kernel when it has died.
    while True:
        caught = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, _LOOK_SECONDS)
        status = _status(child)
        if caught is not None and caught.si_signo == signal.SIGTERM and status is None:
            os.kill(child, signal.SIGTERM)
        if _is_gone(parent):
            _end_group(child, leave, interrupt)
            return 0
        if status is not None:
            return status


def _is_gone(parent: int) -> bool:
    """Whether the supervisor has ended, or is ending.

    When its main thread has died, which is when the kernel sends its signal, its other threads stand in as our parent
    for some milliseconds more: long enough for the program to end at that signal and for us to leave its group behind.
    """
    if os.getppid() != parent:
        return True
    with contextlib.suppress(OSError):
        stat = Path("/proc", str(parent), "stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
    return False


def _end_group(child: int, leave: float, interrupt: float) -> None:
    """Asks the program to end, interrupts the rest, kills what is left: what the supervisor does when it is stopped."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    if not _wait_for_group(child, leave):
        os.killpg(0, signal.SIGINT)  # a run worker then records that its run was interrupted
        if not _wait_for_group(child, interrupt):
            os.killpg(0, signal.SIGKILL)  # ourselves included


def _wait_for_group(child: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while _has_others():
        _status(child)
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def _has_others() -> bool:
    """Whether our group has living members besides us."""
    group, mine = os.getpgrp(), str(os.getpid())
    for name in os.listdir("/proc"):  # noqa: PTH208 - names alone are wanted
        if not name.isdigit() or name == mine:
            continue
        # Processes come and go while we look, and reading of one that goes fails in more ways than "not found". Any
        # error that escaped here would end this guardian and leave its group alone.
        with contextlib.suppress(OSError):
            stat = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
            # After the name in brackets: state, parent, group.
            fields = stat.rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in {"Z", "X"}:
                return True
    return False


def _status(child: int) -> int | None:
    try:
        pid, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return 0
    if pid == 0:
        return None
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _die_with_parent() -> None:
    # Bound to the thread that started us, so the supervisor starts its children from its main thread.
    if sys.platform == "linux":  # elsewhere only the next supervisor of the home clears up
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _reset_signals() -> None:
    # Ignored signals are inherited, and dagster, finding SIGINT ignored, would ignore SIGTERM as well.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
