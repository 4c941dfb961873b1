"""Migrations, transactions and times, on both databases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from postgres import Server

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import HEAD, Catalog, alembic_config, now
from mirror_realm_assets.errors import SetupError


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'catalog.sqlite'}"
        return
    server: Server = request.getfixturevalue("postgres_server")
    name = server.create()
    yield server.url(name)
    server.drop(name)


def _migrate(url: str) -> None:
    catalog = Catalog(url)
    catalog.migrate()
    catalog.close()


def test_four_processes_may_migrate_at_once_and_again(empty_url: str) -> None:
    processes = [multiprocessing.get_context("forkserver").Process(target=_migrate, args=(empty_url,)) for _ in "1234"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    catalog = Catalog(empty_url)
    first = catalog.uuid()
    catalog.migrate()
    assert catalog.uuid() == first
    with catalog.read() as conn:
        for table in (t.catalog_info, t.projects, t.users):
            assert conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 1
    catalog.close()


def is_ours(name: str | None, _kind: str, _parents: object) -> bool:
    """Not each database's own index of words, nor the months of the audit trail."""
    return not (name or "").startswith(("texts_fts", "ix_texts_words", "activity_"))


def test_the_migrated_schema_is_what_the_tables_say(catalog: Catalog) -> None:
    with catalog.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "include_name": is_ours})
        assert compare_metadata(context, t.metadata) == []


def test_a_catalog_that_was_never_made_says_how_to_make_it(empty_url: str) -> None:
    catalog = Catalog(empty_url)
    with pytest.raises(SetupError) as caught:
        catalog.uuid()
    assert caught.value.code == "not_initialised"
    catalog.close()


def test_a_file_that_is_no_database_is_not_taken_for_a_missing_catalog(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"these are holiday pictures" * 100)
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    with pytest.raises(SetupError) as caught:
        catalog.uuid()
    assert caught.value.code == "catalog_failed"
    catalog.close()


def test_a_server_that_does_not_answer_is_named_without_its_password(postgres_server: Server) -> None:
    catalog = Catalog("postgresql://someone:secret@127.0.0.1:1/nothing")
    with pytest.raises(SetupError) as caught:
        catalog.uuid()
    assert caught.value.code == "catalog_failed"
    assert "secret" not in str(caught.value)
    catalog.close()


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3, minutes=-30))])
def test_a_time_comes_back_as_the_same_instant_in_utc(catalog: Catalog, zone: timezone) -> None:
    at = datetime(2026, 3, 29, 1, 59, 59, 123456, tzinfo=zone)
    with catalog.write() as conn:
        conn.execute(t.users.insert().values(uuid="u", name="ann", created_at=at))
    with catalog.read() as conn:
        found = conn.execute(sa.select(t.users.c.created_at).where(t.users.c.name == "ann")).scalar_one()
        later = conn.execute(sa.select(t.users.c.id).where(t.users.c.created_at > at - timedelta(microseconds=1)))
        assert found == at
        assert found.tzinfo is UTC
        assert later.first() is not None


def test_a_time_without_zone_is_refused(catalog: Catalog) -> None:
    with pytest.raises(sa.exc.StatementError, match="naive time"), catalog.write() as conn:
        conn.execute(t.users.insert().values(uuid="u", name="ann", created_at=datetime(2026, 1, 1)))


def test_the_catalogs_clock_is_close_to_ours_and_aware(catalog: Catalog) -> None:
    with catalog.read() as conn:
        assert abs(now(conn) - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_failed_transaction_leaves_nothing(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.write() as conn:
        conn.execute(t.users.insert().values(uuid="u", name="ann", created_at=now(conn)))
        raise RuntimeError
    with catalog.read() as conn:
        assert conn.execute(sa.select(t.users.c.id).where(t.users.c.name == "ann")).first() is None


def test_a_catalog_of_another_version_is_named_with_what_to_do(catalog: Catalog) -> None:
    catalog.require_current()
    with catalog.write() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SetupError, match="older version") as older:
        catalog.require_current()
    assert "mirror-realm init" in older.value.remedy
    with catalog.write() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="newer version") as newer:
        catalog.require_current()
    assert "Install the newer" in newer.value.remedy
    with catalog.write() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD})


def test_the_newest_revision_is_the_one_that_is_asked_for() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD
