"""Recovery: the ledger is right whatever was killed, and runs end when their process is provably gone, never before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from cheap_stages import cheap_stages, run_lane
from dagster._core.events import EngineEventData
from lab import Lab

from mirror_realm_assets.catalog import batches, leases, status, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.liveness import HomeLock, identity
from mirror_realm_assets.recovery import RUN_BY_WORKER, end_orphaned_tails, reconcile

STARTED = dg.DagsterRunStatus.STARTED
STARTING = dg.DagsterRunStatus.STARTING
FAILURE = dg.DagsterRunStatus.FAILURE

# Stands for a run worker: embeds one picture after the other, slowly, and says so.
WORKER = """
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from cheap_stages import cheap_stages
from mirror_realm_assets.resources.library import open_services
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.flow import each_proxy
settings = Settings.at(Path({home!r}), quiet_seconds=0)
def slowly(image):
    time.sleep(0.4)
    return {{"pixels": image.shape[0] * image.shape[1]}}
stages = cheap_stages(settings)
slow = replace(stages[2], run=each_proxy(slowly))
run_stage(slow, {batch!r}, open_services(settings), stages, run_id={run!r})
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as opened:
        yield opened


def add_run(instance: dg.DagsterInstance, state: dg.DagsterRunStatus, made_by: str | None = None) -> dg.DagsterRun:
    tags = {RUN_BY_WORKER: made_by} if made_by else {}
    run = dg.DagsterRun(job_name="media_batch_job", status=state, tags=tags)
    instance.add_run(run)
    return run


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def says_its_pid(instance: dg.DagsterInstance, run: dg.DagsterRun, pid: int, words: str) -> None:
    data = EngineEventData(metadata={"pid": dg.MetadataValue.text(str(pid))})
    instance.report_engine_event(f"{words} (pid: {pid}).", run, data)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_killed_run_leaves_every_item_pending_or_with_its_true_state(lab: Lab, instance: dg.DagsterInstance) -> None:
    stages = cheap_stages(lab.settings)
    for number in range(5):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    run_lane(lab.services, stages, batch.key)
    run = add_run(instance, STARTED)
    script = WORKER.format(tests=str(Path(__file__).parent), home=str(lab.home), batch=batch.key, run=run.run_id)
    worker = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 60
    while _enhanced(lab)["ok"] < 2:
        assert time.monotonic() < end
        assert worker.poll() is None
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()

    # No sensor has run: what was recorded is ok, all else is still to be done, and nothing is lost or taken.
    counts = _enhanced(lab)
    assert counts["ok"] >= 2
    assert counts["ok"] + counts["pending"] + counts["running"] == 5
    begun = counts["running"]
    found = reconcile(instance, lab.catalog)
    assert (found.runs, found.workers) == ([run.run_id], 1)
    assert status_of(instance, run) is FAILURE
    with lab.catalog.read() as conn:
        (pending,) = batches.pending(conn, "enhance", ["enhanced_images"])
        assert not pending.leased
        assert pending.open_items >= 5 - counts["ok"]

    run_lane(lab.services, stages, batch.key, "enhance")
    assert _enhanced(lab)["ok"] == 5
    with lab.catalog.read() as conn:
        rows = conn.execute(t.features.select().where(t.features.c.feature == "enhanced_images")).mappings().all()
        assert [row["attempts"] for row in rows] == [1] * 5
        assert sum(row["crashes"] for row in rows) == begun


def _enhanced(lab: Lab) -> dict[str, int]:
    rules = [stage.rule for stage in cheap_stages(lab.settings)]
    with lab.catalog.read() as conn:
        return status.of_source(conn, lab.source, rules).features["enhanced_images"]


def test_a_run_whose_worker_is_dead_ends_and_a_second_look_changes_nothing(
    lab: Lab, instance: dg.DagsterInstance
) -> None:
    run = add_run(instance, STARTED)
    with lab.catalog.write() as conn:
        dead = workers.register(conn, "run", replace(identity(), pid=dead_pid()), run_id=run.run_id)
        assert leases.acquire(conn, "batch/search/demo", dead, 60)
    assert reconcile(instance, lab.catalog).runs == [run.run_id]
    assert status_of(instance, run) is FAILURE
    with lab.catalog.read() as conn:
        assert leases.holder(conn, "batch/search/demo") is None
    again = reconcile(instance, lab.catalog)
    assert (again.runs, again.workers) == ([], 0)
    failures = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert len(failures) == 1


def test_a_run_with_a_living_worker_is_left_alone_even_if_an_earlier_step_ended(
    lab: Lab, instance: dg.DagsterInstance
) -> None:
    run = add_run(instance, STARTED)
    with lab.catalog.write() as conn:
        earlier = workers.register(conn, "run", identity(), run_id=run.run_id)
        workers.end(conn, earlier)
        workers.register(conn, "run", identity(), run_id=run.run_id)
    assert reconcile(instance, lab.catalog).runs == []
    assert status_of(instance, run) is STARTED


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, STARTED])
def test_a_run_of_an_ingest_that_died_before_its_first_step_ends_at_once(
    lab: Lab, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    with lab.catalog.write() as conn:
        dead = workers.register(conn, "form", replace(identity(), pid=dead_pid()))
        alive = workers.register(conn, "form", identity())
    killed, working = add_run(instance, status, dead), add_run(instance, status, alive)
    assert reconcile(instance, lab.catalog).runs == [killed.run_id]
    assert status_of(instance, working) is status


def test_nothing_is_concluded_about_a_worker_on_another_host(lab: Lab, instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    elsewhere = replace(identity(), host="elsewhere", pid=dead_pid())
    with lab.catalog.write() as conn:
        workers.register(conn, "run", elsewhere, run_id=run.run_id)
    found = reconcile(instance, lab.catalog)
    assert (found.runs, found.workers) == ([], 0)
    assert status_of(instance, run) is STARTED


def test_a_worker_from_before_the_machine_was_started_anew_is_dead(lab: Lab, instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    with lab.catalog.write() as conn:
        workers.register(conn, "run", replace(identity(), boot_id="an earlier one"), run_id=run.run_id)
    assert reconcile(instance, lab.catalog).runs == [run.run_id]


@pytest.mark.parametrize("words", ["Started process for run", "Executing steps in process"])
def test_a_run_that_only_told_its_pid_ends_when_that_process_is_gone(
    lab: Lab, instance: dg.DagsterInstance, words: str
) -> None:
    gone, alive = add_run(instance, STARTED), add_run(instance, STARTED)
    says_its_pid(instance, gone, dead_pid(), words)
    says_its_pid(instance, alive, os.getpid(), words)
    assert reconcile(instance, lab.catalog).runs == [gone.run_id]
    assert status_of(instance, alive) is STARTED
    assert reconcile(instance, lab.catalog).runs == []


def test_a_pid_that_was_used_again_since_proves_the_run_gone(lab: Lab, instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    later = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        # As if the event had been written by an earlier process with this pid.
        says_its_pid(instance, run, later.pid, "Started process for run")
        _age_events(instance, run, 3600)
        assert reconcile(instance, lab.catalog).runs == [run.run_id]
    finally:
        later.kill()
        later.wait()


def _age_events(instance: dg.DagsterInstance, run: dg.DagsterRun, seconds: float) -> None:
    """Make a run's engine events older."""
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Table

    with instance.event_log_storage.run_connection(run.run_id) as conn:  # type: ignore[attr-defined]
        for row in conn.execute(sa.select(Table.c.id, Table.c.event)).all():
            event = json.loads(row[1])
            event["timestamp"] -= seconds
            conn.execute(Table.update().where(Table.c.id == row[0]).values(event=json.dumps(event)))


def test_a_run_that_is_being_launched_ends_only_if_its_launcher_belonged_to_an_earlier_supervisor(
    lab: Lab, instance: dg.DagsterInstance
) -> None:
    lock = lab.home / "up.lock"
    before = add_run(instance, STARTING)
    time.sleep(3.1)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom mirror_realm_assets.liveness import HomeLock\n"
            "HomeLock(Path(sys.argv[1])).acquire()\nprint('held', flush=True)\ntime.sleep(60)",
            str(lock),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        after = add_run(instance, STARTING)
        assert reconcile(instance, lab.catalog).runs == []
        assert reconcile(instance, lab.catalog, lock).runs == [before.run_id]
        assert status_of(instance, after) is STARTING
    finally:
        holder.kill()
        holder.communicate()
    with HomeLock(lock):  # ours, and we are older than both
        assert reconcile(instance, lab.catalog, lock).runs == []


def test_queued_runs_and_runs_that_were_only_just_created_are_left_alone(
    lab: Lab, instance: dg.DagsterInstance
) -> None:
    created = add_run(instance, dg.DagsterRunStatus.NOT_STARTED)
    ended = add_run(instance, dg.DagsterRunStatus.SUCCESS)
    assert reconcile(instance, lab.catalog).runs == []
    assert status_of(instance, created) is dg.DagsterRunStatus.NOT_STARTED
    assert status_of(instance, ended) is dg.DagsterRunStatus.SUCCESS


def test_a_tail_that_nobody_watches_over_any_more_is_ended(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    (storage / "run" / "compute_logs").mkdir(parents=True)
    logs = [storage / "run" / "compute_logs" / "a.err", storage / "run" / "compute_logs" / "b.err", tmp_path / "c.err"]
    for log in logs:
        log.write_text("")
    tails = [subprocess.Popen(["tail", "-F", "-c", "+0", log], stdout=subprocess.DEVNULL) for log in logs]
    script = tmp_path / "watch_orphans.py"
    script.write_text("import time\ntime.sleep(60)\n")
    watcher = subprocess.Popen([sys.executable, script, str(os.getpid()), str(tails[1].pid)])
    try:
        time.sleep(0.2)
        assert end_orphaned_tails(storage) == 0  # too young to be sure
        assert end_orphaned_tails(storage, older_than=0) == 1
        assert tails[0].wait(10) == -signal.SIGKILL
        assert [tail.poll() for tail in tails[1:]] == [None, None]
    finally:
        for process in (*tails, watcher):
            process.kill()
            process.wait()
