"""Leases: who may do what right now, with fencing tokens.

A lease has an owner (a worker's id), an end by the catalog's clock, and a token that grows with every change of owner.
A writer passes its token back in the transaction that writes; an old token is refused there, so that a worker which was
stopped and continued after its lease ran out cannot overwrite its successor's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import insert, now
from mirror_realm_assets.errors import LeaseLost


@dataclass(frozen=True)
class Lease:
    """A lease that was held when it was taken: its name, owner and token."""

    name: str
    owner: str
    token: int


def acquire(conn: sa.Connection, name: str, owner: str, seconds: float) -> Lease | None:
    """Take `name` for `owner`, or return None while another live owner has it.

    Taking again what one holds renews it and keeps the token.
    """
    row = conn.execute(sa.select(t.leases).where(t.leases.c.name == name).with_for_update()).mappings().first()
    at = now(conn)  # after waiting for the row
    until = at + timedelta(seconds=seconds)
    if row is None:
        # Two first takers on PostgreSQL: the loser's insert does nothing and it sees None.
        first = insert(conn, t.leases).values(name=name, owner=owner, token=1, until=until).on_conflict_do_nothing()
        return Lease(name, owner, 1) if conn.execute(first).rowcount == 1 else None
    mine = row["owner"] == owner
    if row["owner"] and not mine and row["until"] > at:
        return None
    token = int(row["token"]) + (0 if mine and row["until"] > at else 1)
    conn.execute(t.leases.update().where(t.leases.c.name == name).values(owner=owner, token=token, until=until))
    return Lease(name, owner, token)


def renew(conn: sa.Connection, lease: Lease, seconds: float) -> bool:
    """Prolong a lease; False when it is another's or ran out."""
    at = now(conn)
    renewed = conn.execute(
        t.leases.update().where(_is(lease), t.leases.c.until > at).values(until=at + timedelta(seconds=seconds))
    )
    return renewed.rowcount == 1


def check(conn: sa.Connection, lease: Lease) -> None:
    """Make sure, inside the transaction that writes, that the lease is still ours, and that it stays so until commit.

    The lock on its row is shared: threads of one worker record side by side, only who takes or gives up a lease waits.

    Raises:
        LeaseLost: when it ran out or another took it.
    """
    held = conn.execute(
        sa.select(t.leases.c.name).where(_is(lease), t.leases.c.until > now(conn)).with_for_update(read=True)
    ).first()
    if held is None:
        raise LeaseLost(f"The lease {lease.name} was lost to another worker.")


def release(conn: sa.Connection, lease: Lease) -> None:
    """Give a lease back; nothing happens when it was lost."""
    conn.execute(t.leases.update().where(_is(lease)).values(owner=None, until=None))


def release_of(conn: sa.Connection, owner: str) -> int:
    """Free everything a dead owner held; returns how many leases."""
    freed = conn.execute(t.leases.update().where(t.leases.c.owner == owner).values(owner=None, until=None))
    return freed.rowcount


def holder(conn: sa.Connection, name: str) -> str | None:
    """The live owner of `name`, or None."""
    owner = conn.execute(
        sa.select(t.leases.c.owner).where(t.leases.c.name == name, t.leases.c.until > now(conn))
    ).scalar_one_or_none()
    return str(owner) if owner else None


def _is(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(t.leases.c.name == lease.name, t.leases.c.owner == lease.owner, t.leases.c.token == lease.token)
