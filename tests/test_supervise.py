from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from mirror_realm_assets.child_process import Child, ChildProcess
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.liveness import held, identity, is_alive
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.supervise import children_of, free_port, require_port, supervise, wait_ready

# Stands for `mirror-realm up`: takes the home, the children as JSON and the waiting times; prints a line an event.
SUPERVISOR = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.supervise import Child, Timing, supervise
home, programs, timing = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
assert not any(name == "dagster" or name.startswith("dagster.") for name in sys.modules)
def say(event):
    print(json.dumps(asdict(event)), flush=True)
def fail():
    raise RuntimeError("the task failed")
def child(name, text):
    ready = home / "ready" if name == "server" else None
    return Child(name, (sys.executable, "-c", text, str(home / (name + ".pid"))), dict(os.environ), ready)
children = [child(name, text) for name, text in programs]
try:
    code = supervise(children, home=home, before=lambda: (home / "before").touch(), every=[(0.2, fail)],
                     on_event=say, timing=Timing(tick=0.05, backoff=(0.1, 0.2), **timing))
except SetupError as error:
    print(json.dumps({"kind": "refused", "name": error.code, "message": str(error)}), flush=True)
    sys.exit(1)
sys.exit(code)
"""
WRITE_PID = "import os, signal, subprocess, sys, time\nopen(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\n"
SLEEPER = WRITE_PID + "time.sleep(120)\n"
STUBBORN = (
    "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    + SLEEPER
)
# Ends at once itself, but leaves a grandchild in its group, as the daemon leaves a run worker.
DAEMON = WRITE_PID + (
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])\n"
    "open(sys.argv[1], 'a').write(f'{worker.pid}\\n')\ntime.sleep(120)\n"
)
# Makes the file that those after it wait for, when the test lets it.
SERVER = WRITE_PID + (
    "home = os.path.dirname(sys.argv[1])\n"
    "while not os.path.exists(home + '/may'):\n    time.sleep(0.02)\n"
    "open(home + '/ready', 'w').close()\ntime.sleep(120)\n"
)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Up:
    """One supervisor in a process of its own, and the pids its children wrote down."""

    def __init__(
        self, home: Path, programs: list[tuple[str, str]], *, ignore_sigint: bool, leave: float, ready: float
    ) -> None:
        timing = {"leave": leave, "interrupt": 1.0, "predecessor": leave + 2.0, "ready": ready}
        self.home = home
        self.log = (home / "events").open("a+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(home), json.dumps(programs), json.dumps(timing)],
            stdout=self.log,
            preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignore_sigint else None,
        )

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.home / "events").read_text(encoding="utf-8").splitlines()]

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events()]

    def pids(self, name: str, count: int = 1) -> list[int]:
        path = self.home / f"{name}.pid"
        wait_for(lambda: path.exists() and len(path.read_text().split()) >= count)
        return [int(text) for text in path.read_text().split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=14)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*programs: tuple[str, str], ignore_sigint: bool = False, leave: float = 1.0, ready: float = 20.0) -> Up:
        started.append(Up(tmp_path, list(programs), ignore_sigint=ignore_sigint, leave=leave, ready=ready))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.log.close()
    for path in tmp_path.glob("*.pid"):
        for text in path.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(text), signal.SIGKILL)


def gone(*pids: int) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if is_alive(identity(pid)):
                return False
    return True


def test_sigterm_ends_the_children_in_reverse_order_and_the_exit_code_is_0(up: Callable[..., Up]) -> None:
    one = up(("first", SLEEPER), ("second", SLEEPER))
    pids = one.pids("first") + one.pids("second")
    assert held(one.home / "up.lock") == one.process.pid
    assert one.stop() == 0
    assert gone(*pids)
    assert held(one.home / "up.lock") is None
    assert not (one.home / "up.children.json").exists()
    assert (one.home / "before").exists()
    kinds = one.kinds()
    assert kinds[:2] == ["started", "started"]
    assert kinds[-2:] == ["stopping", "stopped"]


def test_each_child_ends_before_the_one_started_ahead_of_it_is_asked_to(up: Callable[..., Up]) -> None:
    slow = WRITE_PID + (
        "def leave(*_):\n    time.sleep(PAUSE)\n    open(sys.argv[1] + '.order', 'w').close()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\nopen(sys.argv[1] + '.set', 'w').close()\ntime.sleep(120)\n"
    )
    one = up(("first", slow.replace("PAUSE", "0")), ("last", slow.replace("PAUSE", "0.3")))
    wait_for(lambda: len(list(one.home.glob("*.set"))) == 2)
    assert one.stop() == 0
    times = [(one.home / f"{name}.pid.order").stat().st_mtime_ns for name in ("last", "first")]
    assert times == sorted(times)


def test_sigint_stops_even_if_it_was_ignored_at_the_start(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER), ignore_sigint=True)
    (pid,) = one.pids("child")
    assert one.stop(signal.SIGINT) == 0
    assert gone(pid)


def test_children_start_with_default_signals_in_a_session_of_their_own(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER), ignore_sigint=True)
    (pid,) = one.pids("child")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    ignored = int(status["SigIgn"], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not ignored & 1 << number - 1
    assert int(status["SigBlk"], 16) == 0
    assert os.getsid(pid) == os.getpgid(pid) != os.getpgid(one.process.pid)


def test_after_kill_9_of_the_supervisor_no_child_is_left_and_the_lock_is_free(up: Callable[..., Up]) -> None:
    one = up(("first", SLEEPER), ("second", SLEEPER))
    pids = one.pids("first") + one.pids("second")
    one.process.kill()
    one.process.wait()
    assert held(one.home / "up.lock") is None
    wait_for(lambda: gone(*pids), 20)
    two = up(("first", SLEEPER), ("second", SLEEPER))
    two.pids("first", 2)
    assert two.stop() == 0


def test_after_kill_9_a_stubborn_child_and_a_run_worker_are_ended_before_new_ones_start(up: Callable[..., Up]) -> None:
    one = up(("child", STUBBORN), ("daemon", DAEMON))
    old = one.pids("child") + one.pids("daemon", 2)
    one.process.kill()
    one.process.wait()
    two = up(("child", SLEEPER))
    two.pids("child", 2)
    assert gone(*old)
    # Both supervisors write into one file.
    # It waits only if the old processes were still there when it looked; the task fails all the time.
    wait_for(lambda: [kind for kind in two.kinds() if kind not in ("waiting", "failed")] == ["started"] * 3)
    assert two.stop() == 0


def test_after_kill_9_everything_ends_without_a_new_supervisor(up: Callable[..., Up]) -> None:
    one = up(("child", STUBBORN), ("daemon", DAEMON))
    old = one.pids("child") + one.pids("daemon", 2)
    one.process.kill()
    one.process.wait()
    wait_for(lambda: gone(*old), 20)


def test_a_child_of_a_killed_guardian_ends(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER))
    (pid,) = one.pids("child")
    os.kill(os.getpgid(pid), signal.SIGKILL)
    wait_for(lambda: gone(pid), 20)
    one.pids("child", 2)
    assert one.stop() == 0


def test_a_program_that_is_missing_is_named_in_the_log(tmp_path: Path) -> None:
    slot = ChildProcess(Child("child", ("/missing/program",), dict(os.environ)), tmp_path)
    slot.start()
    wait_for(lambda: not slot.living_groups())
    assert slot.collect() == 127
    assert "/missing/program" in slot.log.read_text()


def test_a_dead_child_is_started_again(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER), ("other", SLEEPER))
    (pid,) = one.pids("child")
    (other,) = one.pids("other")
    os.kill(pid, signal.SIGKILL)
    second = one.pids("child", 2)[1]
    assert second != pid
    exits = [event for event in one.events() if event["kind"] == "exited"]
    assert len(exits) == 1
    assert exits[0]["name"] == "child"
    assert "SIGKILL" in exits[0]["message"]
    assert one.stop() == 0
    assert gone(second, other)


def test_a_child_that_cannot_live_is_tried_again_after_longer_pauses(up: Callable[..., Up]) -> None:
    one = up(("child", WRITE_PID + "print('no such setting'); sys.exit(3)\n"))
    one.pids("child", 3)
    assert one.stop() == 0
    messages = [event["message"] for event in one.events() if event["kind"] == "exited"]
    assert "status 3" in messages[0]
    assert "again in 0.1 s" in messages[0]
    assert "again in 0.2 s" in messages[1]
    assert "no such setting" in (one.home / "logs" / "child.log").read_text()


def test_a_task_that_fails_is_reported_and_harms_nobody(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER))
    wait_for(lambda: one.kinds().count("failed") >= 2)
    assert {"kind": "failed", "name": "fail", "message": "RuntimeError: the task failed"} in one.events()
    assert one.stop() == 0


def test_a_child_waits_until_the_one_before_it_is_ready_and_goes_on_when_that_one_dies(up: Callable[..., Up]) -> None:
    one = up(("server", SERVER), ("second", SLEEPER))
    (first,) = one.pids("server")
    time.sleep(0.5)
    assert not (one.home / "second.pid").exists()
    (one.home / "may").touch()
    (second,) = one.pids("second")
    (one.home / "may").unlink()
    os.kill(first, signal.SIGKILL)
    again = one.pids("server", 2)[1]
    wait_for(lambda: not (one.home / "ready").exists())  # what the killed one left says nothing of this one
    assert not gone(second, again)
    os.kill(second, signal.SIGKILL)
    assert len(one.pids("second", 2)) == 2  # the one that was started before does not wait again
    assert one.stop() == 0


def test_a_child_that_never_becomes_ready_holds_up_the_others_for_a_while_only(up: Callable[..., Up]) -> None:
    one = up(("server", SERVER), ("second", SLEEPER), ready=4.0)
    one.pids("server")
    time.sleep(0.4)
    assert not (one.home / "second.pid").exists()
    assert len(one.pids("second")) == 1
    assert one.stop() == 0


def test_a_child_whose_file_is_deleted_is_started_again(up: Callable[..., Up]) -> None:
    one = up(("server", SERVER), ("second", SLEEPER))
    (one.home / "may").touch()
    (first,) = one.pids("server")
    (second,) = one.pids("second")
    (one.home / "ready").unlink()
    assert one.pids("server", 2)[1] != first
    assert gone(first)
    assert not gone(second)
    (event,) = [event for event in one.events() if event["kind"] == "failed" and event["name"] == "server"]
    assert event["message"] == f"Its file {one.home / 'ready'} is gone."
    assert one.stop() == 0


def test_a_childs_files_are_written_before_each_start(tmp_path: Path) -> None:
    path = tmp_path / "workspace.yaml"
    one = ChildProcess(Child("true", ("/bin/true",), {}, files={path: b"of ours"}), tmp_path)
    for _start in range(2):
        one.start()
        assert path.read_bytes() == b"of ours"
        wait_for(lambda: one.collect() is not None)
        path.unlink()


def test_what_a_child_left_in_its_group_ends_too(up: Callable[..., Up]) -> None:
    one = up(("daemon", DAEMON))
    daemon, worker = one.pids("daemon", 2)
    assert one.stop() == 0
    assert gone(daemon, worker)


def test_what_a_dead_child_left_lives_on_and_ends_with_the_supervisor(up: Callable[..., Up]) -> None:
    one = up(("daemon", DAEMON))
    daemon, worker = one.pids("daemon", 2)
    os.kill(daemon, signal.SIGKILL)
    _, _, second, second_worker = one.pids("daemon", 4)
    assert not gone(worker)
    assert one.stop() == 0
    assert gone(worker, second, second_worker)


def test_a_child_that_ignores_signals_is_killed_after_the_grace(up: Callable[..., Up]) -> None:
    one = up(("child", STUBBORN))
    (pid,) = one.pids("child")
    assert one.stop() == 0
    assert gone(pid)
    assert "killed" in one.kinds()


def test_a_second_ctrl_c_kills_at_once_but_a_doubled_signal_does_not(up: Callable[..., Up]) -> None:
    one = up(("child", STUBBORN), leave=30.0)
    (pid,) = one.pids("child")
    one.process.send_signal(signal.SIGINT)
    one.process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert one.process.poll() is None
    asked = time.monotonic()
    assert one.stop(signal.SIGINT) == 1
    assert time.monotonic() - asked < 3
    assert gone(pid)


def test_a_second_supervisor_of_the_home_is_refused_and_the_first_goes_on(up: Callable[..., Up]) -> None:
    one = up(("child", SLEEPER))
    one.pids("child")
    two = up(("child", SLEEPER))
    assert two.process.wait(timeout=8) == 1
    refusal = next(event for event in two.events() if event["kind"] == "refused")
    assert refusal["name"] == "already_running"
    assert str(one.process.pid) in refusal["message"]
    assert one.process.poll() is None
    assert one.stop() == 0


def test_an_error_before_the_start_frees_the_lock_and_the_signals(tmp_path: Path) -> None:
    def refuse() -> None:
        raise SetupError("port_taken", "taken")

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SetupError, match="taken"):
        supervise([], home=tmp_path, before=refuse, on_event=lambda _: None)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert held(tmp_path / "up.lock") is None


def test_a_long_log_is_set_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    slot = ChildProcess(Child("child", (), {}), tmp_path)
    with slot.log.open("ab") as writer:
        writer.write(b"x" * 10_000_001)
        writer.flush()
        slot.rotate_log()
        writer.write(b"after")
    assert slot.log.read_bytes() == b"after"
    assert (tmp_path / "child.log.1").stat().st_size == 10_000_001


def test_a_taken_port_is_refused_with_another_as_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not free_port("127.0.0.1", port)
        with pytest.raises(SetupError, match=f"--port {port + 1}") as refusal:
            require_port("127.0.0.1", port)
        assert refusal.value.code == "port_taken"
    assert free_port("127.0.0.1", port)
    require_port("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(SetupError) as refusal:
        free_port("192.0.2.1", 3000)  # reserved for documentation
    assert refusal.value.code == "invalid_argument"


def test_ready_is_what_answers_as_a_dagster_webserver() -> None:
    answers = [b"[]", b'{"dagster_webserver_version": "1.13.27"}']

    class Webserver(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Webserver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert wait_ready(url, 5)
        server.shutdown()
    assert not wait_ready(url, 0.3)


def test_the_four_children_get_the_home_and_run_installed_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DAGSTER_GRPC_PORT", "DAGSTER_MODULE_NAME", "DAGSTER_WORKING_DIRECTORY"):
        monkeypatch.setenv(name, "4266")
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "of somebody's dagster.yaml")
    settings = Settings.at(tmp_path / "home", configured_dagster_home=tmp_path / "dagster")
    settings.home.mkdir()
    code_server, webserver, daemon, watch = children_of(settings, "127.0.0.1", 4000, tmp_path)
    names = ["code-server", "webserver", "daemon", "watch"]
    assert [child.name for child in (code_server, webserver, daemon, watch)] == names
    for child in (code_server, webserver, daemon, watch):
        assert child.env["MIRROR_REALM_HOME"] == str(tmp_path / "home")
        assert child.env["DAGSTER_HOME"] == str(tmp_path / "dagster")
        assert {name for name in child.env if name.startswith("DAGSTER_")} == {"DAGSTER_HOME", "DAGSTER_PG_PASSWORD"}
        assert child.argv[0] == sys.executable
    path, workspace = str(tmp_path / "code"), str(tmp_path / "home" / "up.workspace.yaml")
    assert code_server.argv[1:7] == ("-m", "dagster", "api", "grpc", "--socket", path)
    assert code_server.ready == Path(path)
    assert webserver.argv[2:] == ("-h", "127.0.0.1", "-p", "4000", "-w", workspace)
    assert daemon.argv[2:] == ("run", "-w", workspace)
    assert watch.argv[1:] == ("-m", "mirror_realm_assets.cli", "watch")
    assert all(Path(child.argv[1]).exists() for child in (webserver, daemon))
    assert not Path(workspace).exists()  # it may be that of another supervisor, by which this one will be refused
    (location,) = yaml.safe_load(code_server.files[Path(workspace)])["load_from"]
    assert location == {"grpc_server": {"socket": path, "location_name": "mirror_realm_assets.definitions"}}
