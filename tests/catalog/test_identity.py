"""Which media a file is: moves, changes, copies, two sources."""

from __future__ import annotations

import threading

import sqlalchemy as sa
from library import Library, content, digest_of, seen

from mirror_realm_assets.catalog import media
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.files import Sighting


def _versions(library: Library, media_id: int) -> list[tuple[str, bool]]:
    query = (
        sa.select(t.contents.c.digest, t.media_versions.c.seen_to)
        .join(t.contents, t.contents.c.id == t.media_versions.c.content_id)
        .where(t.media_versions.c.media_id == media_id)
        .order_by(t.media_versions.c.id)
    )
    with library.catalog.read() as conn:
        return [(row[0], row[1] is None) for row in conn.execute(query)]


def test_a_moved_file_keeps_its_media(library: Library) -> None:
    source = library.source()
    first = library.read(source, b"a.jpg", "one")
    library.sight(source, Sighting("missing", b"a.jpg"), seen(b"b/c.jpg", "one"), generation=2)
    assert library.identify(source, b"b/c.jpg", content("one")) == first
    assert _versions(library, first) == [(digest_of("one"), True)]


def test_changed_bytes_are_a_new_version_of_the_same_media(library: Library) -> None:
    source = library.source()
    first = library.read(source, b"a.jpg", "one")
    assert library.read(source, b"a.jpg", "two!", mtime_ns=2) == first
    assert _versions(library, first) == [(digest_of("one"), False), (digest_of("two!"), True)]


def test_a_file_that_goes_back_to_its_old_bytes_has_three_versions(library: Library) -> None:
    source = library.source()
    ids = {library.read(source, b"a.jpg", text, mtime_ns=n) for n, text in enumerate(["one", "two!", "one"])}
    assert len(ids) == 1
    assert _versions(library, ids.pop()) == [
        (digest_of("one"), False),
        (digest_of("two!"), False),
        (digest_of("one"), True),
    ]


def test_the_same_bytes_twice_in_a_source_are_one_media_until_one_is_edited(library: Library) -> None:
    source = library.source()
    first = library.read(source, b"a.jpg", "one")
    assert library.read(source, b"copy.jpg", "one") == first
    split = library.read(source, b"copy.jpg", "edited", mtime_ns=2)
    assert split != first
    assert library.location(source, b"a.jpg")["media_id"] == first
    assert _versions(library, first) == [(digest_of("one"), True)]


def test_a_file_that_was_moved_and_then_edited_is_a_new_version(library: Library) -> None:
    source = library.source()
    first = library.read(source, b"a.jpg", "one")
    library.sight(source, Sighting("missing", b"a.jpg"), seen(b"b.jpg", "one"), generation=2)
    library.identify(source, b"b.jpg", content("one"))
    assert library.read(source, b"b.jpg", "edited", mtime_ns=2) == first
    assert _versions(library, first) == [(digest_of("one"), False), (digest_of("edited"), True)]


def test_an_old_place_that_comes_back_is_read_again_and_never_passes_for_the_new_version(library: Library) -> None:
    source = library.source()
    first = library.read(source, b"a.jpg", "one")
    library.read(source, b"copy.jpg", "one")
    library.sight(source, Sighting("missing", b"a.jpg"), generation=2)
    assert library.read(source, b"copy.jpg", "edited", mtime_ns=2) == first
    library.sight(source, seen(b"a.jpg", "one"), generation=3)
    assert library.waiting(source) == [library.location(source, b"a.jpg")["id"]]
    again = library.identify(source, b"a.jpg", content("one"))
    assert again != first
    with library.catalog.read() as conn:
        assert [place.path for place in media.places(conn, digest_of("one"))[0]] == [b"a.jpg"]
        assert [place.path for place in media.places(conn, digest_of("edited"))[0]] == [b"copy.jpg"]


def test_two_files_that_exchange_names_exchange_their_media(library: Library) -> None:
    source = library.source()
    a, b = library.read(source, b"a.jpg", "one"), library.read(source, b"b.jpg", "two!")
    assert library.read(source, b"a.jpg", "two!", mtime_ns=2) == b
    assert library.read(source, b"b.jpg", "one", mtime_ns=2) == a


def test_two_sources_never_share_a_media_and_do_share_a_content(library: Library) -> None:
    ours, theirs = library.source("ours", b"/ours"), library.source("theirs", b"/theirs")
    assert library.read(ours, b"a.jpg", "one") != library.read(theirs, b"a.jpg", "one")
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.contents)).scalar_one() == 1
        places, stored = media.places(conn, digest_of("one"))
    assert {place.root for place in places} == {b"/ours", b"/theirs"}
    assert stored is None


def test_a_present_place_is_tried_before_a_missing_one(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    library.read(source, b"b.jpg", "one")
    library.sight(source, Sighting("missing", b"a.jpg"), generation=2)
    with library.catalog.read() as conn:
        assert [place.path for place in media.places(conn, digest_of("one"))[0]] == [b"b.jpg", b"a.jpg"]


def test_facts_and_custody_survive_a_reading_that_got_less(library: Library) -> None:
    source, other = library.source(), library.source("other", b"/other")
    whole = media.Identified(**vars(content("one", parts=3)) | {"stored_key": "originals/x", "exif": {"Make": "A"}})
    library.sight(source, seen(b"a.jpg", "one"))
    library.identify(source, b"a.jpg", whole)
    library.sight(other, seen(b"a.jpg", "one"))
    library.identify(other, b"a.jpg", media.Identified(whole.digest, whole.size, 1))
    with library.catalog.read() as conn:
        row = conn.execute(sa.select(t.contents)).mappings().one()
        parts = conn.execute(sa.select(t.parts.c.part).order_by(t.parts.c.part)).scalars().all()
    assert (row["custody"], row["stored_key"], row["exif"]) == ("stored", "originals/x", {"Make": "A"})
    assert (row["mime"], parts) == ("image/jpeg", [0, 1, 2])


def test_equal_files_read_by_eight_workers_at_once_are_one_media(library: Library) -> None:
    source, other = library.source(), library.source("other", b"/other")
    names = [b"%d.jpg" % n for n in range(4)]
    for where in (source, other):
        library.sight(where, *(seen(name, "one") for name in names))
    found: list[tuple[str, int]] = []
    start = threading.Barrier(8)

    def read(where, name: bytes) -> None:
        start.wait()
        found.append((where.name, library.identify(where, name, content("one", parts=2))))

    threads = [threading.Thread(target=read, args=(where, name)) for where in (source, other) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 2
