"""Index rows: pending is a set difference, and publishing is all or nothing, on both databases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from search.picture_library import MODEL, OTHER, RECIPE, Library, sha

from mirror_realm_assets.catalog import index, intents, lacking, leases, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.index import ManifestDraft, Member, SegmentEntry
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.errors import Failed, LeaseLost


@pytest.fixture
def pictures(catalog: Catalog, tmp_path: Path) -> Library:
    return Library(tmp_path, names=("photos", "scans"), catalog=catalog)


def _pending(pictures: Library, source: str = "photos", recipe: str = RECIPE, **options: bool) -> list[str]:
    with pictures.catalog.read() as conn:
        source_id = pictures.sources[source].id
        found = lacking.pending(conn, source_id, recipe, **options)  # type: ignore[arg-type]
        if not options:
            assert lacking.count_pending(conn, source_id, recipe) == len(found)
    return [row.image_digest for row in found]


def _stale(pictures: Library, source: str = "photos") -> list[str]:
    with pictures.catalog.read() as conn:
        found = lacking.stale_members(conn, pictures.sources[source].id, RECIPE)
        assert lacking.count_stale(conn, pictures.sources[source].id, RECIPE) == len(found)
    return [member.image_digest for member in found]


def _segment(count: int, name: str = "segment", *, sealed: bool = True) -> SegmentEntry:
    return SegmentEntry(f"segments/{name}", sha(name), "flat", count, 100, sealed, 1.0)


def _lease(pictures: Library, owner: str = "w") -> Lease:
    with pictures.catalog.write() as conn:
        lease = leases.acquire(conn, "index/photos", owner, 60)
    assert lease is not None
    return lease


def _draft(pictures: Library, *segments: SegmentEntry, base: int = 0, source: str = "photos") -> ManifestDraft:
    return ManifestDraft(pictures.sources[source].id, RECIPE, MODEL, 16, base, segments, 1.0, "run")


def _publish(pictures: Library, images: list[str], *, source: str = "photos") -> index.Manifest:
    entry = _segment(len(images), f"{source} {images}")
    members = [Member(image, 0, entry.sha256, n) for n, image in enumerate(images)]
    with pictures.catalog.write() as conn:
        return index.publish(conn, _lease_in(conn), _draft(pictures, entry, source=source), members, ())


def _lease_in(conn: sa.Connection) -> Lease:
    lease = leases.acquire(conn, "index/photos", "w", 60)
    assert lease is not None
    return lease


def test_pending_are_verified_embeddings_of_current_pictures(pictures: Library) -> None:
    good = pictures.add(images=[pictures.picture(), pictures.picture()])
    key = pictures.embed([good])
    for status, verified in (("failed", False), ("empty", True), ("ok", False)):
        pictures.embed([pictures.add()], status=status, verified=verified)
    pictures.embed([pictures.add()], OTHER)
    pictures.embed([pictures.add("scans")])
    pictures.add()  # not embedded
    with pictures.catalog.read() as conn:
        found = lacking.pending(conn, pictures.sources["photos"].id, RECIPE)
    assert [(row.image_digest, row.part, row.row, row.dim) for row in found] == [
        (good.images[0], 0, 0, 16),
        (good.images[1], 1, 1, 16),
    ]
    assert {row.shard for row in found} == {key}
    assert len(_pending(pictures, recipe=OTHER)) == len(_pending(pictures, "scans")) == 1


def test_an_embedding_of_one_part_is_not_that_of_another(pictures: Library) -> None:
    one = pictures.add("scans")
    pictures.embed([one])
    pictures.add("photos", [pictures.picture(), *one.images])  # the same picture, but as part 1
    assert _pending(pictures) == []


@pytest.mark.parametrize(
    ("state", "pending", "stale"),
    [
        ("present", True, False),
        ("missing", True, False),
        ("unreadable", False, False),
        ("deleted", False, True),
        ("ignored", False, True),
    ],
)
def test_what_a_location_state_does(pictures: Library, state: str, pending: bool, stale: bool) -> None:
    media = pictures.add()
    pictures.embed([media])
    pictures.set_state(media, state)
    assert bool(_pending(pictures)) == pending
    pictures.set_state(media, "present")
    _publish(pictures, media.images)
    pictures.set_state(media, state)
    assert bool(_stale(pictures)) == stale
    pictures.place(media, b"another")
    assert _stale(pictures) == []


def test_a_picture_embedded_long_ago_is_pending_when_it_comes_to_a_source(pictures: Library) -> None:
    old = pictures.add("scans")
    pictures.embed([old])
    new = pictures.add("photos")
    pictures.embed([new])
    _publish(pictures, new.images)
    assert _pending(pictures) == []
    pictures.add("photos", old.images)  # its embedding is older than anything in the manifest
    assert _pending(pictures) == old.images


def test_a_search_of_several_sources_has_to_look_at_what_none_of_them_has_indexed(pictures: Library) -> None:
    one, two, three = pictures.add("photos"), pictures.add("scans"), pictures.add("scans")
    pictures.add("scans", one.images)
    pictures.embed([one, two, three])
    _publish(pictures, one.images)
    photos, scans = (pictures.sources[name].id for name in ("photos", "scans"))
    with pictures.catalog.read() as conn:
        both = {row.image_digest for row in lacking.unindexed(conn, [photos, scans], RECIPE)}
        alone = {row.image_digest for row in lacking.unindexed(conn, [scans], RECIPE)}
        assert lacking.unindexed(conn, [], RECIPE) == []
    assert both == {two.images[0], three.images[0]}
    assert alone == {*both, one.images[0]}


def test_pending_is_cut_in_order_and_can_include_what_is_indexed(pictures: Library) -> None:
    media = [pictures.add() for _ in range(4)]
    for one in media:
        pictures.embed([one])
    _publish(pictures, media[0].images)
    with pictures.catalog.read() as conn:
        first = lacking.pending(conn, pictures.sources["photos"].id, RECIPE, 2)
    assert [row.image_digest for row in first] == [media[1].images[0], media[2].images[0]]
    assert len(_pending(pictures, indexed=True)) == 4


def test_an_embedding_without_its_place_is_named(pictures: Library) -> None:
    pictures.embed([pictures.add()])
    with pictures.catalog.write() as conn:
        conn.execute(t.features.update().values(output={"shard": "x"}))
    with pytest.raises(Failed) as caught:
        _pending(pictures)
    assert caught.value.code == "catalog_failed"


def test_a_changed_file_makes_its_old_picture_stale_unless_another_media_shows_it(pictures: Library) -> None:
    one, other = pictures.add(), pictures.add()
    pictures.embed([one, other])
    pictures.add(images=other.images)
    pictures.add("scans", one.images)  # another source does not count
    _publish(pictures, [*one.images, *other.images])
    old = one.images
    for media in (one, other):
        pictures.change(media, [pictures.picture()])
    assert _stale(pictures) == old


def test_a_tombstone_is_neither_member_nor_stale_and_its_picture_can_be_added_again(pictures: Library) -> None:
    media = pictures.add()
    pictures.embed([media])
    _publish(pictures, media.images)
    pictures.set_state(media, "deleted")
    entry = _segment(1, f"photos {media.images}")
    with pictures.catalog.write() as conn:
        stale = tuple(lacking.stale_members(conn, pictures.sources["photos"].id, RECIPE))
        draft = replace(_draft(pictures, entry, base=1), tombstones=stale)
        buried = index.publish(conn, _lease_in(conn), draft, (), ())
    assert (buried.vectors, buried.tombstones, buried.version) == (0, 1, 2)
    assert _stale(pictures) == []
    with pictures.catalog.read() as conn:
        assert index.members_of(conn, entry.sha256) == []
    pictures.set_state(media, "present")
    assert _pending(pictures) == media.images
    again = _segment(1, "again")
    with pictures.catalog.write() as conn:
        member = Member(media.images[0], 0, again.sha256, 0)
        found = index.publish(conn, _lease_in(conn), _draft(pictures, entry, again, base=2), [member], ())
    assert (found.vectors, found.tombstones) == (1, 1)
    assert _pending(pictures) == []


def test_publishing_names_and_forgets_objects_and_ends_intents_in_one_transaction(pictures: Library) -> None:
    media = [pictures.add() for _ in range(3)]
    pictures.embed(media)
    images = [one.images[0] for one in media]
    first = _publish(pictures, images[:1])
    new = _segment(3, "new", sealed=False)
    members = [Member(image, 0, new.sha256, n) for n, image in enumerate(images)]
    with pictures.catalog.write() as conn:
        ids = intents.begin(conn, [new.key], "w")

    def publish(conn: sa.Connection) -> index.Manifest:
        return index.publish(conn, _lease_in(conn), _draft(pictures, new, base=1), members, first.segments, ids)

    def state() -> tuple[object, ...]:
        with pictures.catalog.read() as conn:
            keys = [new.key, first.segments[0].key]
            objects = set(conn.execute(sa.select(t.objects.c.key)).scalars())
            announced = conn.execute(sa.select(t.intents.c.id)).all()
            found = index.manifest(conn, pictures.sources["photos"].id, RECIPE)
            mine = [len(index.members_of(conn, segment)) for segment in (new.sha256, first.segments[0].sha256)]
        return [key in objects for key in keys], len(announced), found, mine

    before = state()
    assert before == ([False, True], 1, first, [0, 1])
    with pytest.raises(ZeroDivisionError), pictures.catalog.write() as conn:
        publish(conn)
        raise ZeroDivisionError
    assert state() == before
    with pictures.catalog.write() as conn:
        second = publish(conn)
    assert state() == ([True, False], 0, second, [3, 0])
    assert (second.version, second.token, second.vectors, second.run_id) == (2, 1, 3, "run")


def test_a_stale_token_or_base_is_refused(pictures: Library) -> None:
    media = pictures.add()
    pictures.embed([media])
    lease = _lease(pictures)
    entry = _segment(1)
    member = Member(media.images[0], 0, entry.sha256, 0)
    draft = _draft(pictures, entry)
    with pytest.raises(LeaseLost), pictures.catalog.write() as conn:
        index.publish(conn, replace(lease, token=lease.token - 1), draft, [member], ())
    with pytest.raises(LeaseLost), pictures.catalog.write() as conn:
        index.publish(conn, lease, replace(draft, base_version=1), [member], ())
    with pictures.catalog.write() as conn:
        index.publish(conn, lease, draft, [member], ())
    with pytest.raises(LeaseLost), pictures.catalog.write() as conn:
        index.publish(conn, lease, draft, [member], ())


def test_members_that_do_not_fit_their_segments_are_refused(pictures: Library) -> None:
    media = [pictures.add() for _ in range(2)]
    pictures.embed(media)
    entry = _segment(1)
    for members in (
        [Member(media[0].images[0], 0, "elsewhere", 0)],
        [Member(media[0].images[0], 0, entry.sha256, 1)],
        [Member(one.images[0], 0, entry.sha256, n) for n, one in enumerate(media)],
    ):
        with pytest.raises(Failed) as caught, pictures.catalog.write() as conn:
            index.publish(conn, _lease_in(conn), _draft(pictures, entry), members, ())
        assert caught.value.code == "internal"
    assert len(_pending(pictures)) == 2


def test_members_are_looked_up_by_thousands_of_positions(pictures: Library) -> None:
    images = [sha(f"n {n}") for n in range(1000)]
    entry = _segment(1000)
    members = [Member(image, n, entry.sha256, n) for n, image in enumerate(images)]
    with pictures.catalog.write() as conn:
        index.publish(conn, _lease_in(conn), _draft(pictures, entry), members, ())
    with pictures.catalog.read() as conn:
        assert index.members_of(conn, entry.sha256) == members
        assert index.members_of(conn, entry.sha256, range(10, 990)) == members[10:990]
        assert index.members_of(conn, entry.sha256, []) == []


def test_hits_are_media_with_the_places_where_they_are_present(pictures: Library) -> None:
    shared = pictures.picture()
    one = pictures.add("photos", [shared, pictures.picture()], b"b")
    pictures.place(one, b"a")
    pictures.place(one, b"gone")
    pictures.set_state(one, "missing", [b"gone"])
    two = pictures.add("scans", [shared], b"\xff")
    away = pictures.add("photos", [shared])
    pictures.set_state(away, "deleted")
    shifted = pictures.add("photos", [pictures.picture(), shared])  # the same picture as another part
    photos, scans = (pictures.sources[name].id for name in ("photos", "scans"))
    with pictures.catalog.read() as conn:
        both = {found.media: found for found in index.hits(conn, None, [(shared, 0)])}
        assert set(both) == {one.uuid, two.uuid}
        assert (both[one.uuid].paths, both[two.uuid].paths) == ((b"a", b"b"), (b"\xff",))
        assert both[one.uuid].digest == one.digest
        assert [found.media for found in index.hits(conn, [scans], [(shared, 0)])] == [two.uuid]
        assert [found.media for found in index.hits(conn, [photos], [(shared, 1)])] == [shifted.uuid]
        assert index.hits(conn, [], [(shared, 0)]) == []
        assert index.hits(conn, None, [(sha("unknown"), 0)]) == []
    with pictures.catalog.write() as conn:
        sources.set_state(conn, "scans", "removed")
        assert [found.media for found in index.hits(conn, None, [(shared, 0)])] == [one.uuid]
