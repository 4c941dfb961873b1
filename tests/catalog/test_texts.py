"""Finding files by words, on both databases."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from library import LIMITS, RULES, Library, seen

from mirror_realm_assets.catalog import listing, sidecars, texts
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import Sighting, location_failed
from mirror_realm_assets.catalog.purge import purge
from mirror_realm_assets.catalog.sources import Source


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)


def asked(library: Library, source: Source, text: str) -> list[str]:
    """Paths of the files that `files --text` tells."""
    texts.catch_up(library.catalog, 60)
    with library.catalog.read() as conn:
        rows = list(listing.of_source(conn, source, RULES, LIMITS, text))
    return sorted(path.decode() for row in rows for path in row.paths)


def sidecar(library: Library, source: Source, path: bytes, **facts: Any) -> None:
    """A sidecar was found and read."""
    with library.catalog.write() as conn:
        sidecars.note(conn, source.id, [sidecars.Seen(path, 10, 1)])
        (row,) = [each for each in sidecars.waiting(conn, source.id, 10) if each.path == path]
        sidecars.record(conn, [sidecars.Reading(row.id, state="read", size=10, mtime_ns=1, facts=facts)])


def test_chinese_paths_are_found_by_any_part(library: Library) -> None:
    source = library.source()
    for path in ("2019/我的照片/海边.jpg", "2020/目录/a.jpg", "自动处理/b.jpg"):
        library.read(source, path.encode(), path)
    assert asked(library, source, "照片") == ["2019/我的照片/海边.jpg"]
    assert asked(library, source, "目录") == ["2020/目录/a.jpg"]
    assert asked(library, source, "自动处理") == ["自动处理/b.jpg"]
    assert asked(library, source, "处理 b") == ["自动处理/b.jpg"]
    assert asked(library, source, "片照") == []
    assert asked(library, source, "jpg") == ["2019/我的照片/海边.jpg", "2020/目录/a.jpg", "自动处理/b.jpg"]


def test_an_ask_without_words_finds_nothing_and_quotes_are_no_operators(library: Library) -> None:
    source = library.source()
    library.read(source, b"a or b.jpg", "x")
    for text in ("", "!?", "'", '"', "' | '", "*"):
        assert asked(library, source, text) == []
    assert asked(library, source, "\"a\" OR 'b':* & b NEAR(a)") == []
    assert asked(library, source, "a OR b") == ["a or b.jpg"]


def test_a_file_is_found_under_its_new_name_once_it_has_moved(library: Library) -> None:
    source = library.source()
    library.read(source, b"old/name.jpg", "x")
    assert asked(library, source, "name") == ["old/name.jpg"]
    moved = Sighting("moved", b"new/thing.jpg", 1, 1, moved_from=b"old/name.jpg")
    library.sight(source, moved, generation=2)
    assert asked(library, source, "name") == []
    assert asked(library, source, "thing") == ["new/thing.jpg"]


def test_what_sidecars_say_is_found_with_the_path_and_forgotten_with_them(library: Library) -> None:
    source = library.source()
    library.read(source, b"2019/IMG_1.jpg", "one")
    library.read(source, b"2019/IMG_2.jpg", "two")
    assert asked(library, source, "婚礼") == []
    sidecar(library, source, b"2019/IMG_1.jpg.xmp", title="婚礼", keywords=["Lisboa", "família"], rating=5)
    assert asked(library, source, "婚礼 2019") == ["2019/IMG_1.jpg"]
    assert asked(library, source, "familia lisboa") == ["2019/IMG_1.jpg"]
    with library.catalog.write() as conn:
        sidecars.forget(conn, list(conn.execute(sa.select(t.sidecars.c.id)).scalars()))
    assert asked(library, source, "婚礼") == []


def test_a_file_that_was_refused_is_found_too(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"broken/picture.jpg", "x"))
    with library.catalog.write() as conn:
        location_failed(conn, library.location(source, b"broken/picture.jpg")["id"], "corrupt", "It is broken.", None)
    assert asked(library, source, "broken") == ["broken/picture.jpg"]


def test_what_is_purged_is_found_no_more(library: Library) -> None:
    source = library.source()
    library.read(source, b"secret.jpg", "x")
    assert asked(library, source, "secret") == ["secret.jpg"]
    with library.catalog.write() as conn:
        conn.execute(
            t.locations.update().values(state="deleted", deleted_at=sa.func.now())
            if not library.catalog.is_sqlite
            else t.locations.update().values(state="deleted", deleted_at=sa.text("'2020-01-01 00:00:00'"))
        )
        conn.execute(t.locations.update().values(deleted_at=sa.text("'2020-01-01 00:00:00'")))
    purge(library.catalog, 0.0, rounds=1)
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(t.texts.c.words)).all() == []
    assert asked(library, source, "secret") == []


def test_the_index_of_words_is_used(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "x")
    texts.catch_up(library.catalog, 60)
    with library.catalog.read() as conn:
        query = texts.found_by(conn, "a")
        assert query is not None
        if library.catalog.is_sqlite:
            plan = "EXPLAIN QUERY PLAN "
        else:
            conn.execute(sa.text("SET enable_seqscan = off"))
            plan = "EXPLAIN "
        told = str(query.compile(conn, compile_kwargs={"literal_binds": True}))
        rows = conn.exec_driver_sql(plan + told.replace("%", "%%")).fetchall()
    assert "VIRTUAL TABLE INDEX" in str(rows) or "ix_texts_words" in str(rows)


def test_two_that_catch_up_at_once_write_every_word_once(library: Library) -> None:
    source = library.source()
    for number in range(900):
        library.sight(source, seen(f"{number}/x.jpg".encode(), "x"))
    with library.catalog.write() as conn:
        conn.execute(t.locations.update().values(text_pending=True))
    errors: list[BaseException] = []

    def write() -> None:
        try:
            texts.catch_up(library.catalog, 60)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.texts)).scalar() == 900
        assert conn.execute(sa.select(sa.func.count()).where(t.locations.c.text_pending == sa.true())).scalar() == 0


def test_it_stops_when_the_time_is_up(library: Library) -> None:
    source = library.source()
    for number in range(450):
        library.sight(source, seen(f"{number}.jpg".encode(), "x"))
    with library.catalog.write() as conn:
        conn.execute(t.locations.update().values(text_pending=True))
    assert texts.catch_up(library.catalog, 0) == 400
    assert texts.catch_up(library.catalog, timedelta(minutes=1).total_seconds()) == 50
    assert texts.catch_up(library.catalog, 0) == 0
