"""The audit trail: who changed what, and when.

What belongs here: the table that is only appended to, its months on PostgreSQL, and reading it. What does not: what is
recorded of files (`features`) and of runs (Dagster's event log): both say what was done, this says what was ordered.

A row is written in the transaction of the change itself, so that neither is there without the other. On PostgreSQL the
table is partitioned by month; months are created ahead of time, and a row that finds none goes to the default
partition, from which `ensure_months` takes it: nothing is refused because maintenance did not run.
"""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import MONTHS_LOCK, now

MONTHS_AHEAD = 3
_TABLE = "activity"
_DEFAULT = t.activity.to_metadata(sa.MetaData(), name="activity_default")


@dataclass(frozen=True)
class Activity:
    """One change.

    Attributes:
        at: when, by the catalog's clock.
        action: what: `source_added`, `source_changed`, `source_paused` and so on.
        source: the source's name; None for what concerns the library.
        actor: who: `user@host` of a command, or the part of the system that did it by itself.
        detail: the particulars.
    """

    at: datetime
    action: str
    source: str | None
    actor: str
    detail: Mapping[str, Any]


def person() -> str:
    """Who runs this process, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


def note(
    conn: sa.Connection,
    action: str,
    source: str | None = None,
    detail: Mapping[str, Any] | None = None,
    *,
    by: str | None = None,
) -> None:
    """Record a change in the transaction that makes it.

    Args:
        conn: a writing transaction.
        action: what was done.
        source: whose source it was.
        detail: the particulars; no secrets.
        by: who did it; by default the person who runs this process.
    """
    row = {"at": now(conn), "uuid": str(uuid.uuid4()), "action": action, "source": source, "actor": by or person()}
    conn.execute(t.activity.insert().values(**row, detail=dict(detail or {})))


def entries(conn: sa.Connection, source: str | None = None, limit: int = 50) -> list[Activity]:
    """The newest changes first, of one source or of everything."""
    c = t.activity.c
    query = sa.select(c.at, c.action, c.source, c.actor, c.detail).order_by(c.at.desc(), c.uuid.desc()).limit(limit)
    if source is not None:
        query = query.where(c.source == source)
    return [Activity(**row) for row in conn.execute(query).mappings()]


def ensure_months(conn: sa.Connection) -> list[str]:
    """Create the partitions of this month and the next ones, and those of rows that found none.

    Returns:
        Names of the partitions that were created; none on SQLite, which has no partitions.
    """
    if conn.dialect.name != "postgresql":
        return []
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(MONTHS_LOCK)))
    first = _month(now(conn))
    wanted = {_later(first, count) for count in range(MONTHS_AHEAD + 1)}
    strays = conn.execute(sa.select(sa.func.date_trunc("month", _DEFAULT.c.at, "UTC")).distinct()).scalars()
    wanted.update(_month(month) for month in strays)
    there = set(partitions(conn))
    return [_create(conn, month) for month in sorted(wanted) if _name(month) not in there]


def partitions(conn: sa.Connection) -> list[str]:
    """Names of the months' partitions, the oldest first; none on SQLite."""
    if conn.dialect.name != "postgresql":
        return []
    query = """SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
        WHERE inhparent = CAST(:parent AS regclass) AND c.relname <> :other ORDER BY c.relname"""
    return list(conn.execute(sa.text(query), {"parent": _TABLE, "other": _DEFAULT.name}).scalars())


def forget_before(conn: sa.Connection, before: datetime) -> int:
    """Delete what is older: on PostgreSQL whole months at once, and never a month that is not over.

    Returns:
        How many rows went.
    """
    gone = 0
    month = _month(before)
    for name in partitions(conn):
        if name < _name(month):
            table = sa.table(name)
            gone += conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            conn.execute(sa.text(f"DROP TABLE {name}"))  # our own name of a month
    return gone + conn.execute(t.activity.delete().where(t.activity.c.at < month)).rowcount


def _create(conn: sa.Connection, month: datetime) -> str:
    """A partition; rows of its month move there from the default one, which else would forbid it."""
    name, end = _name(month), _later(month, 1)
    conn.execute(sa.text(f"CREATE TABLE {name} (LIKE {_TABLE} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    new = t.activity.to_metadata(sa.MetaData(), name=name)
    mine = (_DEFAULT.c.at >= month, _DEFAULT.c.at < end)
    conn.execute(new.insert().from_select(new.columns.keys(), sa.select(_DEFAULT).where(*mine)))
    conn.execute(_DEFAULT.delete().where(*mine))
    # A partition's bounds are no parameters; these are dates that were made here.
    bounds = f"FOR VALUES FROM ('{month.isoformat()}') TO ('{end.isoformat()}')"
    conn.exec_driver_sql(f"ALTER TABLE {_TABLE} ATTACH PARTITION {name} {bounds}")
    return name


def _name(month: datetime) -> str:
    return f"{_TABLE}_{month:%Y_%m}"


def _month(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _later(month: datetime, count: int) -> datetime:
    months = month.year * 12 + month.month - 1 + count
    return month.replace(year=months // 12, month=months % 12 + 1)
