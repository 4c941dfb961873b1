"""Reading and writing many rows through the database driver's own cursor.

What belongs here: the only two functions that do so, for what is done for each of millions of files, where
SQLAlchemy's rows and parameters would take most of the time. What does not: any query (`known`, `files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa


def fetch(conn: sa.Connection, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All rows of a query, as the driver gives them: `bytea` as bytes, times as the database keeps them.

    Args:
        conn: in a transaction.
        statement: with `{0}` for each parameter.
        parameters: as the driver takes them.
    """
    cursor = conn.connection.cursor()
    try:
        cursor.execute(statement.format(_mark(conn)), tuple(parameters))
        rows = list(cursor.fetchall())
    finally:
        cursor.close()
    if conn.dialect.name != "sqlite":  # bytea comes as a memoryview
        rows = [tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in rows]
    return rows


def insert(
    conn: sa.Connection, table: sa.Table, same: dict[str, Any], columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Append rows.

    Args:
        conn: in a transaction.
        table: whose columns have no defaults of Python's that matter here.
        same: values that all rows share, by column, as SQLAlchemy takes them.
        columns: names of the others: numbers, texts and bytes, which every driver takes as they are.
        rows: their values, in that order.
    """
    shared = tuple(_as_bound(conn, table.c[name], value) for name, value in same.items())
    names = ", ".join((*same, *columns))
    every = (shared + tuple(row) for row in rows)
    cursor = conn.connection.cursor()
    try:
        if conn.dialect.name == "sqlite":
            marks = ", ".join("?" * (len(same) + len(columns)))
            cursor.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(every))  # noqa: S608 - our names
        else:
            from psycopg2.extras import execute_values

            execute_values(cursor, f"INSERT INTO {table.name} ({names}) VALUES %s", every, page_size=1000)  # noqa: S608
    finally:
        cursor.close()


def _mark(conn: sa.Connection) -> str:
    return "?" if conn.dialect.name == "sqlite" else "%s"


def _as_bound(conn: sa.Connection, column: sa.Column[Any], value: Any) -> Any:
    processor = column.type.dialect_impl(conn.dialect).bind_processor(conn.dialect)
    return value if processor is None else processor(value)
