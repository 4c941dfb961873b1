"""Ending runs whose worker is provably gone, and freeing what it held.

What belongs here: the one place that may use Dagster's `report_run_failed` and its event log by run. There is no public
way: under the default launcher a run whose process, code server and daemon died together stays STARTED for ever and
holds its place in the queue. Reporting it failed frees both, and Dagster's crash retry resumes from the failed step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil

from mirror_realm_assets import liveness
from mirror_realm_assets.catalog import workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.workers import WorkerRow
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.liveness import is_alive

_UNDER_WAY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
RUN_BY_WORKER = "mirror-realm/worker"
"""Tag of a run that runs in the process which created it: the id of that worker."""
# Created and not even queued: whoever created it submits it within milliseconds, or died.
_UNSUBMITTED = timedelta(minutes=3)
# The start of a process is known in the boot time's whole seconds.
_CLOCKS = timedelta(seconds=2)
_TAIL = ["tail", "-F", "-c", "+0"]
# Written by a run's process: of its own under a daemon, the caller's under `ingest`.
_PROCESS_EVENTS = ("Started process for run", "Executing steps in process")


@dataclass
class Recovered:
    """What a round ended: runs by id, and how many dead workers were buried."""

    runs: list[str] = field(default_factory=list)
    workers: int = 0


def reconcile(
    instance: dg.DagsterInstance,
    catalog: Catalog,
    lock: Path | None = None,
    *,
    runs: bool = True,
    forgive: bool = False,
) -> Recovered:
    """End the runs of this host whose process is provably gone; safe to repeat and to run beside others.

    Args:
        instance: whose runs.
        catalog: the ledger with the workers.
        lock: the lock of the home. A run that was being launched before its present holder began was launched by
            processes that ended with the holder before; without it such a run is left to Dagster's start time-out.
        runs: False where Dagster's own monitoring sees to runs: on a cluster, where a step's process is not its run's.
        forgive: nothing of ours was left alive, so no picture is suspected; see `workers.bury_the_dead`.
    """
    records = instance.get_run_records(dg.RunsFilter(statuses=_UNDER_WAY)) if runs else []
    found = Recovered()
    if records:
        run_ids = [record.dagster_run.run_id for record in records]
        with catalog.read() as conn:
            known = workers.of_runs(conn, run_ids)
            makers = workers.by_ids(conn, [record.dagster_run.tags.get(RUN_BY_WORKER, "") for record in records])
        since = _supervised_since(lock) if lock else None
        for record in records:
            run = record.dagster_run
            mine = [worker for worker in known if worker.run_id == run.run_id]
            if not mine and (maker := makers.get(run.tags.get(RUN_BY_WORKER, ""))):
                mine = [maker]  # it runs in the process that made it, and has not come to its first step
            if _is_gone(instance, record, mine, since):
                instance.report_run_failed(run, "The process of this run is gone; its work goes on in a new run.")
                found.runs.append(run.run_id)
    found.workers = len(workers.bury_the_dead(catalog, forgive=forgive))
    return found


def end_orphaned_tails(storage: Path, *, older_than: float = 10.0) -> int:
    """End the `tail` processes of runs that were killed before Dagster had made anyone watch over them.

    A run's process shows its log by a `tail -F`, and starts a second process after it that ends it when the run dies.
    Killed in between, the `tail` stays for ever.

    Args:
        storage: Dagster's folder with the logs of runs.
        older_than: seconds that it must have run for, as its watcher is started after it.

    Returns:
        How many were ended.
    """
    tails: list[psutil.Process] = []
    watched: set[int] = set()
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if len(words) == 5 and words[:4] == _TAIL and Path(words[4]).is_relative_to(storage):
            if time.time() - process.info["create_time"] > older_than:
                tails.append(process)
        elif len(words) == 4 and words[1].endswith("watch_orphans.py") and words[3].isdigit():
            watched.add(int(words[3]))
    ended = 0
    for process in tails:
        if process.pid not in watched:
            with contextlib.suppress(psutil.Error):  # it has ended by itself
                process.kill()  # it has nothing to lose, and may have been started where SIGTERM is ignored
                ended += 1
    return ended


def _supervised_since(lock: Path) -> datetime | None:
    """When the supervisor that holds the lock began."""
    try:
        pid = liveness.held(lock)
        return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC) if pid is not None else None
    except (psutil.Error, SetupError):
        return None


def _is_gone(
    instance: dg.DagsterInstance, record: dg.RunRecord, mine: Sequence[WorkerRow], since: datetime | None
) -> bool:
    """Whether no process works for the run any more: proved, never guessed from silence."""
    if mine:
        return all(is_alive(worker.process) is False for worker in mine)
    run, changed = record.dagster_run, record.update_timestamp.astimezone(UTC)
    if run.status is dg.DagsterRunStatus.NOT_STARTED:
        return datetime.now(UTC) - changed > _UNSUBMITTED
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return False  # its process is on another machine, where its pid means something else
    started = _started_process(instance, run.run_id)
    if started is None:
        # Not begun yet. What launched it before our supervisor began is gone; else Dagster's start time-out sees to it.
        return since is not None and changed < since - _CLOCKS
    pid, at = started
    try:
        return psutil.Process(pid).create_time() > at + 1
    except psutil.NoSuchProcess:
        return True


def _started_process(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Pid of the run's process and when it said so, from the event that it writes before its first step."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        if event is None or not (event.message or "").startswith(_PROCESS_EVENTS):
            continue
        pid = event.engine_event_data.metadata.get("pid")
        if pid is not None and str(pid.value).isdigit():
            return int(str(pid.value)), entry.timestamp
    return None
