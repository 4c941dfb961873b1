"""One child of the supervisor: how it is started, where its output goes, and what it leaves behind.

The process we start is the child's guardian (`supervised`), which passes SIGTERM on and ends as the child has ended.

What belongs here: a single child and its process groups. What does not: when to start and stop which (`supervise`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.liveness import ProcessIdentity, identity

_GUARDIAN = Path(__file__).with_name("supervised.py")
_MAX_LOG_BYTES = 10_000_000


@dataclass(frozen=True)
class Child:
    """A program to keep running.

    Attributes:
        name: of the program, and of its log.
        argv: its command, with an absolute path.
        env: its environment.
        ready: a file that it makes when others can use it, and is of no use without; None when it has none.
        files: what is written before each of its starts, by path: only then is it sure that the home is ours.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready: Path | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict)


class ChildProcess:
    """The place of one child: its process while it runs, and the time at which it is due while it does not.

    Args:
        child: what to run.
        logs: the folder of its log.
        grace: seconds for leaving and for being interrupted, which its guardian gives when the supervisor is gone.
    """

    def __init__(self, child: Child, logs: Path, grace: tuple[float, float] = (8.0, 4.0)) -> None:
        self.child = child
        self._grace = grace
        self.log = logs / f"{child.name}.log"
        self.identity: ProcessIdentity | None = None
        self.started_at = 0.0
        self.due = 0.0
        self.failures = 0
        self._was_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        # Every group this child has led and that still has members: a code server's run workers outlive it.
        self._groups: set[int] = set()

    def start(self) -> ProcessIdentity:
        """Starts it in a session of its own; from the main thread, whose end is what the child's life is bound to.

        Raises:
            OSError: if the system cannot start another process or the log cannot be written.
        """
        self.started_at = time.monotonic()
        self._was_ready = False
        if self.child.ready is not None:
            self.child.ready.unlink(missing_ok=True)  # a predecessor that was killed has left it
        for path, content in self.child.files.items():
            write_atomically(path, content)
        self.rotate_log()
        with self.log.open("ab") as output:
            # -I -S: neither the user's PYTHON* variables nor site packages are wanted in the guardian.
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(_GUARDIAN),
                    str(os.getpid()),
                    *map(str, self._grace),
                    *self.child.argv,
                ],
                env=dict(self.child.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._groups.add(self._process.pid)
        # Not collected yet, so it can be looked up even if it has ended already.
        self.identity = identity(self._process.pid)
        return self.identity

    @property
    def running(self) -> bool:
        """Whether it was started and has not been found dead since."""
        return self._process is not None

    def collect(self) -> int | None:
        """The exit status, once, when it has ended (as a shell has it: 128 and more for a signal); `None` otherwise."""
        if self._process is None or self._process.poll() is None:
            return None
        status = self._process.returncode
        self._process = self.identity = None
        return status if status >= 0 else 128 - status

    @property
    def started_before(self) -> bool:
        """Whether it has ever been started."""
        return self.started_at > 0.0

    def is_ready(self) -> bool:
        """Whether others can use it."""
        if self.child.ready is None:
            return True
        self._was_ready = self._process is not None and self.child.ready.exists()
        return self._was_ready

    def lost_its_file(self) -> bool:
        """Whether it was ready at the last look and is not any more, though it lives."""
        return self._was_ready and self._process is not None and not self.is_ready()

    def terminate(self) -> None:
        """Asks the child alone to end: it knows what to ask of those it has started."""
        if self._process is not None:
            self._process.terminate()

    def signal_groups(self, number: signal.Signals) -> None:
        """Sends a signal to the child and to all that it or its predecessors started."""
        for group in self.living_groups():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def living_groups(self) -> set[int]:
        """The groups that still have members; collects those of their members that have ended."""
        current = self._process.pid if self._process is not None and self._process.poll() is None else None
        self._groups = {group for group in self._groups if group == current or self._has_members(group)}
        return set(self._groups)

    def _has_members(self, group: int) -> bool:
        # The leader's status belongs to `collect`; afterwards only orphans are left, which become ours to collect,
        # because the supervisor is their subreaper. Uncollected, they would count as members for ever.
        if self._process is None or self._process.pid != group or self._process.returncode is not None:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-group, os.WNOHANG)[0] > 0:
                    pass
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def rotate_log(self) -> None:
        """Moves a log of more than 10 MB to `.log.1`, which keeps the file: a running child goes on appending to it."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _MAX_LOG_BYTES:
                # What is written between these two lines is lost, as with every log rotated by copying.
                shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)
