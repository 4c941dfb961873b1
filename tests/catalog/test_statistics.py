"""PostgreSQL knows how large our tables are while they grow, and SQLite is left alone."""

from __future__ import annotations

import time

import sqlalchemy as sa

from mirror_realm_assets.catalog import statistics
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now


def add_objects(catalog: Catalog, first: int, count: int) -> None:
    with catalog.write() as conn:
        rows = [
            {"key": f"k{n}", "kind": "shard", "sha256": "0" * 64, "bytes": 1, "created_at": now(conn)}
            for n in range(first, first + count)
        ]
        conn.execute(t.objects.insert(), rows)
        conn.execute(sa.text("SELECT pg_stat_force_next_flush()"))


def refreshed(catalog: Catalog) -> list[str]:
    """As `refresh`; the server tells of changes a moment after they were made."""
    end = time.monotonic() + 5
    while not (found := statistics.refresh(catalog)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def planned_rows(catalog: Catalog) -> float:
    with catalog.read() as conn:
        query = sa.text("SELECT reltuples FROM pg_class WHERE relname = 'objects'")
        return float(conn.execute(query).scalar_one())


def test_a_table_that_grew_is_looked_at_once(own_postgres: Catalog) -> None:
    add_objects(own_postgres, 0, 3000)
    assert planned_rows(own_postgres) <= 0
    assert refreshed(own_postgres) == ["objects"]
    assert planned_rows(own_postgres) == 3000
    time.sleep(1.1)
    assert statistics.refresh(own_postgres) == []
    add_objects(own_postgres, 3000, 500)  # a sixth: the next time
    time.sleep(1.1)
    assert statistics.refresh(own_postgres) == []
    add_objects(own_postgres, 3500, 3000)
    assert refreshed(own_postgres) == ["objects"]


def test_sqlite_plans_without(catalog: Catalog) -> None:
    if catalog.is_sqlite:
        assert statistics.refresh(catalog) == []
