"""The child is limited, ends with its parent, and cannot make its parent wait, swell or crash."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import mirror_realm_assets
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.ingest.sandbox import Child, ChildDied, ChildTimeout, receive_message, send_message

pytestmark = pytest.mark.timeout(60)

MODULE = "mirror_realm_assets.ingest.decoder"
PACKAGE_ROOT = str(Path(mirror_realm_assets.__file__).resolve().parent.parent)
MEMORY = 1 << 30


@pytest.fixture
def child():
    found = Child(MODULE, memory_bytes=MEMORY)
    yield found
    found.close()


def ask(child: Child) -> dict:
    """A request that the decoder's child refuses, as there is no picture."""
    return child.ask({"do": "proxy"}, [], seconds=20)[0]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return False


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": PACKAGE_ROOT},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def test_nothing_is_started_before_the_first_question(child):
    assert child.pid is None
    ask(child)
    assert child.pid is not None


def test_one_child_answers_many_questions(child):
    ask(child)
    pid = child.pid
    for _ in range(5):
        ask(child)
    assert child.pid == pid


def test_the_child_is_limited_by_the_kernel(child):
    ask(child)
    limits = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
    values = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert values["Max address space"] == [str(MEMORY)] * 2
    assert values["Max core file size"] == ["0"] * 2
    assert values["Max file size"] == ["0"] * 2
    assert int(values["Max open files"][1]) <= 64
    assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()


def test_the_child_knows_nothing_of_our_environment(child, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    ask(child)
    environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"PATH=" not in environment.replace(b"PYTHONPATH=", b"")


def test_no_file_can_be_written_inside(tmp_path):
    (tmp_path / "original.jpg").write_bytes(b"content")
    output = run_python(f"""
        import os
        from mirror_realm_assets.ingest.sandbox import enter_sandbox
        enter_sandbox(os.getppid(), {MEMORY})
        for name, mode in (("original.jpg", "r+b"), ("new.jpg", "wb")):
            try:
                with open(os.path.join({str(tmp_path)!r}, name), mode) as file:
                    file.write(b"CONTENT")
            except OSError as error:
                print(error.errno)
    """)
    assert output.split() == ["27", "27"]  # EFBIG
    assert (tmp_path / "original.jpg").read_bytes() == b"content"


def test_a_child_whose_parent_has_already_died_ends_itself():
    assert "went on" not in run_python(f"""
        import os
        from mirror_realm_assets.ingest.sandbox import enter_sandbox
        enter_sandbox(os.getpid(), {MEMORY})
        print("went on")
    """)


def test_the_child_dies_when_its_parent_is_killed():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from mirror_realm_assets.ingest.sandbox import Child\n"
            f"child = Child({MODULE!r}, memory_bytes={MEMORY}); child.ask({{'do': 'proxy'}}, [], seconds=20)\n"
            "print(child.pid, flush=True); time.sleep(60)",
        ],
        env={"PYTHONPATH": PACKAGE_ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        os.kill(pid, signal.SIGSTOP)  # busy: it does not look at its socket
        parent.kill()
    assert wait_until(lambda: gone(pid))


def test_the_child_outlives_the_thread_that_asked_first(child):
    thread = threading.Thread(target=ask, args=(child,))
    thread.start()
    thread.join()
    pid = child.pid
    time.sleep(0.2)
    assert child.pid == pid is not None
    ask(child)
    assert child.pid == pid


def test_an_interrupt_from_the_terminal_does_not_reach_the_child(child):
    ask(child)
    assert os.getsid(child.pid) == child.pid


def test_a_child_killed_while_idle_is_replaced_without_anyone_noticing(child):
    ask(child)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: child.pid is None)
    assert "refused" in ask(child)
    assert child.pid != first


def test_a_child_that_does_not_answer_is_killed(child):
    ask(child)
    pid = child.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ChildTimeout):
        child.ask({"do": "proxy"}, [], seconds=0.3)
    assert time.monotonic() - began < 5
    assert gone(pid)
    assert "refused" in ask(child)


def test_a_child_that_dies_in_the_middle_is_told_by_its_signal(child):
    ask(child)
    pid = child.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(ChildDied, match="SIGKILL"):
        ask(child)
    assert "refused" in ask(child)


def test_an_interrupted_question_does_not_leave_its_answer_to_the_next_one(child, monkeypatch):
    ask(child)
    pid = child.pid

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mirror_realm_assets.ingest.sandbox.receive_message", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(child)
    assert gone(pid)
    assert "refused" in ask(child)


def test_a_child_that_cannot_start_is_our_failure_not_the_files():
    tiny = Child(MODULE, memory_bytes=20 << 20)
    with pytest.raises(Failed) as caught:
        ask(tiny)
    assert caught.value.code == "internal"
    tiny.close()
    missing = Child("mirror_realm_assets.ingest.no_such_module", memory_bytes=MEMORY)
    with pytest.raises(Failed):
        ask(missing)
    missing.close()


def test_closing_ends_the_child_and_leaves_no_descriptor_open(child):
    before = len(list(Path("/proc/self/fd").iterdir()))
    ask(child)
    pid = child.pid
    child.close()
    assert gone(pid)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def raw(text: bytes, blob: bytes = b"") -> bytes:
    return struct.pack("!II", len(text), len(blob)) + text + blob


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!II", 1 << 31, 0),
        struct.pack("!II", 2, 1 << 31),
        raw(b"[1, 2]"),
        raw(b"not json"),
        raw(b'{"a": NaN}'),
        raw(b"\xff\xfe"),
        raw(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ],
    ids=["long text", "long blob", "no object", "no JSON", "NaN", "no text", "nested"],
)
def test_nonsense_from_the_other_side_is_told_as_such(sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=theirs.sendall, args=(sent,))
        sender.start()
        with pytest.raises(ValueError):
            receive_message(ours, seconds=5)
        sender.join()


def test_a_message_that_trickles_in_for_ever_times_out():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!II", 100, 0))
        stop = threading.Event()

        def trickle():
            while not stop.wait(0.05):
                theirs.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(TimeoutError):
            receive_message(ours, seconds=0.4)
        stop.set()
        thread.join()


def test_messages_arrive_whole_with_their_bytes_and_files(tmp_path):
    ours, theirs = socket.socketpair()
    blob = os.urandom(1 << 20)
    with ours, theirs, (tmp_path / "f").open("wb+") as file:
        file.write(b"content")
        file.flush()
        sender = threading.Thread(target=send_message, args=(theirs, {"a": "ä" * 9000}, blob, [file.fileno()]))
        sender.start()
        message, received, fds = receive_message(ours, seconds=5, max_fds=1)
        sender.join()
        assert json.dumps(message) == json.dumps({"a": "ä" * 9000})
        assert received == blob
        assert os.pread(fds[0], 10, 0) == b"content"
        os.close(fds[0])


def test_files_that_nobody_asked_for_are_not_taken(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "f").open("wb") as file:
        before = len(list(Path("/proc/self/fd").iterdir()))
        send_message(theirs, {}, fds=[file.fileno()])
        assert receive_message(ours, seconds=5) == ({}, b"", [])
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_other_sides_end_is_no_message():
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(struct.pack("!II", 100, 0) + b"half")
        theirs.close()
        assert receive_message(ours, seconds=5) is None
        assert receive_message(ours, seconds=5) is None
