from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mirror_realm_assets import liveness
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.liveness import HomeLock, held, identity, is_alive, parse_stat

HOLDER = """
import sys, time
from pathlib import Path
from mirror_realm_assets.liveness import HomeLock
HomeLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_running_process_is_alive_and_a_collected_one_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    who = identity(process.pid)
    assert is_alive(who) is True
    process.kill()
    process.wait()
    assert is_alive(who) is False


def test_a_process_that_ended_but_was_not_collected_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    who = identity(process.pid)
    end = time.monotonic() + 5
    while is_alive(who) and time.monotonic() < end:
        time.sleep(0.01)
    assert is_alive(who) is False
    process.wait()


def test_another_start_time_or_boot_is_another_process_and_another_host_cannot_be_told() -> None:
    me = identity()
    assert is_alive(me) is True
    assert is_alive(replace(me, started=me.started - 1)) is False
    assert is_alive(replace(me, boot_id="another")) is False
    assert is_alive(replace(me, host="elsewhere", boot_id="another")) is None


def test_asking_for_a_process_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ProcessLookupError):
        identity(2**22 + 1)


@pytest.mark.parametrize("name", ["python", "a b", "a) R 1 (b", "(", ")\n)"])
def test_a_name_with_brackets_and_blanks_does_not_shift_the_fields(name: str) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert parse_stat(f"17 ({name}) S {fields}\n") == ("S", 22)


def test_without_proc_psutil_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(liveness, "_PROC", tmp_path)
    monkeypatch.setattr(liveness, "_BOOT_ID", tmp_path / "boot_id")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    who = identity(process.pid)
    assert is_alive(who) is True
    assert is_alive(replace(who, started=who.started + 100)) is False
    process.kill()
    process.wait()
    assert is_alive(who) is False


def test_a_lock_is_held_by_one_and_free_again_after_release(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    assert held(path) is None
    with HomeLock(path):
        assert held(path) == os.getpid()
        with pytest.raises(SetupError, match=str(os.getpid())) as refusal:
            HomeLock(path).acquire()
        assert refusal.value.code == "already_running"
    assert held(path) is None


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert held(path) == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert held(path) is None
    with HomeLock(path):
        assert held(path) == os.getpid()


def test_a_pid_left_by_a_dead_holder_is_not_reported_as_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    with HomeLock(path):
        path.write_text(json.dumps(asdict(replace(identity(), started=1))), encoding="utf-8")
        with pytest.raises(SetupError):
            held(path)


def test_asking_does_not_keep_another_from_taking_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    path.touch()
    asker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mirror_realm_assets.liveness import held\n"
            "print('asking', flush=True)\nwhile True: held(Path(sys.argv[1]))",
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert asker.stdout is not None
        asker.stdout.readline()
        for _ in range(50):
            with HomeLock(path):
                pass
    finally:
        asker.kill()
        asker.communicate()


def test_a_lock_in_a_folder_that_is_missing_is_an_unusable_home(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refusal:
        HomeLock(tmp_path / "missing" / "up.lock").acquire()
    assert refusal.value.code == "home_unusable"
