"""`mirror-realm` as a child of the tour: short commands, and `up` that runs until it is told to end.

What belongs here: starting, listening, ending. What does not: when, and what is said about it. Nothing that is started
here outlives the tour, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mirror_realm_assets.stop_signals import Stop

_PROGRAM = (sys.executable, "-m", "mirror_realm_assets.cli")
_INTERRUPT_SECONDS = 5.0
# `up` ends its own children within 15 s; beyond this its guardians end what is left.
_LEAVE_SECONDS = 17.0
_MAX_LOG_BYTES = 10_000_000
_TAIL_BYTES = 64_000
# Lets a program end with the one that started it, even if that is killed, and then becomes the program: the kernel
# keeps the wish over `exec`. As `supervised` does it; `preexec_fn` would run Python in a process with other threads.
_BELOW = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Interrupted(Exception):
    """A person or the system asked the tour to end."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status, standard output, and the lines of standard error."""

    status: int
    output: str
    errors: tuple[str, ...]

    @property
    def last_words(self) -> str:
        """What it said last: of a command that failed, the error with its remedy."""
        return next((line for line in reversed(self.errors) if line.strip()), f"it ended with status {self.status}")


def run_command(*words: str, stop: Stop, on_line: Callable[[str], None] = lambda line: None) -> Done:
    """Run `mirror-realm WORDS`.

    Args:
        words: the command.
        stop: ends it when it is asked for.
        on_line: told the last line of standard error, about ten times a second.

    Raises:
        Interrupted: it was ended.
    """
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*_PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that what it starts (pip) can be ended with it
    )
    output: list[str] = []
    errors: list[str] = []
    readers = [_reader(process.stdout, output), _reader(process.stderr, errors)]
    try:
        while process.poll() is None:
            stop.wait(0.1)
            if stop.asked_at is not None:
                raise Interrupted
            if errors:
                on_line(errors[-1])
    finally:
        _end_group(process)
        for reader in readers:
            reader.join(timeout=2.0)
    return Done(process.returncode, "".join(output), tuple(line.rstrip("\n") for line in errors))


def _reader(pipe: IO[bytes] | None, lines: list[str]) -> threading.Thread:
    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in pipe or ():
                lines.append(line.decode("utf-8", "replace"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # SIGINT: Python programs then remove what they have begun.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_INTERRUPT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Service:
    """`mirror-realm up`, in our process group: Ctrl-C in a terminal reaches it as if it had been started there.

    Args:
        log: takes all it says.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0

    def start(self, host: str, port: int) -> None:
        """Start it; from the main thread, whose end is its own.

        Raises:
            OSError: its log cannot be written, or the system can start no process.
        """
        self.log.parent.mkdir(mode=0o700, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self._read_to = output.tell()
            up = [*_PROGRAM, "up", "--host", host, "--port", str(port)]
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", "-c", _BELOW, str(os.getpid()), *up],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._process is not None

    @property
    def status(self) -> int | None:
        """Its exit status when it has ended, else None."""
        return self._process.poll() if self._process is not None else None

    def news(self) -> list[str]:
        """What it has said since the last call, whole lines."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._read_to)
                data = file.read(_TAIL_BYTES)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def last_lines(self, count: int = 12) -> list[str]:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                return file.read().decode("utf-8", "replace").splitlines()[-count:]
        except OSError:
            return []

    def end(self, stop: Stop) -> int:
        """Ask it to end, wait, and return its exit status; a second Ctrl-C is passed on."""
        process = self._process
        if process is None:
            return 0
        # SIGTERM: the first Ctrl-C may have reached it already, and a second one would tell it to hurry.
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        end = time.monotonic() + _LEAVE_SECONDS
        hurried = False
        while process.poll() is None and time.monotonic() < end:
            if stop.at_once and not hurried:
                hurried = True
                process.send_signal(signal.SIGINT)
            stop.wait(0.1)
        if process.poll() is None:
            process.kill()
        return process.wait()
