"""Searching: the same as brute force, whatever was added, deleted and published before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from search.picture_library import OTHER, RECIPE, Library

from mirror_realm_assets.catalog import index, lacking, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.search import query as query_module


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path, names=("photos", "scans"))


def test_an_empty_catalog_has_no_hits(library: Library) -> None:
    assert library.search(library.vector()) == []
    report = library.build()
    assert (report.published, report.vectors, report.version, report.recall_at_10) == (False, 0, 0, None)
    assert library.search(library.vector()) == []


def test_a_picture_is_found_as_soon_as_it_is_embedded(library: Library) -> None:
    media = library.add(path=b"a/\xff.png")
    vector = library.vector()
    library.embed([media], vectors=[vector])
    before = library.search(vector)
    library.build()
    after = library.search(vector)
    assert before == after
    hit = after[0]
    assert (hit.rank, hit.model, hit.digest, hit.media, hit.part) == (1, "toy-16", media.digest, media.uuid, 0)
    assert (hit.time_s, hit.page, hit.paths, hit.source) == (0.0, 0, [b"a/\xff.png"], "photos")
    assert hit.score == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("seed", range(2))
def test_results_equal_brute_force_through_random_histories(
    catalog: Catalog, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small that a search has to ask several times.
    monkeypatch.setattr(query_module, "_FIRST_FETCH", 1)
    monkeypatch.setattr(query_module, "_GROWTH", 2)
    library = Library(tmp_path, seed=seed, names=("photos", "scans"), catalog=catalog)
    rng = np.random.default_rng(seed)
    centre = library.vector()
    for _ in range(7):
        _something_happens(library, rng, centre)
        for recipe in (RECIPE, OTHER):
            for k in (1, 5, 1000):
                names = [None, ["photos"], ["scans"]][rng.integers(3)]
                library.agrees(library.vector(centre), recipe=recipe, k=k, names=names)
    for name in library.sources:
        library.build(name)
        with library.catalog.read() as conn:
            assert lacking.count_pending(conn, library.sources[name].id, RECIPE) == 0
            assert lacking.count_stale(conn, library.sources[name].id, RECIPE) == 0
    library.agrees(library.vector(centre), k=7)


def _something_happens(library: Library, rng: np.random.Generator, centre: np.ndarray) -> None:
    names = list(library.sources)
    new = [library.add(str(rng.choice(names)), _pictures(library, rng)) for _ in range(rng.integers(1, 12))]
    recipe = (RECIPE, RECIPE, OTHER)[rng.integers(3)]
    left_out = [one for one in new if rng.random() < 0.8]
    todo = {(image, part) for one in left_out for part, image in enumerate(one.images)}
    todo = {subject for subject in todo if (recipe, *subject) not in library.vectors}
    # Several pictures with equal vectors: ties must not depend on where a vector lies.
    vectors = [centre if rng.random() < 0.2 else library.vector(centre) for _ in todo]
    library.embed(left_out, recipe, vectors or None)
    for one in rng.choice(library.media, size=min(4, len(library.media)), replace=False):
        what = rng.integers(6)
        if what == 0:
            library.change(one, _pictures(library, rng))
        elif what == 1:
            library.place(one, b"copy %d" % rng.integers(2**60))
        else:
            state = str(rng.choice(["present", "missing", "deleted", "unreadable", "ignored"]))
            library.set_state(one, state, [path for path in one.places if rng.random() < 0.7])
    for name in names:
        if rng.random() < 0.6:
            library.build(name, recipe, rebuild=bool(rng.random() < 0.2), round_vectors=int(rng.integers(3, 40)))


def _pictures(library: Library, rng: np.random.Generator) -> list[str]:
    known = [one.images[0] for one in library.media]
    parts = int(rng.choice([1, 1, 1, 3]))
    images = [library.picture() for _ in range(parts)]
    if known and rng.random() < 0.3:
        images[0] = str(rng.choice(known))  # the same picture in another file, perhaps of another source
    return images


def test_the_same_picture_at_several_places_is_one_hit_a_media_with_all_its_paths(library: Library) -> None:
    image, vector = library.picture(), library.vector()
    first = library.add("photos", [image], b"a.png")
    library.place(first, b"b.png")
    second = library.add("scans", [image], b"c.png")
    third = library.add("photos", [image], b"edited.png")  # other bytes, same picture
    library.embed([first], vectors=[vector])
    library.build("photos")
    found = {hit.media: (hit.source, hit.paths) for hit in library.search(vector)}
    assert found == {
        first.uuid: ("photos", [b"a.png", b"b.png"]),
        second.uuid: ("scans", [b"c.png"]),
        third.uuid: ("photos", [b"edited.png"]),
    }


def test_deleted_media_are_not_found_before_and_after_the_next_build(library: Library) -> None:
    vector = library.vector()
    near = [library.add() for _ in range(30)]
    library.embed(near, vectors=[vector] * 30)
    far = [library.add() for _ in range(3)]
    library.embed(far, vectors=[-vector] * 3)
    library.build()
    for one in near:
        library.set_state(one, "deleted")
    left = {one.uuid for one in far}
    for k in (1, 3, 100):
        assert {hit.media for hit in library.search(vector, k=k)} <= left
        assert len(library.search(vector, k=k)) == min(k, 3)
    report = library.build()
    assert (report.published, report.removed, report.vectors, report.added) == (True, 30, 3, 0)
    assert {hit.media for hit in library.search(vector, k=100)} == left


@pytest.mark.parametrize("size", [8, 1000])
def test_many_dead_neighbours_do_not_use_up_the_places_of_live_ones(library: Library, size: int) -> None:
    vector = library.vector()
    near = [library.add() for _ in range(100)]  # more than the first fetch of a search
    library.embed(near, vectors=[vector] * 100)
    live = [library.add() for _ in range(5)]
    library.embed(live)
    library.build(segment_vectors=size)
    for one in near:
        library.set_state(one, "deleted")
    assert {hit.media for hit in library.search(vector, k=5)} == {one.uuid for one in live}
    library.build(segment_vectors=size)
    assert {hit.media for hit in library.search(vector, k=5)} == {one.uuid for one in live}


def test_pictures_that_are_away_do_not_use_up_the_places_of_others_before_they_are_indexed(library: Library) -> None:
    vector = library.vector()
    away = [library.add() for _ in range(100)]
    library.embed(away, vectors=[vector] * 100)
    for one in away:
        library.set_state(one, "missing")
    live = [library.add() for _ in range(5)]
    library.embed(live)
    assert {hit.media for hit in library.search(vector, k=5)} == {one.uuid for one in live}


@pytest.mark.parametrize("indexed", [0, 30, 90])
@pytest.mark.parametrize("size", [8, 1000])
def test_equal_scores_are_ordered_by_digest_wherever_the_vectors_lie(library: Library, indexed: int, size: int) -> None:
    vector = library.vector()
    media = [library.add() for _ in range(90)]
    library.embed(media[:indexed], vectors=[vector] * indexed)
    if indexed:
        library.build(segment_vectors=size)
    library.embed(media[indexed:], vectors=[vector] * (90 - indexed))
    for k in (1, 3, 50):
        assert [hit.digest for hit in library.search(vector, k=k)] == sorted(one.digest for one in media)[:k]


def test_a_picture_that_returns_is_found_again_once(library: Library) -> None:
    vector = library.vector()
    media = [library.add() for _ in range(8)]  # a sealed segment: its dead stay as tombstones
    library.embed(media, vectors=[vector] * 8)
    library.build()
    library.set_state(media[0], "deleted")
    assert library.build().tombstones == 1
    library.set_state(media[0], "present")
    assert len(library.search(vector)) == 8
    report = library.build()
    assert (report.added, report.vectors, report.tombstones) == (1, 8, 1)
    assert len(library.search(vector)) == 8


def test_media_of_a_removed_source_are_not_found(library: Library) -> None:
    vector = library.vector()
    for name in ("photos", "scans"):
        library.embed([library.add(name)], vectors=[vector])
        library.build(name)
    with library.catalog.write() as conn:
        sources.set_state(conn, "scans", "removed")
    assert [hit.source for hit in library.search(vector)] == ["photos"]


def test_two_recipes_never_mix(library: Library) -> None:
    media = [library.add() for _ in range(2)]
    vector = library.vector()
    library.embed(media[:1], RECIPE, [vector])
    library.embed(media[1:], OTHER, [vector])
    for _ in range(2):
        assert [hit.media for hit in library.search(vector, RECIPE)] == [media[0].uuid]
        assert [hit.media for hit in library.search(vector, OTHER)] == [media[1].uuid]
        library.build(recipe=RECIPE)
        library.build(recipe=OTHER)
    with library.catalog.read() as conn:
        ours = [index.manifest(conn, library.sources["photos"].id, recipe) for recipe in (RECIPE, OTHER)]
    assert all(found is not None and found.vectors == 1 for found in ours)
    assert len({found.segments[0].key for found in ours if found}) == 2  # equal vectors, yet two objects


def test_an_altered_segment_is_refused(library: Library) -> None:
    vector = library.vector()
    library.embed([library.add()], vectors=[vector])
    library.build()
    _alter(library)
    with pytest.raises(Failed) as caught:
        library.search(vector)
    assert caught.value.code == "store_corrupt"
    library.build(rebuild=True)
    assert len(library.search(vector)) == 1


def _alter(library: Library) -> None:
    with library.catalog.read() as conn:
        found = index.manifest(conn, library.sources["photos"].id, RECIPE)
    assert found is not None
    with library.store.local_path(found.segments[-1].key, found.segments[-1].sha256) as path:
        data = bytearray(path.read_bytes())
        data[50] ^= 1
        path.write_bytes(data)


def test_a_damaged_shard_hides_only_its_own_pictures(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = library.add(), library.add()
    vector = library.vector()
    library.embed([good], vectors=[vector])
    key = library.embed([bad], vectors=[vector])
    assert key is not None
    (library.store.root.path / key).write_bytes(b"damaged")  # type: ignore[attr-defined]
    assert [hit.media for hit in library.search(vector)] == [good.uuid]
    assert "left out" in caplog.text
    with pytest.raises(Failed) as caught:
        library.build()
    assert caught.value.code == "store_corrupt"
    with library.catalog.read() as conn:
        found = index.manifest(conn, library.sources["photos"].id, RECIPE)
    assert found is not None
    assert found.vectors == 1
    library.build()  # the lost one is to be made again, and no longer waited for
    with library.catalog.read() as conn:
        assert index.manifest(conn, library.sources["photos"].id, RECIPE) == found


def test_a_manifest_replaced_during_a_search_loses_no_hit(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = library.vector()
    library.embed([library.add()], vectors=[vector])
    library.build()
    real, left = query_module.load_segment, [2]

    def load_and_publish(*args: object, **options: object) -> object:
        found = real(*args, **options)  # type: ignore[arg-type]
        if left[0]:
            left[0] -= 1
            library.embed([library.add()], vectors=[vector])
            library.build()
        return found

    monkeypatch.setattr(query_module, "load_segment", load_and_publish)
    assert len(library.search(vector)) == 3
    left[0] = 100
    with pytest.raises(Failed) as caught:
        library.search(vector)
    assert caught.value.code == "catalog_failed"


def test_a_segment_collected_after_it_was_replaced_is_looked_up_anew(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = library.vector()
    library.embed([library.add()], vectors=[vector])
    library.build()
    real, left = query_module.load_segment, [1]

    def collect_and_load(store: object, entry: index.SegmentEntry, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            library.embed([library.add()], vectors=[vector])
            library.build()
            assert library.store.trash(entry.key)
        return real(store, entry, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(query_module, "load_segment", collect_and_load)
    assert len(library.search(vector)) == 2


@pytest.mark.parametrize("bad", [np.full(16, np.nan), np.ones(15), np.ones((1, 16))])
def test_a_query_that_cannot_be_is_refused(library: Library, bad: np.ndarray) -> None:
    library.embed([library.add()])
    library.build()
    with pytest.raises(Failed) as caught:
        library.search(bad.astype(np.float32))
    assert caught.value.code == "invalid_argument"


def test_zero_hits_cannot_be_asked_for(library: Library) -> None:
    with pytest.raises(Failed):
        library.search(library.vector(), k=0)
