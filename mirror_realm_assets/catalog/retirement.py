"""Finished batches whose partition key may go, and the mark of those whose key went.

What belongs here: `batches.finished_at` and `batches.retired_at`. What does not: Dagster's set of keys and its runs
(`pruning`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import lease_name_sql
from mirror_realm_assets.catalog.engine import now

_KEYS = 500  # in one statement


def note_finished(conn: sa.Connection, limit: int) -> int:
    """Write down when batches ended that have no open item any more; returns how many it wrote, at most `limit`.

    Here and not where an item is settled: that is done for every file, this once for a batch. An item that is settled
    stays so, hence a batch that ended does too.
    """
    b, items = t.batches.c, t.batch_items.c
    ended = (
        sa.select(b.id)
        .where(b.retired_at.is_(None), b.finished_at.is_(None), b.id.not_in(_unfinished()))
        .order_by(b.id)
        .limit(limit)
    )
    last = sa.select(sa.func.max(items.settled_at)).where(items.batch_id == b.id).scalar_subquery()
    ids = list(conn.execute(ended).scalars())
    if ids:
        conn.execute(t.batches.update().where(b.id.in_(ids)).values(finished_at=last))
    return len(ids)


def retirable(conn: sa.Connection, before: datetime, lanes: Sequence[str]) -> list[str]:
    """Keys of batches that ended before a time and that no worker holds in any lane, the longest ended first."""
    b = t.batches.c
    query = sa.select(b.key).where(b.finished_at < before, *_may_go(lanes, now(conn)))
    return list(conn.execute(query.order_by(b.finished_at, b.id)).scalars())


def retire(conn: sa.Connection, keys: Sequence[str], lanes: Sequence[str]) -> list[str]:
    """Mark the batches with these keys as retired; returns the keys of those that still might be."""
    b = t.batches.c
    marked: list[str] = []
    at = now(conn)
    for part in _parts(keys):
        marks = t.batches.update().where(b.key.in_(part), *_may_go(lanes, at)).values(retired_at=at)
        marked += conn.execute(marks.returning(b.key)).scalars()
    return marked


def retired_among(conn: sa.Connection, keys: Collection[str]) -> set[str]:
    """Those of the keys whose batch is retired; what the ledger does not know is no batch of ours."""
    b = t.batches.c
    here = set(conn.execute(sa.select(b.key).where(b.retired_at.is_(None))).scalars())
    rest = [key for key in keys if key not in here]
    retired: set[str] = set()
    for part in _parts(rest):
        retired.update(conn.execute(sa.select(b.key).where(b.key.in_(part), b.retired_at.is_not(None))).scalars())
    return retired


def _unfinished() -> sa.Select[tuple[int]]:
    # All at once from the index of open items: batch by batch it would read every settled item before the first open
    # one, which in a library that waits for enhancement are millions.
    return sa.select(t.batch_items.c.batch_id).where(t.batch_items.c.settled_at.is_(None))


def _may_go(lanes: Sequence[str], at: datetime) -> list[sa.ColumnElement[bool]]:
    b, held = t.batches.c, t.leases.c
    names = [lease_name_sql(lane) for lane in lanes]
    lease = sa.select(held.name).where(held.name.in_(names), held.owner.is_not(None), held.until > at).exists()
    return [b.retired_at.is_(None), b.finished_at.is_not(None), b.id.not_in(_unfinished()), ~lease]


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[n : n + _KEYS] for n in range(0, len(keys), _KEYS)]
