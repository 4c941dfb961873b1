"""Opening the catalog: engine, transactions, the clock, migrations.

What belongs here: how a connection is made and how a transaction begins. What does not: any query about our data.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.errors import SetupError

_BUSY_SECONDS = 60.0  # a bulk drain holds SQLite's only write lock for seconds; waiting is right, failing is not
# A worker that is stopped or cut off within a transaction holds what it has locked until the server ends the session.
# Reading may think for long between two statements, so it is not less.
_IDLE_SECONDS = 300.0
_UNDEFINED_TABLE = "42P01"  # PostgreSQL's code
_CHUNK = 400  # SQLite once allowed 999 variables in a statement
# Advisory locks of PostgreSQL: numbers that nothing else on the database may use.
_MIGRATION_LOCK = 7266301
_PLACES_LOCK = 7266302
MONTHS_LOCK = 7266303

T = TypeVar("T")

HEAD = "0008"
"""The newest revision of the schema; asking Alembic would cost every command a fifth of a second."""


class Catalog:
    """The ledger's database, on SQLite or PostgreSQL.

    Args:
        url: an SQLAlchemy URL; a PostgreSQL one names its driver (`postgresql+psycopg2://`).
        idle_seconds: after so long between two statements of a transaction, PostgreSQL rolls it back and ends its
            connection.
    """

    def __init__(self, url: str, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self.url = sa.make_url(url)
        if self.url.drivername in ("postgresql", "postgres"):
            # SQLAlchemy 2.1 would take psycopg 3 here, which is not what dagster-postgres brings.
            self.url = self.url.set(drivername="postgresql+psycopg2")
        options: dict[str, Any]
        if self.is_sqlite:
            options = {"connect_args": {"timeout": _BUSY_SECONDS}}
        else:
            # The mode sends many updates in one round trip: a drain changes thousands of rows.
            options = {"pool_pre_ping": True, "executemany_mode": "values_plus_batch"}
        self.engine = sa.create_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "connect", partial(_prepare_postgresql, idle_seconds))

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction for reading; it must stay short."""
        with self.engine.connect() as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction for writing.

        On SQLite it begins IMMEDIATE: pysqlite would begin at the first write, so that two writers could both decide
        on the same rows before either writes.
        """
        with self.engine.connect() as conn:
            conn = conn.execution_options(immediate=True)
            with conn.begin():
                yield conn

    def migrate(self) -> None:
        """Bring the schema to the newest revision; safe to repeat and to run twice at once."""
        from alembic import command

        from mirror_realm_assets.catalog import activity

        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        config = alembic_config()
        with self._migrating() as conn:
            if not self.is_sqlite:
                # One migration at a time; the lock goes with the transaction.
                conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
            if conn.execute(sa.select(t.catalog_info.c.id)).first() is None:
                conn.execute(t.catalog_info.insert().values(uuid=str(uuid.uuid4())))
                for table in (t.projects, t.users):
                    conn.execute(table.insert().values(uuid=str(uuid.uuid4()), name="default", created_at=now(conn)))
            activity.ensure_months(conn)

    @contextmanager
    def _migrating(self) -> Iterator[sa.Connection]:
        """A transaction in which a table may be made anew under its name, which is how SQLite alters most things.

        Raises:
            SetupError: `catalog_failed` when a row would name one that is not there; nothing is changed then.
        """
        if not self.is_sqlite:
            with self.write() as conn:
                yield conn
            return
        with self.engine.connect() as conn:
            driver: Any = conn.connection.driver_connection
            # Else dropping the old table counts as deleting its rows, which others name. No effect in a transaction.
            driver.execute("PRAGMA foreign_keys=OFF")
            try:
                conn = conn.execution_options(immediate=True)
                with conn.begin():
                    version = sa.text("SELECT version_num FROM alembic_version")
                    before = conn.execute(version).scalar() if sa.inspect(conn).has_table("alembic_version") else None
                    yield conn
                    broken = None
                    if before not in (None, HEAD):  # it reads every row
                        broken = conn.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise SetupError(
                            "catalog_failed",
                            f"A row of {broken[0]} names one of {broken[2]} that is not there; nothing was changed.",
                            remedy="Restore the catalog from a backup, then run `mirror-realm init` again.",
                        )
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    def uuid(self) -> str:
        """Identity of this catalog.

        Raises:
            SetupError: `not_initialised` when the schema is not there, `catalog_failed` when no database answers.
        """
        try:
            with self.read() as conn:
                found = conn.execute(sa.select(t.catalog_info.c.uuid)).scalar_one_or_none()
        except sa.exc.DBAPIError as error:
            if not self._is_missing(error):
                place = self.url.render_as_string()
                raise SetupError("catalog_failed", f"The catalog at {place} does not answer: {error.orig}.") from error
            found = None
        if found is None:
            raise SetupError("not_initialised", f"There is no catalog at {self.url.render_as_string()}.")
        return str(found)

    def require_current(self) -> None:
        """Make sure that the schema is the one that this version works with.

        Raises:
            SetupError: `not_initialised` for an older one, which `mirror-realm init` brings up to date;
                `catalog_failed` for one of a newer version.
        """
        with self.read() as conn:
            found = conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
        if found == HEAD:
            return
        where = self.url.render_as_string()
        if found is None or found < HEAD:
            raise SetupError("not_initialised", f"The catalog at {where} is of an older version.")
        raise SetupError(
            "catalog_failed",
            f"The catalog at {where} was made by a newer version.",
            remedy="Install the newer Mirror Realm that made it.",
        )

    def _is_missing(self, error: sa.exc.DBAPIError) -> bool:
        if self.is_sqlite:
            return str(error.orig).startswith(("no such table", "unable to open database file"))
        return getattr(error.orig, "pgcode", None) == _UNDEFINED_TABLE

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def now(conn: sa.Connection) -> datetime:
    """The time by the catalog's clock: on PostgreSQL the server's, so that wrong clocks agree on leases."""
    if conn.dialect.name == "postgresql":
        value = conn.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        assert isinstance(value, datetime)  # noqa: S101 - narrows the driver's Any
        return value.astimezone(UTC)
    return datetime.now(UTC)


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Pieces of a list that fit below SQLite's limit of bound variables."""
    yield from (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def inserted_id(result: sa.CursorResult[Any]) -> int:
    """The id that a single insert was given."""
    key = result.inserted_primary_key
    if key is None:
        raise ValueError("this statement inserted no single row")
    return int(key[0])


def insert(conn: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT: two writers of one new key on PostgreSQL do not see each other's row."""
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)


def serialise_places(conn: sa.Connection) -> None:
    """Wait, until commit, for whoever else changes locations or finds out what their bytes are.

    SQLite has one writer anyway. On PostgreSQL two such transactions would not see each other's new contents and media,
    and would lock the same rows in different orders. They take milliseconds, so one after the other costs little.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_PLACES_LOCK)))


def alembic_config() -> Any:
    """Alembic's configuration, without a file: the migrations are part of the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _prepare_postgresql(idle_seconds: float, connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        # Not by the option `options` of libpq, which connection poolers refuse.
        cursor.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [str(int(1000 * idle_seconds))]
        )
    connection.commit()


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    cursor = connection.cursor()
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Keeps readers from blocking the writer; SQLite waits for every lock but the one of the very first switch."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _begin_sqlite(conn: sa.Connection) -> None:
    immediate = conn.get_execution_options().get("immediate", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
