"""Intents and objects: which keys of the store are named by the ledger.

An intent is written before the first byte and ended, in one transaction, with the row that names the object. What lies
between is never collected; an intent whose worker died stays until garbage collection retires it by age.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, insert, inserted_id, now

_CHUNK = 500  # stays below SQLite's limit of bound variables


def begin(conn: sa.Connection, keys: Sequence[str], worker_id: str | None = None) -> list[int]:
    """Announce that `keys` are about to be written; returns the intents' ids."""
    at = now(conn)
    ids: list[int] = []
    for key in keys:
        row = conn.execute(t.intents.insert().values(key=key, worker_id=worker_id, created_at=at))
        ids.append(inserted_id(row))
    return ids


def end(conn: sa.Connection, ids: Iterable[int]) -> None:
    """End intents; called in the transaction that records what the objects belong to, or after giving up."""
    ids = list(ids)
    for start in range(0, len(ids), _CHUNK):
        conn.execute(t.intents.delete().where(t.intents.c.id.in_(ids[start : start + _CHUNK])))


def name_object(conn: sa.Connection, key: str, kind: str, sha256: str, size: int) -> None:
    """Record that `key` is in use; naming it again replaces digest and size."""
    name_objects(conn, [(key, kind, sha256, size)])


def name_objects(conn: sa.Connection, found: Sequence[tuple[str, str, str, int]]) -> None:
    """Record that objects are in use: key, kind, sha256 and bytes of each; the last of a key counts."""
    at = now(conn)
    rows = {
        key: {"key": key, "kind": kind, "sha256": sha, "bytes": size, "created_at": at}
        for key, kind, sha, size in found
    }
    if not rows:
        return
    new = insert(conn, t.objects)
    changed = {name: new.excluded[name] for name in ("kind", "sha256", "bytes")}
    # In the order of their keys: two writers of the same objects must not wait for each other.
    conn.execute(new.on_conflict_do_update(index_elements=["key"], set_=changed), [rows[key] for key in sorted(rows)])


def forget_objects(conn: sa.Connection, keys: Iterable[str]) -> None:
    """Nothing names `keys` any more: the next garbage collection may take them."""
    keys = list(keys)
    for start in range(0, len(keys), _CHUNK):
        conn.execute(t.objects.delete().where(t.objects.c.key.in_(keys[start : start + _CHUNK])))


def recorded(conn: sa.Connection, key: str) -> tuple[str, int] | None:
    """sha256 and size of the object that a row names under this key."""
    row = conn.execute(sa.select(t.objects.c.sha256, t.objects.c.bytes).where(t.objects.c.key == key)).first()
    return None if row is None else (row[0], row[1])


def named_keys(catalog: Catalog, keys: Sequence[str]) -> set[str]:
    """Those of `keys` that a row or a live intent names."""
    named: set[str] = set()
    with catalog.read() as conn:
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            # Intents first: one that ends between the two queries is seen as an object by the second.
            for column in (t.intents.c.key, t.objects.c.key):
                named.update(conn.execute(sa.select(column).where(column.in_(chunk))).scalars())
    return named


def retire(catalog: Catalog, age: timedelta) -> int:
    """End intents older than `age` (their worker died in mid-write); returns how many."""
    with catalog.write() as conn:
        return conn.execute(t.intents.delete().where(t.intents.c.created_at < now(conn) - age)).rowcount
