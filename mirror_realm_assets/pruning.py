"""Keeping the live keys of `media_batch` few: the keys of the oldest finished batches are retired.

What belongs here: which keys go, and deleting them from Dagster's set. What does not: which batches are finished
(`catalog.retirement`). A retired batch keeps its row and Dagster keeps its events and runs; only the choice of
partitions in the UI is without it.

The mark in the ledger comes first and the deletion after it. What a tick that was killed left marked and undeleted, the
next one deletes, and a batch that is marked is pending nowhere, so nothing adds its key again. That also makes the mark
the plan: everything down to the lower bound is marked at once, and deleted over several ticks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import get_args

import dagster as dg

from mirror_realm_assets.catalog import retirement
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Lane

MEDIA_BATCH = "media_batch"
# Of a round, because Dagster ends a tick after 60 s: on SQLite 360 keys a second are deleted.
_DELETED = 500
_RETIRED = 5000
_NOTED = 500
_NOTES = 20
_PARTITION = "dagster/partition"
_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_NOT_OVER = [status for status in dg.DagsterRunStatus if status not in _OVER]
_BACKFILLING = ("REQUESTED", "CANCELING", "FAILING")
_NEWEST_BACKFILLS = 25
# Within this Dagster starts the retry of a run that crashed; see `sensors.lanes`.
_RETRY_SECONDS = 300.0


@dataclass
class Pruned:
    """What a round did.

    Attributes:
        live: keys in the set when it began.
        retired: keys of the batches that it marked, or in a dry run would have.
        deleted: keys that it deleted, of these and of earlier rounds.
        left: retired keys that are still in the set; the next round goes on with them.
        over: how many more keys should go and may not: their batches are unfinished, fresh, or being run.
        backfill: the id of a backfill that has to end first, because it fails when a key that it names is gone.
    """

    live: int
    retired: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    left: int = 0
    over: int = 0
    backfill: str | None = None


def surplus(live: int, above: int, to: int) -> int:
    """How many keys should go: none up to `above`, from there on all over `to`."""
    return max(live - to, 0) if live > above else 0


def choose(ended: Sequence[str], live: Collection[str], busy: Collection[str], count: int) -> list[str]:
    """Which keys to retire.

    Args:
        ended: keys of batches that may go, the longest ended first.
        live: keys that are in Dagster's set.
        busy: keys with a run that is under way, or was lately.
        count: how many.
    """
    return [key for key in ended if key in live and key not in busy][:count]


def prune(instance: dg.DagsterInstance, catalog: Catalog, settings: Settings, *, dry_run: bool = False) -> Pruned:
    """One bounded round; safe to repeat, to kill anywhere, and to run beside others.

    Args:
        instance: whose keys.
        catalog: the ledger with the batches.
        settings: the bounds and the grace.
        dry_run: only say what would be retired. When batches ended is written down all the same.
    """
    # The keys before the marks: whatever another pruner does meanwhile, too few are counted and never too many.
    live = set(instance.get_dynamic_partitions(MEDIA_BATCH))
    _note_finished(catalog)
    with catalog.read() as conn:
        gone = retirement.retired_among(conn, live)
        at = now(conn)
    found = Pruned(len(live), left=len(gone))
    wanted = surplus(len(live) - len(gone), settings.prune_above, settings.prune_to)
    if not gone and not wanted:
        return found
    found.backfill = _backfill(instance)
    if found.backfill is not None:
        return found
    grace = timedelta(seconds=settings.prune_grace_seconds)
    busy = _busy(instance, at - max(grace, timedelta(seconds=_RETRY_SECONDS)))
    count = wanted if dry_run else min(wanted, _RETIRED)
    found.retired = _retire(catalog, at - grace, live, busy, count, dry_run=dry_run)
    if len(found.retired) < count:
        found.over = wanted - len(found.retired)
    if not dry_run:
        gone.update(found.retired)
        for key in sorted(gone - busy)[:_DELETED]:
            instance.delete_dynamic_partition(MEDIA_BATCH, key)
            found.deleted.append(key)
        found.left = len(gone) - len(found.deleted)
    return found


def _note_finished(catalog: Catalog) -> None:
    for _part in range(_NOTES):
        with catalog.write() as conn:
            if retirement.note_finished(conn, _NOTED) < _NOTED:
                return


def _retire(
    catalog: Catalog, before: datetime, live: Collection[str], busy: Collection[str], count: int, *, dry_run: bool
) -> list[str]:
    if not count:
        return []
    with catalog.read() as conn:
        keys = choose(retirement.retirable(conn, before, get_args(Lane)), live, busy, count)
    if dry_run or not keys:
        return keys
    with catalog.write() as conn:
        marked = set(retirement.retire(conn, keys, get_args(Lane)))
    return [key for key in keys if key in marked]


def _busy(instance: dg.DagsterInstance, since: datetime) -> set[str]:
    """Keys with a run that is not over, or that changed since a time: someone may look at it, or Dagster retry it."""
    filters = (dg.RunsFilter(statuses=_NOT_OVER), dg.RunsFilter(updated_after=since))
    records = [record for each in filters for record in instance.get_run_records(each)]
    return {record.dagster_run.tags.get(_PARTITION, "") for record in records}


def _backfill(instance: dg.DagsterInstance) -> str | None:
    """A backfill that is under way."""
    for backfill in instance.get_backfills(limit=_NEWEST_BACKFILLS):
        if backfill.status.value in _BACKFILLING:
            return backfill.backfill_id
    return None
