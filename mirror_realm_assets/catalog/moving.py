"""A whole catalog from one database into another: every row, the same identity, compared row by row at the end.

What belongs here: copying and comparing tables. What does not: deciding that nobody works on the catalog meanwhile (the
command), and Dagster's own runs and events. The old database is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.errors import SetupError

# Who works at the moment: nobody does.
_OF_THE_MOMENT = frozenset({"leases", "workers"})
# A new catalog has a row in each of these, and takes over the old one's instead.
_BEGINNINGS = ("catalog_info", "users", "projects")
_PAGE = 2000

Progress = Callable[[str, int, int], None]
"""Told of a table, the rows of it that are there, and how many it has."""


def move(source: Catalog, target: Catalog, on_progress: Progress = lambda _table, _done, _of: None) -> dict[str, int]:
    """Copy a catalog into an empty database, which then is that catalog: its store and its sources are the same.

    Nothing is kept of an attempt that fails: all is one transaction of the target. The source can be written by nobody
    meanwhile where it is SQLite.

    Args:
        source: the old one.
        target: a database that is empty, or holds a catalog without sources.
        on_progress: called after every page.

    Returns:
        Rows by table.

    Raises:
        SetupError: `already_exists` when the target holds a library; `catalog_failed` when what arrived differs.
    """
    source.require_current()
    target.migrate()
    with source.write() as old, target.write() as new:
        _require_empty(new, target)
        for name in _BEGINNINGS:
            new.execute(t.metadata.tables[name].delete())
        counts = {}
        for table in _tables():
            counts[table.name] = _copy(old, new, table, on_progress)
        _go_on_counting(new)
        for table in _tables():
            _compare(old, new, table)
    return counts


def _tables() -> list[sa.Table]:
    """In an order in which every row finds what it refers to."""
    return [table for table in t.metadata.sorted_tables if table.name not in _OF_THE_MOMENT]


def _require_empty(new: sa.Connection, target: Catalog) -> None:
    for table in _tables():
        if table.name not in _BEGINNINGS and new.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise SetupError(
                "already_exists",
                f"The database {target.url.render_as_string()} is not empty: its table {table.name} has rows.",
                remedy="Name an empty database.",
            )


def _copy(old: sa.Connection, new: sa.Connection, table: sa.Table, on_progress: Progress) -> int:
    count = old.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    done = 0
    for page in _pages(old, table):
        new.execute(table.insert(), [dict(row) for row in page])
        done += len(page)
        on_progress(table.name, done, count)
    return done


def _pages(conn: sa.Connection, table: sa.Table) -> Iterator[list[Mapping[str, Any]]]:
    """All rows in the order of their keys."""
    keys = list(table.primary_key.columns)
    query = sa.select(table).order_by(*keys).limit(_PAGE)
    after: tuple[Any, ...] | None = None
    while True:
        beyond = query if after is None else query.where(sa.tuple_(*keys) > sa.tuple_(*after))
        page: list[Mapping[str, Any]] = [dict(row) for row in conn.execute(beyond).mappings()]
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = tuple(page[-1][key.name] for key in keys)


def _go_on_counting(new: sa.Connection) -> None:
    """PostgreSQL's counters know nothing of the numbers that came with the rows; SQLite's count from the largest."""
    if new.dialect.name != "postgresql":
        return
    for table in _tables():
        for column in table.primary_key.columns:
            if not isinstance(column.type, sa.Integer) or len(table.primary_key.columns) > 1:
                continue
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            last = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
            new.execute(sa.select(sa.func.setval(sequence, last, False)))


def _compare(old: sa.Connection, new: sa.Connection, table: sa.Table) -> None:
    """Every row, as we read it, on both sides."""
    here = (row for page in _pages(old, table) for row in page)
    there = (row for page in _pages(new, table) for row in page)
    for one, other in zip_longest(here, there):
        if one != other:
            raise SetupError(
                "catalog_failed",
                f"A row of the table {table.name} did not arrive as it was; nothing was kept.",
                remedy="Report it, with the versions of both databases; the old catalog is as it was.",
            )
