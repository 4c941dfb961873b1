"""Dagster's storage in PostgreSQL over connections that are kept.

What belongs here: how Dagster's own storages reach their database. What does not: what they keep there, and the
catalog, whose connections are its own (`catalog.engine`).

dagster-postgres opens a connection for every statement and closes it again. An idle daemon with our sensors does so 32
times a second, and each costs the server a process: 0.38 of a core, measured on a machine of two, whether there is
work or not. Every connection is tried before it is used again, so that a server that was started anew costs time only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import (
    create_pg_connection,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
    set_pg_statement_timeout,
)

_KEPT = 3  # connections of a process; more are opened when more threads ask at once, and closed after use
# What lies between us and the server may forget a silent connection without a word; one is never silent for so long.
_KEPT_SECONDS = 60


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage`, with the same settings, over a pool of connections.

    To be named in `dagster.yaml` as `storage: custom`.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: Any = None,
        token_provider: Any = None,
    ) -> None:
        """See `DagsterPostgresStorage`."""
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)  # makes the tables
        pool = _Pool(postgres_url, token_provider)
        self._runs = _Runs(pool, postgres_url, token_provider)
        self._events = _Events(pool, postgres_url, token_provider)
        self._schedules = _Schedules(pool, postgres_url, token_provider)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> PooledPostgresStorage:
        """Implements `ConfigurableClass`."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )

    @property
    def run_storage(self) -> PostgresRunStorage:
        """Implements `DagsterStorage`."""
        return self._runs

    @property
    def event_log_storage(self) -> PostgresEventLogStorage:
        """Implements `DagsterStorage`."""
        return self._events

    @property
    def schedule_storage(self) -> PostgresScheduleStorage:
        """Implements `DagsterStorage`."""
        return self._schedules


class _Pool:
    """The connections of one process, which its three storages share."""

    def __init__(self, url: str, token_provider: Any) -> None:
        # Without an upper limit, as without a pool: whoever waited for another thread's connection could wait for ever.
        self._engine = create_pg_engine(
            url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=_KEPT,
            max_overflow=-1,
            pool_pre_ping=True,
            pool_recycle=_KEPT_SECONDS,
            pool_use_lifo=True,
        )
        self._has_limit = False

    def connect(self) -> AbstractContextManager[sa.Connection]:
        return create_pg_connection(self._engine)

    def limit_statements(self, milliseconds: int) -> None:
        """For the webserver, where somebody may ask for too much; each of the storages passes it on."""
        if not self._has_limit:
            self._has_limit = True
            sa.event.listen(
                self._engine, "connect", lambda connection, _: set_pg_statement_timeout(connection, milliseconds)
            )

    def close(self) -> None:
        self._engine.dispose()


class _Runs(PostgresRunStorage):
    def __init__(self, pool: _Pool, url: str, token_provider: Any) -> None:
        super().__init__(url, should_autocreate_tables=False, token_provider=token_provider)
        self._pool = pool

    def connect(self) -> AbstractContextManager[sa.Connection]:
        return self._pool.connect()

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        self._pool.limit_statements(statement_timeout)

    def dispose(self) -> None:
        self._pool.close()
        super().dispose()


class _Events(PostgresEventLogStorage):
    def __init__(self, pool: _Pool, url: str, token_provider: Any) -> None:
        super().__init__(url, should_autocreate_tables=False, token_provider=token_provider)
        self._pool = pool
        self._tables: set[str] = set()

    def run_connection(self, run_id: str | None = None) -> AbstractContextManager[sa.Connection]:
        return self._pool.connect()

    def index_connection(self) -> AbstractContextManager[sa.Connection]:
        return self._pool.connect()

    def has_table(self, table_name: str) -> bool:
        # Once there, a table stays; asked for every event otherwise.
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        self._pool.limit_statements(statement_timeout)

    def dispose(self) -> None:
        super().dispose()
        self._pool.close()


class _Schedules(PostgresScheduleStorage):
    def __init__(self, pool: _Pool, url: str, token_provider: Any) -> None:
        super().__init__(url, should_autocreate_tables=False, token_provider=token_provider)
        self._pool = pool
        self._has_instigators = False

    def connect(self, run_id: str | None = None) -> AbstractContextManager[sa.Connection]:
        return self._pool.connect()

    def has_instigators_table(self) -> bool:
        # Once there, it stays; asked several times a tick otherwise, each time by listing all tables.
        self._has_instigators = self._has_instigators or super().has_instigators_table()
        return self._has_instigators

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        self._pool.limit_statements(statement_timeout)

    def dispose(self) -> None:
        self._pool.close()
        super().dispose()
