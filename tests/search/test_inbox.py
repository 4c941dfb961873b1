"""The inbox of an index: whatever becomes pending is noted, so that neither builds nor searches have to look at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.picture_library import OTHER, RECIPE, Library

from mirror_realm_assets.catalog import inbox, lacking
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.errors import Failed


@pytest.fixture
def library(catalog: Catalog, tmp_path: Path) -> Library:
    return Library(tmp_path, names=("photos", "scans"), catalog=catalog)


def _notes(library: Library, source: str = "photos", recipe: str = RECIPE) -> list[str]:
    with library.catalog.read() as conn:
        return [note.image_digest for note in inbox.notes(conn, library.sources[source].id, recipe)]


def _pending(library: Library, source: str = "photos") -> int:
    with library.catalog.read() as conn:
        return lacking.count_pending(conn, library.sources[source].id, RECIPE)


def test_a_build_that_goes_by_the_inbox_takes_in_what_is_noted_and_nothing_else(library: Library) -> None:
    library.embed([library.add() for _ in range(3)])
    library.build()
    assert _notes(library) == []
    new, unnoted = library.add(), library.add()
    library.embed([new])
    library.embed([unnoted])
    with library.catalog.write() as conn:
        i = t.index_inbox.c
        conn.execute(t.index_inbox.delete().where(i.image_digest == unnoted.images[0]))
    assert library.build(full=False).added == 1
    assert _pending(library) == 1
    assert library.build(full=False).added == 0
    assert library.build().added == 1


def test_the_first_build_of_an_index_looks_at_everything(library: Library) -> None:
    library.embed([library.add() for _ in range(3)])
    with library.catalog.write() as conn:
        conn.execute(t.index_inbox.delete())
    assert library.build(full=False).added == 3


def test_a_vector_is_noted_for_every_source_that_has_its_picture(library: Library) -> None:
    picture = library.picture()
    both = [library.add(source, images=[picture]) for source in ("photos", "scans")]
    library.embed(both[:1])
    assert _notes(library) == _notes(library, "scans") == [picture]
    assert _notes(library, recipe=OTHER) == []


def test_what_is_pending_beyond_one_round_is_taken_in_by_the_next(library: Library) -> None:
    library.embed([library.add()])
    library.build()
    library.embed([library.add() for _ in range(7)])
    assert library.build(full=False, round_vectors=2).added == 7
    assert _notes(library) == []


def test_notes_of_a_shard_that_cannot_be_read_stay(library: Library, tmp_path: Path) -> None:
    library.embed([library.add()])
    library.build()
    lost, good = library.add(), library.add()
    key = library.embed([lost])
    library.embed([good])
    assert key is not None
    path = next(library.store.root.path.rglob(Path(key).name))  # type: ignore[attr-defined]
    away = path.rename(tmp_path / "on a disk that is not there")
    with pytest.raises(Failed):
        library.build(full=False)
    assert _notes(library) == lost.images
    away.rename(path)
    assert library.build(full=False).added == 1
    assert _notes(library) == []


def test_what_is_noted_for_no_wanted_index_can_be_told(library: Library) -> None:
    one = library.add()
    library.embed([one])
    library.embed([one], OTHER)
    photos = library.sources["photos"].id
    with library.catalog.read() as conn:
        others = inbox.of_others(conn, photos, RECIPE, 10)
        assert [note.image_digest for note in others] == one.images
        assert len(inbox.of_others(conn, photos, None, 10)) == 2
        assert inbox.of_others(conn, library.sources["scans"].id, None, 10) == []
    with library.catalog.write() as conn:
        inbox.forget(conn, [note.id for note in others])
    assert _notes(library, recipe=OTHER) == []
    assert _notes(library) == one.images


KINDS = ("add", "again", "embed", "gone", "back", "change", "build")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5))))
def test_whatever_happens_a_build_by_the_inbox_leaves_nothing_pending(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    library = Library(tmp_path_factory.mktemp("library"), names=("photos", "scans"))
    library.embed([library.add(), library.add("scans")])
    for source in library.sources:
        library.build(source)
    for kind, number in steps:
        media = library.media[number % len(library.media)]
        if kind == "add":
            library.add("scans" if number % 2 else "photos")
        elif kind == "again":
            library.add("photos" if media.source == "scans" else "scans", images=media.images)
        elif kind == "embed":
            library.embed([media])
        elif kind in ("gone", "back"):
            library.set_state(media, "deleted" if kind == "gone" else "present")
        elif kind == "change":
            library.change(media, [library.media[number % 2].images[0]])
        else:
            library.build(media.source, full=number == 0)
    for source, row in library.sources.items():
        library.build(source, full=False)
        assert _pending(library, source) == 0
        with library.catalog.read() as conn:
            assert inbox.notes(conn, row.id, RECIPE) == []
    library.catalog.close()
