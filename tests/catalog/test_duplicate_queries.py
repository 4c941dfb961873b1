"""Which contents are the same is asked of what is at some place now, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from library import Library, content, digest_of, seen

from mirror_realm_assets.catalog import duplicates, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.media import Identified


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)


def digests(library: Library, ids: list[int]) -> set[str]:
    c = t.contents.c
    with library.catalog.read() as conn:
        return set(conn.execute(sa.select(c.digest).where(c.id.in_(ids))).scalars())


def put(library: Library, source: sources.Source, path: bytes, found: Identified) -> None:
    library.sight(source, seen(path, "x" * found.size))
    library.identify(source, path, found)


def test_the_same_bytes_are_counted_by_place_and_over_sources(library: Library) -> None:
    one, two = library.source(), library.source("other", b"/other")
    library.read(one, b"a.jpg", "twice")
    library.read(one, b"b.jpg", "twice")
    library.read(one, b"c.jpg", "here and there")
    library.read(two, b"c.jpg", "here and there")
    library.read(two, b"d.jpg", "once")
    with library.catalog.read() as conn:
        both = duplicates.same_bytes(conn, [one.id, two.id])
        alone = duplicates.same_bytes(conn, [one.id])
        found = duplicates.copies(conn, [one.id, two.id], both)
    assert digests(library, both) == {digest_of("twice"), digest_of("here and there")}
    assert digests(library, alone) == {digest_of("twice")}
    places = sorted((copy.source_id, copy.paths) for copies in found.values() for copy in copies)
    assert places == [(one.id, (b"a.jpg", b"b.jpg")), (one.id, (b"c.jpg",)), (two.id, (b"c.jpg",))]


def test_a_file_that_changed_or_went_is_no_copy(library: Library) -> None:
    source = library.source()
    for path in (b"a.jpg", b"b.jpg", b"c.jpg"):
        library.read(source, path, "same")
    library.sight(source, seen(b"b.jpg", "something else", mtime_ns=2))
    with library.catalog.write() as conn:
        conn.execute(t.locations.update().where(t.locations.c.path == b"c.jpg").values(state="deleted"))
    with library.catalog.read() as conn:
        assert duplicates.same_bytes(conn, [source.id]) == []


def test_the_same_picture_is_told_by_its_first_picture_unless_there_is_more_to_the_file(library: Library) -> None:
    source = library.source()
    photo, page = content("photo"), content("document", parts=2)
    page = replace(page, parts=tuple(replace(part, kind="page") for part in page.parts))
    put(library, source, b"a.jpg", photo)
    put(library, source, b"b.jpg", replace(photo, digest=digest_of("tagged")))
    put(library, source, b"c.pdf", page)
    put(library, source, b"d.pdf", replace(page, digest=digest_of("another document, same title page")))
    put(library, source, b"e.jpg", content("another"))
    with library.catalog.read() as conn:
        groups = duplicates.same_picture(conn, [source.id])
    assert [digests(library, ids) for ids in groups] == [{photo.digest, digest_of("tagged")}]


def test_hashes_come_best_picture_first(library: Library) -> None:
    source = library.source()
    sizes = {"small": (40, 30), "large": (60_000, 50_000), "middle": (300, 200)}
    for name, (width, height) in sizes.items():
        put(library, source, name.encode(), replace(content(name, width=width, height=height), phash="c" * 16))
    put(library, source, b"flat", replace(content("flat"), phash=None))
    with library.catalog.read() as conn:
        found = list(duplicates.hashed(conn, [source.id]))
        copies = duplicates.copies(conn, [source.id], [content_id for content_id, _phash in found])
    assert [copies[content_id][0].width for content_id, _phash in found] == [60_000, 300, 40]
    assert {phash for _content_id, phash in found} == {"c" * 16}
