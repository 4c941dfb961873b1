"""Ending runs whose worker is provably gone, and freeing what it held.

What belongs here: the one place that may use Dagster's `report_run_failed` and its event log by run. There is no public
way: under the default launcher a run whose process, code server and daemon died together stays STARTED for ever and
holds its place in the queue. Reporting it failed frees both, and Dagster's crash retry resumes from the failed step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg
import psutil

from mirror_realm_assets.catalog import workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.workers import WorkerRow
from mirror_realm_assets.liveness import is_alive

_STARTED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass
class Recovered:
    """What a round ended: runs by id, and how many dead workers were buried."""

    runs: list[str] = field(default_factory=list)
    workers: int = 0


def reconcile(instance: dg.DagsterInstance, catalog: Catalog) -> Recovered:
    """End the runs of this host whose process is provably gone; safe to repeat and to run beside others."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_STARTED))
    found = Recovered()
    if records:
        run_ids = [record.dagster_run.run_id for record in records]
        with catalog.read() as conn:
            known = workers.of_runs(conn, run_ids)
        for record in records:
            run = record.dagster_run
            mine = [worker for worker in known if worker.run_id == run.run_id]
            if _is_gone(instance, run, mine):
                instance.report_run_failed(run, "The process of this run is gone; its work goes on in a new run.")
                found.runs.append(run.run_id)
    found.workers = len(workers.bury_the_dead(catalog))
    return found


def _is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun, mine: Sequence[WorkerRow]) -> bool:
    """Whether no process works for the run any more: proved, never guessed from silence."""
    if mine:
        return all(is_alive(worker.process) is False for worker in mine)
    started = _started_process(instance, run.run_id)
    if started is None:
        return False  # not begun yet; Dagster's own start time-out sees to it
    pid, at = started
    try:
        return psutil.Process(pid).create_time() > at + 1
    except psutil.NoSuchProcess:
        return True


def _started_process(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Pid of the run's process and when it said so, from the event that it writes before its first step."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        if event is None or not (event.message or "").startswith("Started process for run"):
            continue
        pid = event.engine_event_data.metadata.get("pid")
        if pid is not None and str(pid.value).isdigit():
            return int(str(pid.value)), entry.timestamp
    return None
