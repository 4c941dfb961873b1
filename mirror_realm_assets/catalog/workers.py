"""Workers: the processes that do work, their heartbeats, and what is freed when one is gone.

What belongs here: rows about processes. What does not: finding out whether a process lives (`liveness`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from mirror_realm_assets.catalog import leases
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.liveness import ProcessIdentity, is_alive

_FORGIVEN_ATTEMPTS = 4


@dataclass(frozen=True)
class WorkerRow:
    """A process as the ledger knows it; `run_id` is the Dagster run it works for, if any."""

    id: str
    kind: str
    run_id: str | None
    process: ProcessIdentity
    heartbeat_at: datetime
    doing: str | None


def register(conn: sa.Connection, kind: str, process: ProcessIdentity, run_id: str | None = None) -> str:
    """A new worker; returns its id."""
    worker_id = str(uuid.uuid4())
    at = now(conn)
    conn.execute(
        t.workers.insert().values(
            id=worker_id,
            kind=kind,
            run_id=run_id,
            host=process.host,
            boot_id=process.boot_id,
            pid=process.pid,
            started=process.started,
            started_at=at,
            heartbeat_at=at,
        )
    )
    return worker_id


def beat(conn: sa.Connection, worker_id: str, lease_seconds: float, doing: str | None = None) -> None:
    """A sign of life: prolongs the worker's live leases and its running items."""
    at = now(conn)
    until = at + timedelta(seconds=lease_seconds)
    conn.execute(t.workers.update().where(t.workers.c.id == worker_id).values(heartbeat_at=at, doing=doing))
    conn.execute(t.leases.update().where(t.leases.c.owner == worker_id, t.leases.c.until > at).values(until=until))
    # An item that the worker itself is just changing is skipped: waiting for it could be a deadlock on PostgreSQL.
    items = t.batch_items
    running = sa.select(items.c.id).where(items.c.worker_id == worker_id, items.c.state == "running")
    conn.execute(
        items.update().where(items.c.id.in_(running.with_for_update(skip_locked=True))).values(lease_until=until)
    )


def end(conn: sa.Connection, worker_id: str) -> None:
    """The worker ends in good order: its leases are free at once."""
    conn.execute(t.workers.update().where(t.workers.c.id == worker_id).values(ended_at=now(conn)))
    leases.release_of(conn, worker_id)


def open_workers(conn: sa.Connection, run_ids: Sequence[str] | None = None) -> list[WorkerRow]:
    """Workers that have not ended in good order, all or those of the given runs."""
    query = sa.select(t.workers).where(t.workers.c.ended_at.is_(None))
    if run_ids is not None:
        query = query.where(t.workers.c.run_id.in_(run_ids))
    return [_row(row) for row in conn.execute(query).mappings()]


def of_runs(conn: sa.Connection, run_ids: Sequence[str]) -> list[WorkerRow]:
    """Every worker that ever worked for the given runs."""
    return [_row(row) for row in conn.execute(sa.select(t.workers).where(t.workers.c.run_id.in_(run_ids))).mappings()]


def by_ids(conn: sa.Connection, ids: Sequence[str]) -> dict[str, WorkerRow]:
    """The known workers among these ids."""
    rows = conn.execute(sa.select(t.workers).where(t.workers.c.id.in_(ids))).mappings()
    return {row["id"]: _row(row) for row in rows}


def ended_before(conn: sa.Connection, before: datetime) -> int:
    """How many workers ended before a time and are named by nothing any more."""
    return conn.execute(sa.select(sa.func.count()).select_from(t.workers).where(*_forgettable(before))).scalar_one()


def forget(conn: sa.Connection, before: datetime) -> int:
    """Delete the rows that `ended_before` counts; returns how many there were."""
    return conn.execute(t.workers.delete().where(*_forgettable(before))).rowcount


def _forgettable(before: datetime) -> list[sa.ColumnElement[bool]]:
    names = (t.batch_items.c.worker_id, t.leases.c.owner, t.intents.c.worker_id)
    named = [t.workers.c.id.not_in(sa.select(name).where(name.is_not(None))) for name in names]
    return [t.workers.c.ended_at < before, *named]


def bury_the_dead(catalog: Catalog, *, forgive: bool = False) -> list[WorkerRow]:
    """End the workers of this host whose process is provably gone, and free what they held.

    Their running items stay marked: whoever takes the batch next sees them and counts a crash.

    Args:
        catalog: the ledger.
        forgive: everything died together (a power cut, a killed supervisor), which says nothing about the pictures that
            were worked on: their items wait again without a crash. After some tries it does count, because a picture
            can also take the whole machine along.
    """
    with catalog.read() as conn:
        dead = [worker for worker in open_workers(conn) if is_alive(worker.process) is False]
    if dead:
        with catalog.write() as conn:
            for worker in dead:
                if forgive:
                    _forgive(conn, worker.id)
                end(conn, worker.id)
    return dead


def _forgive(conn: sa.Connection, worker_id: str) -> None:
    items = t.batch_items
    conn.execute(
        items.update()
        .where(items.c.worker_id == worker_id, items.c.state == "running", items.c.attempt < _FORGIVEN_ATTEMPTS)
        .values(state="waiting", worker_id=None, lease_until=None)
    )


def _row(row: sa.RowMapping) -> WorkerRow:
    process = ProcessIdentity(
        host=row["host"], boot_id=row["boot_id"], pid=int(row["pid"]), started=int(row["started"])
    )
    return WorkerRow(row["id"], row["kind"], row["run_id"], process, row["heartbeat_at"], row["doing"])
