"""Dagster's storage over kept connections: the same storage, fewer connections, and none that is dead."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster_postgres import DagsterPostgresStorage
from postgres import Server

from mirror_realm_assets.dagster_storage import PooledPostgresStorage


@pytest.fixture
def url(postgres_server: Server) -> str:
    return postgres_server.url(postgres_server.create())


@pytest.fixture
def instance(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("URL_OF_DAGSTER", url)
    config = {"postgres_url": {"env": "URL_OF_DAGSTER"}, "should_autocreate_tables": True}
    named = {"module": "mirror_realm_assets.dagster_storage", "class": "PooledPostgresStorage", "config": config}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": {"custom": named}}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


@dg.asset
def something(context: dg.AssetExecutionContext) -> int:
    context.log.info("a line of the log")
    return 1


def backends(url: str) -> set[int]:
    """The server's processes for this database, the asking one left out."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    words = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as conn:
        return set(conn.execute(sa.text(words)).scalars())


def cut(url: str) -> int:
    """End all connections, as a server does that is started anew; returns how many there were."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    words = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as conn:
        return len(conn.execute(sa.text(words)).all())


def test_runs_events_and_keys_are_those_of_dagsters_own_storage(instance: dg.DagsterInstance, url: str) -> None:
    result = dg.materialize([something], instance=instance)
    assert result.success
    instance.add_dynamic_partitions("days", ["one", "two"])
    theirs = DagsterPostgresStorage(url)
    assert [run.run_id for run in theirs.run_storage.get_runs()] == [result.run_id]
    assert set(theirs.event_log_storage.get_dynamic_partitions("days")) == {"one", "two"}
    told = [entry.user_message for entry in theirs.event_log_storage.get_logs_for_run(result.run_id)]
    assert "a line of the log" in told
    assert instance.get_latest_materialization_event(dg.AssetKey("something")) is not None


def test_a_connection_is_kept_and_serves_the_next_question(instance: dg.DagsterInstance, url: str) -> None:
    instance.get_runs()
    before = backends(url)
    assert len(before) == 1
    for _ in range(10):
        instance.get_runs()
        instance.get_dynamic_partitions("days")
        assert list(instance.all_instigator_state()) == []
    assert backends(url) == before


def test_connections_that_the_server_has_ended_cost_nothing(instance: dg.DagsterInstance, url: str) -> None:
    run = dg.materialize([something], instance=instance)
    assert cut(url) >= 1
    assert [found.run_id for found in instance.get_runs()] == [run.run_id]
    assert cut(url) >= 1
    assert dg.materialize([something], instance=instance).success
    assert cut(url) >= 1
    instance.add_dynamic_partitions("days", ["three"])
    assert instance.get_dynamic_partitions("days") == ["three"]


def test_none_is_left_when_the_instance_is_closed(url: str, tmp_path: Path) -> None:
    storage = PooledPostgresStorage(url)
    storage.run_storage.get_runs()
    assert backends(url)
    storage.run_storage.dispose()
    assert not backends(url)


def test_the_webservers_limit_of_a_statement_holds_for_all_three_storages(url: str) -> None:
    storage = PooledPostgresStorage(url)
    for one in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        one.optimize_for_webserver(statement_timeout=1234, pool_recycle=3600, max_overflow=20)
    for connect in (
        storage.run_storage.connect,
        storage.event_log_storage.index_connection,
        storage.schedule_storage.connect,
    ):
        with connect() as conn:
            assert conn.execute(sa.text("SHOW statement_timeout")).scalar_one() == "1234ms"
    storage.run_storage.dispose()
