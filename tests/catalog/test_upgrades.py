"""Every released schema is brought up to date with what is in it, on both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from library import LIMITS, RULES
from postgres import Server
from test_catalog_engine import is_ours

from mirror_realm_assets.catalog import listing, sources, status, texts
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.companions import stem_key
from mirror_realm_assets.catalog.engine import HEAD, Catalog, alembic_config
from mirror_realm_assets.errors import SetupError

REVISIONS = sorted(revision.revision for revision in ScriptDirectory.from_config(alembic_config()).walk_revisions())
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GOOD, BAD = "a" * 64, "b" * 64
PICTURE = "c" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """A database without a schema."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    else:
        server: Server = request.getfixturevalue("postgres_server")
        url = server.url(server.create())
    opened = Catalog(url)
    yield opened
    opened.close()


def populate(catalog: Catalog, revision: str) -> None:
    """Make the schema of a revision, and put one of everything into it as that release did."""
    config = alembic_config()
    with catalog.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
    there = sa.MetaData()
    there.reflect(catalog.engine)

    def put(conn: sa.Connection, into: str, **values: Any) -> None:
        """A row, of columns that the revision has."""
        known = t.metadata.tables[into]
        has = set(there.tables[into].columns.keys())
        values = {key: value for key, value in values.items() if key in has}
        table = sa.table(into, *(sa.column(key, known.c[key].type) for key in values))
        conn.execute(table.insert().values(values))

    with catalog.write() as conn:
        put(conn, "catalog_info", id=1, uuid="one")
        for name in ("projects", "users"):
            put(conn, name, id=1, uuid="u", name="default", created_at=AT)
        put(
            conn, "sources", id=1, uuid="s", name="photos", project_id=1, owner_id=1, kind="folder", root=b"/photos",
            root_display="/photos", policy={"enhance": False}, state="active", scan_generation=3, held_deletions=0,
            deletions_confirmed=False, next_seq=2, index_attempts=0, created_at=AT, updated_at=AT,
        )  # fmt: skip
        for id_, digest in ((1, GOOD), (2, BAD)):
            put(
                conn, "contents", id=id_, digest=digest, size=7, mime="image/jpeg" if id_ == 1 else None,
                custody="referenced", exif={"make": "相机"}, taken_at="2019-07-04T10:11:12", created_at=AT,
            )  # fmt: skip
            put(
                conn, "media", id=id_, uuid=f"m{id_}", project_id=1, source_id=1, owner_id=1, content_id=id_,
                created_at=AT,
            )  # fmt: skip
            put(conn, "media_versions", id=id_, media_id=id_, content_id=id_, seen_from=AT)
            put(
                conn, "locations", id=id_, source_id=1, path=f"照片/{id_}.jpg".encode(), display=f"照片/{id_}.jpg",
                size=7, mtime_ns=id_, inode=5, device=6, generation=3, state="present", attempts=0, media_id=id_,
                identified_size=7, identified_mtime_ns=id_, first_seen_at=AT, changed_at=AT, last_seen_at=AT,
            )  # fmt: skip
        put(conn, "parts", id=1, content_id=1, part=0, kind="still", image_digest=PICTURE, width=40, height=30)
        recipes = {rule.feature: rule.recipe(sources.SourcePolicy()) for rule in RULES}
        rows = ((1, GOOD, "raw_media", "ok", None), (2, BAD, "raw_media", "refused", "unsupported"),
                (3, PICTURE, "embeddings", "ok", None))  # fmt: skip
        for id_, digest, feature, outcome, code in rows:
            recipe = recipes[feature]
            assert recipe is not None
            put(
                conn, "features", id=id_, image_digest=digest, part=0, feature=feature, recipe=recipe.digest,
                status=outcome, code=code, retryable=False, attempts=1, crashes=0, output={"dim": 4}, code_version="1",
                verified=True, created_at=AT, updated_at=AT,
            )  # fmt: skip
        put(
            conn, "batches", id=1, key="photos.20260102T030405.0001", source_id=1, seq=1, kind="ingest", priority=0,
            requested_by="sensor", items=2, bytes=14, estimate_seconds=1.0, created_at=AT,
        )  # fmt: skip
        put(
            conn, "batch_items", id=1, batch_id=1, n=0, feature="raw_media", location_id=1, state="settled", attempt=1,
            crashes=0, priority=0, settled_at=AT, outcome="ok",
        )  # fmt: skip
        put(conn, "batch_lanes", id=1, batch_id=1, lane="search", attempt=1, failures=0)
        put(conn, "batch_runs", id=1, batch_id=1, lane="search", run_id="r1", started_at=AT)
        put(conn, "objects", key="shards/x", kind="shard", sha256=GOOD, bytes=9, created_at=AT)
        if not catalog.is_sqlite:
            for name in ("sources", "contents", "media", "locations", "features", "batches"):
                conn.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), 100)"))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_library_of_every_release_goes_on(empty: Catalog, revision: str) -> None:
    populate(empty, revision)
    empty.migrate()
    empty.require_current()
    assert empty.uuid() == "one"
    with empty.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "include_name": is_ours})
        assert compare_metadata(context, t.metadata) == []
        source = sources.get(conn, "photos")
        assert source.policy.as_options() == {"enhance": False}
        found = status.of_source(conn, source, RULES, LIMITS)
        assert found.locations == {"present": 2} and found.batches == 1
        assert found.features["embeddings"]["ok"] == 1 and found.features["raw_media"]["ok"] == 1
        row = conn.execute(sa.select(t.locations).where(t.locations.c.id == 1)).mappings().one()
        assert bytes(row["path"]).decode() == "照片/1.jpg" and row["first_seen_at"] == AT
        if revision < "0004":  # columns that came later are filled
            assert row["stem_key"] == stem_key("照片/1.jpg".encode())
        limits = conn.execute(sa.select(t.features.c.limits).where(t.features.c.code == "unsupported")).scalar()
        assert limits == ({"formats": 1} if revision < "0005" else None)
    texts.catch_up(empty, 60)
    with empty.read() as conn:
        rows = list(listing.of_source(conn, source, RULES, LIMITS, "照片 相机"))
        expected = 2 if revision < "0006" else 0  # what came with the words was told of when it came
        assert len(rows) == expected
    with empty.write() as conn:  # and new rows have a place
        sources.add(conn, "more", b"/more", {})


def test_the_newest_revision_is_the_last_of_them() -> None:
    assert REVISIONS[-1] == HEAD and len(REVISIONS) >= 6


def test_a_damaged_catalog_is_left_as_it_is(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    populate(catalog, "0001")
    catalog.close()
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as conn, conn:
        conn.execute("UPDATE media SET source_id = 99 WHERE id = 1")
    catalog = Catalog(catalog.url.render_as_string())
    with pytest.raises(SetupError, match="names one of sources"):
        catalog.migrate()
    with catalog.read() as conn:
        assert MigrationContext.configure(conn).get_current_revision() == "0001"
    catalog.close()
