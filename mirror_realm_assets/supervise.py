"""`mirror-realm up`: one supervisor a home that starts its programs and ends them.

What belongs here: the life of those processes. What does not: anything about runs, batches or definitions. This module
imports neither dagster nor our definitions, so that it stays small and cannot be broken by what it supervises; recovery
is given to it as a function.

Every child has its own session, so that Ctrl-C in the terminal reaches the supervisor alone, and with it a process
group that also holds what the child starts (the code server's run workers). How they end when we are killed is told in
`supervised`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mirror_realm_assets.child_process import Child, ChildProcess
from mirror_realm_assets.errors import SetupError, as_error, clean_reason
from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.liveness import HomeLock, ProcessIdentity, held, is_alive
from mirror_realm_assets.ports import free_port, require_port, wait_ready
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stop_signals import Stop, stop_signals

__all__ = [
    "Child",
    "Event",
    "HomeLock",
    "Timing",
    "children_of",
    "code_server_of",
    "free_port",
    "held",
    "require_port",
    "supervise",
    "wait_ready",
]

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOG_SECONDS = 600.0

EventKind = Literal["started", "exited", "failed", "waiting", "stopping", "killed", "stopped"]


@dataclass(frozen=True)
class Event:
    """Something the person at the terminal may want to know; `name` is the child's, the task's, or `up`."""

    kind: EventKind
    name: str
    message: str


@dataclass(frozen=True)
class Timing:
    """How long the supervisor waits, in seconds; the defaults are for people, tests take shorter ones.

    Attributes:
        tick: between two looks at the children.
        ready: the most that the first start of a child waits for those before it to be ready.
        leave: for a clean end of the children and of the runs in work.
        interrupt: for run workers to record that they were interrupted. With `leave` and a kill: within 15 s.
        predecessor: for the children of a killed supervisor, which their guardians end within `leave` + `interrupt`.
        settled: a child that lived so long starts the next series of back-offs anew.
        backoff: before a dead child is started again.
    """

    tick: float = 0.25
    ready: float = 30.0
    leave: float = 8.0
    interrupt: float = 4.0
    predecessor: float = 15.0
    settled: float = 60.0
    backoff: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


def supervise(
    children: Sequence[Child],
    *,
    home: Path,
    before: Callable[[], object],
    every: Iterable[tuple[float, Callable[[], object]]] = (),
    on_event: Callable[[Event], object],
    timing: Timing | None = None,
) -> int:
    """Runs `children` until SIGINT, SIGTERM or SIGHUP; to be called from the main thread.

    The order is: the home's lock, then the end of what a killed supervisor may have left, then `before`, then the
    children. So `before` is where ports are checked (`ports.require_port`) and recovery is done.

    Args:
        children: started in this order, at first each when those before it are ready, and stopped in the reverse.
        home: holds the lock `up.lock`, the list of children `up.children.json` and the folder `logs`.
        before: done once, under the lock; what it raises ends the supervisor.
        every: functions with the pause between two calls in seconds, each in a thread of its own so that a slow one
            delays neither a restart nor Ctrl-C. What they raise is reported.
        on_event: told what happens; never called by two threads at once.
        timing: replaces the waiting times.

    Returns:
        0 after a stop in good order, 1 if a second Ctrl-C cut it short.

    Raises:
        SetupError: `already_running` if the home has a supervisor, or whatever `before` raises.
    """
    with HomeLock(home / "up.lock"), stop_signals() as stop:
        supervisor = _Supervisor(children, home, on_event, stop, timing or Timing())
        supervisor.end_predecessors()
        stop.may_interrupt = True
        before()
        stop.may_interrupt = False
        return supervisor.run(every)


class _Supervisor:
    def __init__(
        self, children: Sequence[Child], home: Path, on_event: Callable[[Event], object], stop: Stop, timing: Timing
    ) -> None:
        logs = home / "logs"
        try:
            logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SetupError(as_error(error, default="home_unusable").code, f"{logs}: {error.strerror}.") from error
        grace = (timing.leave, timing.interrupt)
        self._slots = [ChildProcess(child, logs, grace) for child in children]
        self._record = home / "up.children.json"
        self._on_event = on_event
        self._stop = stop
        self._timing = timing
        self._one_at_a_time = threading.Lock()
        self._waits_until = 0.0

    def end_predecessors(self) -> None:
        """Waits for the children of a killed supervisor and kills those that do not end.

        Their guardians end them (see `supervised`), but that takes some seconds, and there must not be two daemons:
        both would launch runs.
        """
        left = [who for who in self._read_record() if is_alive(who)]
        if not left:
            return
        self._report("waiting", "up", "The last supervisor was killed; its children are ending.")
        self._wait(lambda: not any(is_alive(who) for who in left), self._timing.predecessor)
        for who in left:
            if is_alive(who):
                self._report("killed", "up", f"Process {who.pid} of the last supervisor did not end.")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(who.pid, signal.SIGKILL)  # each child leads its group
        self._wait(lambda: not any(is_alive(who) for who in left), self._timing.predecessor)

    def run(self, every: Iterable[tuple[float, Callable[[], object]]]) -> int:
        """Starts everything, keeps it running until told to stop, stops it."""
        _adopt_orphans(True)
        self._waits_until = time.monotonic() + self._timing.ready
        ending = threading.Event()
        for seconds, task in every:
            # Daemon threads: a task that hangs must not keep us from ending.
            threading.Thread(target=self._repeat, args=(seconds, task, ending), daemon=True).start()
        rotate_at = time.monotonic() + _LOG_SECONDS
        try:
            while self._stop.asked_at is None:
                self._look_after()
                if time.monotonic() >= rotate_at:
                    rotate_at += _LOG_SECONDS
                    for slot in self._slots:
                        slot.rotate_log()
                self._stop.wait(self._timing.tick)
        finally:
            ending.set()
            self._end()
            _adopt_orphans(False)
        return 1 if self._stop.at_once else 0

    def _look_after(self) -> None:
        # A child that fails again and again must not keep the others from being started.
        must_wait, all_ready = time.monotonic() < self._waits_until, True
        for slot in self._slots:
            status = slot.collect()
            if status is not None:
                self._put_off(slot, f"ended with {_describe(status)}")
            slot.living_groups()
            if slot.lost_its_file():
                self._report("failed", slot.child.name, f"Its file {slot.child.ready} is gone.")
                slot.terminate()
            due = not slot.running and time.monotonic() >= slot.due and self._stop.asked_at is None
            if due and (all_ready or slot.started_before or not must_wait):
                self._start(slot)
            all_ready = slot.is_ready() and all_ready

    def _start(self, slot: ChildProcess) -> None:
        try:
            who = slot.start()
            write_atomically(self._record, json.dumps([asdict(s.identity) for s in self._slots if s.identity]).encode())
        except OSError as error:  # no process or no disk space to be had just now
            self._put_off(slot, f"could not be started: {error.strerror}")
        else:
            self._report("started", slot.child.name, f"Process {who.pid}, log {slot.log}.")

    def _put_off(self, slot: ChildProcess, what: str) -> None:
        if time.monotonic() - slot.started_at >= self._timing.settled:
            slot.failures = 0
        pause = self._timing.backoff[min(slot.failures, len(self._timing.backoff) - 1)]
        slot.failures += 1
        slot.due = time.monotonic() + pause
        self._report("exited", slot.child.name, f"It {what}; it is started again in {pause:g} s. See {slot.log}.")

    def _end(self) -> None:
        """Ends the children in reverse order, then what they started, within about 15 s."""
        self._report("stopping", "up", "Stopping; a second Ctrl-C stops at once.")
        end = time.monotonic() + self._timing.leave
        for slot in reversed(self._slots):
            slot.terminate()
            self._wait(partial(self._gone, slot), min(self._timing.leave / 2, end - time.monotonic()))
        # The daemon is gone, a run worker ends its batch: short ones need no second attempt.
        self._wait(lambda: not self._left(), end - time.monotonic())
        # SIGINT: a run worker takes it as SIGTERM and records that its run was interrupted, so that the run is retried
        # from the failed step; a webserver that waits for open connections ends at SIGINT only.
        for slot in self._slots:
            slot.signal_groups(signal.SIGINT)
        self._wait(lambda: not self._left(), self._timing.interrupt)
        for name in self._left():
            self._report("killed", name, "It did not end in time.")
        for slot in self._slots:
            slot.signal_groups(signal.SIGKILL)
        # Not cut short by a second Ctrl-C: SIGKILL takes milliseconds, and nothing may be left.
        patience = time.monotonic() + 2.0
        while self._left() and time.monotonic() < patience:
            time.sleep(0.02)
        if not self._left():
            self._record.unlink(missing_ok=True)
        self._report("stopped", "up", "Everything has ended.")

    def _left(self) -> list[str]:
        return [slot.child.name for slot in self._slots if not self._gone(slot) or slot.living_groups()]

    @staticmethod
    def _gone(slot: ChildProcess) -> bool:
        slot.collect()
        return not slot.running

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end and not self._stop.at_once:
            time.sleep(0.05)

    def _repeat(self, seconds: float, task: Callable[[], object], ending: threading.Event) -> None:
        while not ending.wait(seconds):
            try:
                task()
            except Exception as error:
                name = getattr(task, "__name__", type(task).__name__)
                self._report("failed", name, clean_reason(f"{type(error).__name__}: {error}"))

    def _report(self, kind: EventKind, name: str, message: str) -> None:
        # A closed terminal must not keep us from looking after the children, least of all from ending them.
        with self._one_at_a_time, contextlib.suppress(OSError, ValueError):
            self._on_event(Event(kind, name, message))

    def _read_record(self) -> list[ProcessIdentity]:
        try:
            return [ProcessIdentity(**entry) for entry in json.loads(self._record.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []  # none, or cut short by an older version: then there is nobody we could name


def _adopt_orphans(adopt: bool) -> None:
    """Makes us the parent of what our children leave, to collect it where process 1 does not (in containers)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _describe(status: int) -> str:
    if status > 128 and status - 128 in set(signal.Signals):
        return signal.Signals(status - 128).name
    return f"status {status}"


# Each of them would say which code is loaded, or from where; what is not named here may be in somebody's dagster.yaml.
_SAY_WHICH_CODE = frozenset(
    f"DAGSTER_{name}"
    for name in (
        *("GRPC_HOST", "GRPC_PORT", "GRPC_SOCKET", "INSTANCE_REF", "LOCATION_NAME", "LAZY_LOAD_USER_CODE"),
        *("MODULE_NAME", "PACKAGE_NAME", "PYTHON_FILE", "ATTRIBUTE", "autoload_defs_module_name"),
        *("WORKING_DIRECTORY", "EMPTY_WORKING_DIRECTORY", "USE_PYTHON_ENVIRONMENT_ENTRY_POINT"),
    )
)


def children_of(settings: Settings, host: str, port: int, sockets: Path) -> tuple[Child, ...]:
    """The four programs of a home: code server, webserver, daemon and watcher.

    The commands are neither superseded nor deprecated in dagster 1.13.27. No workspace file of the user's, no variable
    and no current folder decides what is loaded. Scripts are run by our own interpreter: the first line of a script
    breaks when a virtual environment is moved or its path is long.

    Args:
        settings: of the home.
        host: where the webserver listens.
        port: its port.
        sockets: folder of the code server's socket.
    """
    env = {name: value for name, value in os.environ.items() if name not in _SAY_WHICH_CODE} | {
        "MIRROR_REALM_HOME": str(settings.home),
        "DAGSTER_HOME": str(settings.dagster_home),
        "PYTHONUNBUFFERED": "1",  # the logs are files, which Python would fill block by block
    }
    code_server, workspace = code_server_of("mirror_realm_assets.definitions", env, settings.home, sockets)
    webserver = (_script("dagster-webserver"), "-h", host, "-p", str(port), "-w", str(workspace))
    daemon = (_script("dagster-daemon"), "run", "-w", str(workspace))
    watcher = ("-m", "mirror_realm_assets.cli", "watch")
    return (
        code_server,
        Child("webserver", (sys.executable, *webserver), env),
        Child("daemon", (sys.executable, *daemon), env),
        Child("watch", (sys.executable, *watcher), env),
    )


def code_server_of(module: str, env: Mapping[str, str], home: Path, sockets: Path) -> tuple[Child, Path]:
    """The code server of webserver and daemon, and the workspace file by which they find it, written when it starts.

    Given the module's name instead, each starts a code server of its own, and the daemon a new one every 60 s: five
    processor seconds a minute, whether there is work or not.

    Args:
        module: holds the definitions.
        env: its environment.
        home: where the workspace file is written; the daemon reads it again every minute.
        sockets: where its socket will be. Nobody else may enter: who can write to the socket can run code.
    """
    socket, workspace = sockets / "code", home / "up.workspace.yaml"
    # Under its module's name, by which sensors' states, runs and bookmarks know it.
    server = {"socket": str(socket), "location_name": module}
    content = json.dumps({"load_from": [{"grpc_server": server}]}).encode()  # JSON is YAML
    # As a module, and not as the script: what runs a run would import all of a script's imports. Not lazily: a server
    # whose definitions cannot be loaded just now ends, is started again, and says so here.
    program = ("-m", "dagster", "api", "grpc", "--socket", str(socket), "--location-name", module)
    how = ("-m", module, "-d", os.getcwd(), "--inject-env-vars-from-instance")  # noqa: PTH109 - as dagster has it
    return Child("code-server", (sys.executable, *program, *how), env, socket, {workspace: content}), workspace


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)
