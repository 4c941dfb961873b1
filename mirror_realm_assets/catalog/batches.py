"""Batches: forming them, what is pending, which runs they had.

What belongs here: rows of `batches`, `batch_lanes`, `batch_runs`. What does not: single items (`items`), and how files
are cut into batches (`forming`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import insert, inserted_id, now
from mirror_realm_assets.catalog.forming import batch_key
from mirror_realm_assets.catalog.sources import Source

# One priority each (run tag `dagster/priority`): people who wait come before bulk work.
PRIORITY = {"request": 20, "workflow": 10, "ingest": 5, "retry": 0, "recompute": -5}
_RUN_BACKOFF_SECONDS = 10
_RUN_BACKOFF_MAX_SECONDS = 900


@dataclass(frozen=True)
class Batch:
    """A formed batch; its list of items never changes."""

    id: int
    key: str
    source_id: int
    kind: str
    priority: int
    request: Mapping[str, Any] | None
    requested_by: str
    deadline: datetime | None
    cancel_requested_at: datetime | None
    items: int
    bytes: int
    estimate_seconds: float
    created_at: datetime


@dataclass(frozen=True)
class NewItem:
    """One file of a batch to be formed: a location not yet identified, or a media."""

    location_id: int | None = None
    media_id: int | None = None
    part: int | None = None
    size: int = 0


@dataclass(frozen=True)
class PendingBatch:
    """A batch with open items in a lane, and the attempt that its next run will carry in its run key."""

    id: int
    key: str
    source: str
    lane: str
    priority: int
    attempt: int
    estimate_seconds: float
    open_items: int
    not_before: datetime | None
    leased: bool


def form(
    conn: sa.Connection,
    source: Source,
    items: Sequence[NewItem],
    features: Sequence[str],
    *,
    kind: str = "ingest",
    seconds: float = 0.0,
    requested_by: str = "watcher",
    request: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
) -> Batch:
    """Form one batch in the caller's write transaction, which also takes its sequence number.

    Args:
        conn: a connection of `Catalog.write`.
        source: whose files these are.
        items: the files, in the order they should be worked on.
        features: wanted features; each file gets one item for each.
        kind: one of `PRIORITY`.
        seconds: estimated work.
        requested_by: who asked.
        request: overrides of the source's policy for this batch.
        deadline: aware UTC, after which its items are no longer worth doing.

    Raises:
        ValueError: for a batch without items or features.
    """
    if not items or not features:
        raise ValueError("a batch needs at least one item and one feature")
    at = now(conn)
    seq = int(
        conn.execute(
            t.sources.update()
            .where(t.sources.c.id == source.id)
            .values(next_seq=t.sources.c.next_seq + 1)
            .returning(t.sources.c.next_seq)
        ).scalar_one()
        - 1
    )
    row = conn.execute(
        t.batches.insert().values(
            key=batch_key(source.name, at, seq),
            source_id=source.id,
            seq=seq,
            kind=kind,
            priority=PRIORITY[kind],
            request=dict(request) if request else None,
            requested_by=requested_by,
            deadline=deadline,
            items=len(items),
            bytes=sum(item.size for item in items),
            estimate_seconds=seconds,
            created_at=at,
        )
    )
    batch_id = inserted_id(row)
    conn.execute(
        t.batch_items.insert(),
        [
            {
                "batch_id": batch_id,
                "n": n,
                "feature": feature,
                "location_id": item.location_id,
                "media_id": item.media_id,
                "part": item.part,
                "state": "waiting",
                "attempt": 0,
                "crashes": 0,
                "priority": PRIORITY[kind],
                "deadline": deadline,
            }
            for n, item in enumerate(items)
            for feature in features
        ],
    )
    return by_id(conn, batch_id)


def get(conn: sa.Connection, key: str) -> Batch | None:
    """The batch with this key, or None."""
    row = conn.execute(sa.select(t.batches).where(t.batches.c.key == key)).mappings().first()
    return _batch(row) if row else None


def by_id(conn: sa.Connection, batch_id: int) -> Batch:
    """The batch with this id."""
    return _batch(conn.execute(sa.select(t.batches).where(t.batches.c.id == batch_id)).mappings().one())


def has_any(conn: sa.Connection, source_id: int) -> bool:
    """Whether the source ever had a batch."""
    return (
        conn.execute(sa.select(t.batches.c.id).where(t.batches.c.source_id == source_id).limit(1)).first() is not None
    )


def has_open(conn: sa.Connection, source_id: int, features: Sequence[str]) -> bool:
    """Whether the source has a batch with open items of these features."""
    found = conn.execute(
        sa.select(t.batch_items.c.id)
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .where(
            t.batches.c.source_id == source_id,
            t.batch_items.c.feature.in_(features),
            t.batch_items.c.settled_at.is_(None),
        )
        .limit(1)
    ).first()
    return found is not None


def pending(
    conn: sa.Connection,
    lane: str,
    features: Sequence[str],
    *,
    after: Sequence[str] = (),
    source_id: int | None = None,
    active_only: bool = True,
) -> list[PendingBatch]:
    """Batches with open items of a lane's features, most urgent first; a pure function of the ledger.

    Args:
        conn: a connection.
        lane: the lane's name.
        features: the lane's features.
        after: features of the lane before: batches that still have open items of these are left out.
        source_id: of one source only.
        active_only: leave out sources that are paused, or whose quiet hours these are.
    """
    items, lanes = t.batch_items, t.batch_lanes
    at = now(conn)
    open_items = (
        sa.select(
            items.c.batch_id,
            sa.func.count().label("open_items"),
            sa.func.min(sa.func.coalesce(items.c.not_before, _LONG_AGO)).label("due"),
        )
        .where(items.c.feature.in_(features), items.c.settled_at.is_(None))
        .group_by(items.c.batch_id)
        .subquery()
    )
    query = (
        sa.select(
            t.batches.c.id,
            t.batches.c.key,
            t.batches.c.priority,
            t.batches.c.estimate_seconds,
            t.sources.c.name.label("source"),
            open_items.c.open_items,
            open_items.c.due,
            sa.func.coalesce(lanes.c.attempt, 0).label("attempt"),
            lanes.c.not_before,
            t.leases.c.until.label("leased_until"),
            t.leases.c.owner.label("leased_by"),
        )
        .join(open_items, open_items.c.batch_id == t.batches.c.id)
        .join(t.sources, t.sources.c.id == t.batches.c.source_id)
        .outerjoin(lanes, sa.and_(lanes.c.batch_id == t.batches.c.id, lanes.c.lane == lane))
        .outerjoin(t.leases, t.leases.c.name == lease_name_sql(lane))
        .where(t.batches.c.retired_at.is_(None))  # it has no open items; should it have any, its key must not return
        .order_by(t.batches.c.priority.desc(), t.batches.c.id)
    )
    if active_only:
        query = query.where(t.sources.c.state == "active")
        quiet = [source.id for source in sources.all_sources(conn) if source.is_quiet(at)]
        if quiet:
            query = query.where(t.batches.c.source_id.not_in(quiet))
    if source_id is not None:
        query = query.where(t.batches.c.source_id == source_id)
    if after:
        earlier = (
            sa.select(items.c.id)
            .where(items.c.batch_id == t.batches.c.id, items.c.feature.in_(after), items.c.settled_at.is_(None))
            .exists()
        )
        query = query.where(~earlier)
    return [_pending(row, lane, at) for row in conn.execute(query).mappings()]


_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def lease_name(key: str, lane: str) -> str:
    """Name of the lease under which one worker runs a lane of a batch."""
    return f"batch/{lane}/{key}"


def lease_name_sql(lane: str) -> sa.ColumnElement[str]:
    """`lease_name` as SQL over `batches.key`."""
    return sa.literal(f"batch/{lane}/") + t.batches.c.key


def bump_attempt(conn: sa.Connection, batch_id: int, lane: str, expected: int, *, failed: bool) -> None:
    """The run of attempt `expected` ended with work left: the next run gets a new run key.

    A failed run backs off twice as long each time, at most 15 minutes. A stale `expected` changes nothing, so that two
    ticks which saw the same run count it once.
    """
    lanes = t.batch_lanes
    where = (lanes.c.batch_id == batch_id, lanes.c.lane == lane)
    first = insert(conn, lanes).values(batch_id=batch_id, lane=lane, attempt=0, failures=0)
    conn.execute(first.on_conflict_do_nothing())
    row = conn.execute(sa.select(lanes).where(*where).with_for_update()).mappings().one()
    if row["attempt"] != expected:
        return
    failures = row["failures"] + 1 if failed else 0
    wait = min(_RUN_BACKOFF_SECONDS * 2 ** (failures - 1), _RUN_BACKOFF_MAX_SECONDS) if failed else 0
    not_before = now(conn) + timedelta(seconds=wait) if wait else None
    conn.execute(lanes.update().where(*where).values(attempt=expected + 1, failures=failures, not_before=not_before))


def note_run(conn: sa.Connection, batch_id: int, lane: str, run_id: str) -> None:
    """Remember that a Dagster run works on the batch."""
    runs = t.batch_runs
    new = insert(conn, runs).values(batch_id=batch_id, lane=lane, run_id=run_id, started_at=now(conn))
    conn.execute(new.on_conflict_do_nothing())


def request_cancel(conn: sa.Connection, batch_id: int) -> None:
    """Ask the workers of a batch to stop at the next item.

    What no worker has begun is settled at once; a running item is settled by its worker, or, should that be dead, by
    the next run of the batch.
    """
    at = now(conn)
    conn.execute(t.batches.update().where(t.batches.c.id == batch_id).values(cancel_requested_at=at))
    items = t.batch_items
    open_items = (items.c.batch_id == batch_id, items.c.settled_at.is_(None))
    lock_items(conn, *open_items)
    settled = {"state": "settled", "outcome": "cancelled", "code": "cancelled", "settled_at": at}
    conn.execute(
        items.update().where(*open_items, items.c.state == "waiting").values(cancel_requested_at=at, **settled)
    )
    conn.execute(items.update().where(*open_items).values(cancel_requested_at=at))


def lock_items(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> list[int]:
    """Lock items until commit, always in the same order, so that two who change many cannot deadlock; their ids."""
    ids = sa.select(t.batch_items.c.id).where(*where).order_by(t.batch_items.c.id).with_for_update()
    return list(conn.execute(ids).scalars())


def _pending(row: sa.RowMapping, lane: str, at: datetime) -> PendingBatch:
    due = row["due"]
    if isinstance(due, str):  # SQLite gives aggregates of times back as text
        due = datetime.fromisoformat(due)
    if due is not None and due.tzinfo is None:
        due = due.replace(tzinfo=at.tzinfo)
    times = [time for time in (row["not_before"], due) if time is not None and time > at]
    return PendingBatch(
        id=row["id"],
        key=row["key"],
        source=row["source"],
        lane=lane,
        priority=row["priority"],
        attempt=row["attempt"],
        estimate_seconds=row["estimate_seconds"],
        open_items=row["open_items"],
        not_before=max(times) if times else None,
        leased=bool(row["leased_by"]) and row["leased_until"] > at,
    )


def _batch(row: sa.RowMapping) -> Batch:
    return Batch(**{name: row[name] for name in Batch.__dataclass_fields__})
