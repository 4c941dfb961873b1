"""What Dagster and the ledger remember of runs: what nobody needs any more is deleted after some weeks.

What belongs here: deleting runs with their events and logs, rows of workers that ended long ago, and old months of the
audit trail. What does not: partition keys (`pruning`), files and what was made of them (`catalog.purge`), ticks
(Dagster's own `retention`).

A run is deleted when nothing that the UI shows comes from it: its batch is retired, or a later run of the same job
for the same partition succeeded. The ledger keeps which runs a batch had and when.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from mirror_realm_assets.catalog import activity, retirement, workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.settings import Settings

_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PARTITION = "dagster/partition"
_PAGE = 200


@dataclass
class Cleaned:
    """What a round deleted.

    Attributes:
        runs: how many runs.
        workers: how many rows of workers.
        activities: how many rows of the audit trail.
        over: whether the time was up before everything had been looked at; the next round goes on.
    """

    runs: int = 0
    workers: int = 0
    activities: int = 0
    over: bool = False


def clean(
    instance: dg.DagsterInstance,
    catalog: Catalog,
    settings: Settings,
    *,
    dry_run: bool = False,
    seconds: float = 600.0,
    on_progress: Callable[[Cleaned], None] = lambda _cleaned: None,
) -> Cleaned:
    """One round; safe to repeat, to kill anywhere, and to run beside others.

    Args:
        instance: whose runs.
        catalog: the ledger.
        settings: how long runs are kept.
        dry_run: only say how much would go.
        seconds: no run is begun with after so long.
        on_progress: called after each page of runs.
    """
    before = datetime.now(UTC) - timedelta(days=settings.run_retention_days)
    end = time.monotonic() + seconds
    found = Cleaned()
    latest: dict[tuple[str, str | None], str | None] = {}
    for page in _pages(instance, before):
        keys = {key for record in page if (key := record.dagster_run.tags.get(_PARTITION))}
        with catalog.read() as conn:
            retired = retirement.retired_among(conn, keys)
        for record in page:
            if time.monotonic() > end:
                found.over = True
                break
            run = record.dagster_run
            if run.tags.get(_PARTITION) in retired or _is_superseded(instance, run, latest):
                if not dry_run:
                    _delete(instance, run.run_id, settings)
                found.runs += 1
        on_progress(found)
        if found.over:
            break
    if dry_run:
        with catalog.read() as conn:
            found.workers = workers.ended_before(conn, before)
    else:
        with catalog.write() as conn:
            found.workers = workers.forget(conn, before)
            activity.ensure_months(conn)
            oldest = datetime.now(UTC) - timedelta(days=settings.activity_retention_days)
            found.activities = activity.forget_before(conn, oldest)
    return found


def _pages(instance: dg.DagsterInstance, before: datetime) -> Iterator[list[dg.RunRecord]]:
    """Runs that are over and were created before, the oldest first."""
    cursor: str | None = None
    while True:
        # The cursor is the last run of the page before, which may be gone by then: so it is one that stays, or none.
        records = list(
            instance.get_run_records(
                dg.RunsFilter(statuses=_OVER, created_before=before), limit=_PAGE, ascending=True, cursor=cursor
            )
        )
        if not records:
            return
        yield records
        left = [r for r in records if instance.get_run_by_id(r.dagster_run.run_id) is not None]
        if left:
            cursor = left[-1].dagster_run.run_id


def _is_superseded(
    instance: dg.DagsterInstance, run: dg.DagsterRun, latest: dict[tuple[str, str | None], str | None]
) -> bool:
    """Whether a later run of the same job for the same partition succeeded."""
    partition = run.tags.get(_PARTITION)
    about = (run.job_name, partition)
    if about not in latest:
        tags = {_PARTITION: partition} if partition else {}
        records = instance.get_run_records(
            dg.RunsFilter(job_name=run.job_name, statuses=[dg.DagsterRunStatus.SUCCESS], tags=tags), limit=1
        )
        latest[about] = records[0].dagster_run.run_id if records else None
    newest = latest[about]
    if newest is None or newest == run.run_id:
        return False
    mine, other = instance.get_run_record_by_id(run.run_id), instance.get_run_record_by_id(newest)
    return mine is not None and other is not None and other.create_timestamp > mine.create_timestamp


def _delete(instance: dg.DagsterInstance, run_id: str, settings: Settings) -> None:
    """Logs first: without its run nobody would find them again."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)
    # On SQLite each run has a database of its own, which Dagster empties and leaves: 165 KB each.
    for name in (f"{run_id}.db", f"{run_id}.db-wal", f"{run_id}.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (Path(settings.dagster_home) / "history" / "runs" / name).unlink()
