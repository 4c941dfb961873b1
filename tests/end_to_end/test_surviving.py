"""Whatever is killed, and whenever: the work goes on by itself, nothing is done twice, nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from killer_location import KILLER_WIDTH
from running_home import RunningHome, all_ok

FEATURES = ("raw_media", "embeddings", "enhanced_images")
SEARCH = ("raw_media", "embeddings")
RECOVERY_SECONDS = 60.0
PHOTOS = 8

NewHome = Callable[..., RunningHome]
Drop = Callable[..., Path]
Tell = Callable[[str], None]


def fill(home: RunningHome, drop: Drop, count: int = PHOTOS, *, first: int = 0, side: int = 48) -> None:
    for number in range(first, first + count):
        drop(home.folder, number, side=side)


def kill(*pids: int) -> float:
    """kill -9 of processes at once; returns when, on the monotonic clock."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    at = time.monotonic()
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    return at


def wait_searchable(
    home: RunningHome, since: float, count: int = PHOTOS, *, seconds: float = RECOVERY_SECONDS
) -> float:
    """Seconds from `since` until all is searchable, which must not be too many."""
    left = seconds - (time.monotonic() - since)
    home.wait_for(all_ok(count, *SEARCH), left, what=f"searchable {seconds:.0f} s after the kill")
    return time.monotonic() - since


def wait_enhanced(home: RunningHome, since: float, count: int = PHOTOS) -> float:
    """Seconds from `since` until all is enhanced, without the enhancing itself; they must not be too many."""
    before = {row["id"] for row in home.recorded("enhanced_images")}
    home.wait_for(all_ok(count, *FEATURES), RECOVERY_SECONDS + 20.0 * count, what="all is enhanced")
    took = time.monotonic() - since
    enhancing = sum(row["seconds"] or 0.0 for row in home.recorded("enhanced_images") if row["id"] not in before)
    assert took - enhancing <= RECOVERY_SECONDS, f"{took:.0f} s, of which {enhancing:.0f} s enhancing"
    return took - enhancing


def check_nothing_left(home: RunningHome, drop: Drop, crashed: frozenset[int], count: int = PHOTOS) -> str:
    """Nothing was done twice, no run is left, no slot is taken, the index is the ledger; returns words about it."""
    home.wait_runs_ended(60)
    once_more = [row for row in home.recorded() if row["attempts"] != 1]
    assert not once_more, once_more
    assert home.crashed_items() == dict.fromkeys(crashed, 1), "a crash is counted once, for what was begun"
    assert len(home.recorded("enhanced_images")) == count

    # A slot that stays taken would hold this one up for ever.
    drop(home.folder, 200)
    home.wait_for(
        lambda s: all_ok(count + 1, *FEATURES)(s) and s["index"]["vectors"] == count + 1,
        120,
        what="a photo that came afterwards is done",
    )
    assert home.indexed() == home.embedded()
    assert len(home.embedded()) == count + 1
    runs = home.wait_runs_ended(60)
    ended = {status: sum(found == status for _job, found, _key in runs) for _job, status, _key in runs}
    return f"runs {ended}, none left; {len(crashed)} crashes counted; every feature attempts 1"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_run_worker_is_replaced_and_only_its_own_work_goes_on(
    new_home: NewHome, drop: Drop, tell: Tell
) -> None:
    home = new_home()
    fill(home, drop)
    home.up()
    crashed: frozenset[int] = frozenset()
    took = []
    for feature in FEATURES:
        working = home.wait_at_work(feature, 120, done=0 if feature != "enhanced_images" else 2)
        killed = kill(working.pid)
        assert home.items_in_work(), f"{feature} was finished before the kill"
        crashed |= home.items_in_work()
        if feature == "embeddings":
            took.append(f"{feature} {wait_searchable(home, killed):.0f} s")
        elif feature == "enhanced_images":
            took.append(f"{feature} {wait_enhanced(home, killed):.0f} s")
    tell(f"run worker killed: {', '.join(took)}; {check_nothing_left(home, drop, crashed)}")
    assert home.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_daemon_is_started_again_and_disturbs_no_work(new_home: NewHome, drop: Drop, tell: Tell) -> None:
    home = new_home()
    fill(home, drop)
    home.up()
    home.wait_at_work("embeddings", 120)
    killed = kill(home.daemon().pid)
    took = [f"embeddings {wait_searchable(home, killed):.0f} s"]
    home.wait_at_work("enhanced_images", 90, done=2)
    killed = kill(home.daemon().pid)
    took.append(f"enhanced_images {wait_enhanced(home, killed):.0f} s")
    tell(f"daemon killed: {', '.join(took)}; {check_nothing_left(home, drop, frozenset())}")
    assert home.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_code_server_killed_with_its_run_worker_leaves_no_run_behind(
    new_home: NewHome, drop: Drop, tell: Tell
) -> None:
    home = new_home()
    fill(home, drop)
    home.up()
    crashed: frozenset[int] = frozenset()
    took = []
    for feature, done, finished in (("embeddings", 0, wait_searchable), ("enhanced_images", 2, wait_enhanced)):
        working = home.wait_at_work(feature, 120, done=done)
        code_server = psutil.Process(working.pid).ppid()
        killed = kill(working.pid, code_server)
        assert home.items_in_work(), f"{feature} was finished before the kill"
        crashed |= home.items_in_work()
        took.append(f"{feature} {finished(home, killed):.0f} s")
    tell(f"code server and run worker killed: {', '.join(took)}; {check_nothing_left(home, drop, crashed)}")
    assert home.stop() == 0


def power_cut(home: RunningHome, feature: str, *, done: int = 0) -> None:
    """kill -9 of everything while a feature is in work."""
    home.wait_at_work(feature, 120, done=done)
    home.kill_everything()
    assert home.items_in_work(), f"{feature} was finished before the kill"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_after_two_power_cuts_everything_is_finished_by_itself(new_home: NewHome, drop: Drop, tell: Tell) -> None:
    home = new_home()
    fill(home, drop)
    home.up()
    power_cut(home, "embeddings")
    up = time.monotonic()
    home.up()
    took = [f"embeddings {wait_searchable(home, up):.0f} s"]
    power_cut(home, "enhanced_images", done=2)
    up = time.monotonic()
    home.up()
    took.append(f"enhanced_images {wait_enhanced(home, up):.0f} s")
    tell(f"two power cuts: {', '.join(took)} after the restart; {check_nothing_left(home, drop, frozenset())}")
    assert home.stop() == 0


@pytest.mark.timeout(400)  # other tests share the cores; the long ones, which run alone, hold it to the minute
def test_after_a_power_cut_the_batch_is_finished_by_itself(new_home: NewHome, drop: Drop, tell: Tell) -> None:
    home = new_home("enhance=false")
    fill(home, drop, 4, side=32)
    home.up()
    power_cut(home, "embeddings")
    up = time.monotonic()
    home.up()
    took = wait_searchable(home, up, 4, seconds=2 * RECOVERY_SECONDS)
    runs = home.wait_runs_ended(60)
    assert all(row["attempts"] == 1 for row in home.recorded())
    assert home.crashed_items() == {}, "a power cut is no picture's fault"
    home.wait_for(lambda s: s["index"]["vectors"] == 4, 60, what="all is indexed")
    assert home.indexed() == home.embedded()
    tell(f"power cut: {took:.0f} s after the restart; runs {sorted(status for _job, status, _key in runs)}")
    assert home.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_picture_that_kills_its_worker_is_set_aside_and_its_batch_goes_on(
    new_home: NewHome, drop: Drop, tell: Tell
) -> None:
    home = new_home("enhance=false")
    fill(home, drop, 5)
    killer = drop(home.folder, 100, side=KILLER_WIDTH, name="killer.jpg")
    began = time.monotonic()
    home.start("-m", "mirror_realm_assets.cli", "watch")
    home.start_daemon("killer_location")

    def done(found: dict[str, Any]) -> bool:
        embedded = found["features"]["embeddings"]
        return embedded["ok"] == 5 and embedded["failed"] == 1 and found["index"]["vectors"] == 5

    home.wait_for(done, 180, what="all but the killer is indexed")
    took = time.monotonic() - began
    rows = {Path(row["paths"][0]).name: row["features"]["embeddings"] for row in home.files()}
    found = rows.pop(killer.name)
    assert (found["status"], found["code"]) == ("failed", "crashed_worker")
    assert found["reason"]
    (failed,) = [row for row in home.recorded("embeddings") if row["status"] == "failed"]
    assert (failed["crashes"], failed["retryable"]) == (2, False)
    assert {(row["status"], row["attempts"]) for row in rows.values()} == {("ok", 1)}
    runs = home.wait_runs_ended(60)
    drop(home.folder, 6)
    home.wait_for(lambda s: s["features"]["embeddings"]["ok"] == 6, 90, what="a photo that came afterwards is done")
    ended = sorted(status for job, status, _key in runs if job == "media_batch_job")
    tell(f"killer picture: set aside and all else done {took:.0f} s after the daemon's start; batch runs {ended}")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ingest_and_a_second_up_beside_a_running_one_do_no_double_work(
    new_home: NewHome, drop: Drop, tell: Tell
) -> None:
    home = new_home()
    fill(home, drop, 4)
    home.up()
    home.wait_at_work("enhanced_images", 120)
    fill(home, drop, 2, first=4)
    began = time.monotonic()
    ingest = home.start("-m", "mirror_realm_assets.cli", "ingest", "demo")
    second = home.run("up", "--port", str(home.port), check=False)
    assert second.returncode == 1
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr
    assert len(second.stderr.strip().splitlines()) <= 2, second.stderr
    assert home.up_process is not None
    assert home.up_process.poll() is None
    assert ingest.wait(240) == 0
    assert all_ok(6, *FEATURES)(home.status()), "ingest ended before the work was done"
    took = time.monotonic() - began
    words = check_nothing_left(home, drop, frozenset(), 6)
    assert home.stop() == 0
    keys = [key for job, _status, key in home.dagster_runs() if job == "media_batch_job"]
    assert len(keys) == len(set(keys)), "a batch had two runs"
    tell(f"ingest beside up: ended {took:.0f} s later; {words}")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_ingests_at_once_share_the_work(new_home: NewHome, drop: Drop, tell: Tell) -> None:
    home = new_home()
    fill(home, drop)
    began = time.monotonic()
    both = [home.start("-m", "mirror_realm_assets.cli", "ingest", "demo") for _ in range(2)]
    codes = [one.wait(240) for one in both]
    took = time.monotonic() - began
    assert codes == [0, 0], home.logs()
    home.run("ingest", "demo")
    assert all_ok(PHOTOS, *FEATURES)(home.status())
    assert {row["attempts"] for row in home.recorded()} == {1}
    assert home.crashed_items() == {}
    assert home.indexed() == home.embedded()
    assert {status for _job, status, _key in home.wait_runs_ended(10)} == {"SUCCESS"}
    tell(f"two ingests at once: both ended within {took:.0f} s; every feature attempts 1")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stop_in_mid_enhancement_is_clean_and_the_next_up_goes_on(
    new_home: NewHome, drop: Drop, tell: Tell, number: signal.Signals
) -> None:
    home = new_home()
    fill(home, drop, 4, side=96)
    home.up()
    home.wait_at_work("enhanced_images", 120, done=1)
    assert home.up_process is not None
    asked = time.monotonic()
    home.up_process.send_signal(number)
    code = home.up_process.wait(60)
    ended = time.monotonic() - asked
    assert ended <= 20, home.logs()
    assert code == 0
    assert home.processes() == []
    assert home.items_in_work() == frozenset(), "what was interrupted waits again"
    up = time.monotonic()
    home.up()
    took = wait_enhanced(home, up, 4)
    tell(
        f"{number.name} in mid-enhancement: ended in {ended:.0f} s; then {took:.0f} s; "
        f"{check_nothing_left(home, drop, frozenset(), 4)}"
    )
    assert home.stop() == 0
