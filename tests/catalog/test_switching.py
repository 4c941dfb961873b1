"""A change of the embedder: the older index answers until the wanted one has caught up, on both databases."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from search.picture_library import MODEL, OTHER, RECIPE, Library

from mirror_realm_assets.catalog import index, leases, switching
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now


@pytest.fixture
def pictures(catalog: Catalog, tmp_path: Path) -> Library:
    """Three pictures, in an index under `RECIPE`."""
    made = Library(tmp_path, names=("photos", "scans"), catalog=catalog)
    made.embed([made.add() for _ in range(3)])
    made.build()
    return made


def _waited_for(pictures: Library) -> bool:
    with pictures.catalog.read() as conn:
        return switching.is_waited_for(conn, pictures.sources["photos"].id, RECIPE, OTHER)


def _older(pictures: Library, recipe: str = OTHER, source: str = "photos") -> list[str]:
    with pictures.catalog.read() as conn:
        return [one.recipe for one in switching.older_indexes(conn, pictures.sources[source].id, recipe)]


def _retire(pictures: Library, recipe: str = RECIPE) -> bool:
    with pictures.catalog.write() as conn:
        return switching.retire(conn, pictures.sources["photos"], recipe)


def test_an_index_under_another_recipe_is_older_and_known_by_its_model(pictures: Library) -> None:
    with pictures.catalog.write() as conn:
        conn.execute(t.features.update().values(model_digest="d" * 64))
    with pictures.catalog.read() as conn:
        found = switching.older_indexes(conn, pictures.sources["photos"].id, OTHER)
    assert found == [switching.OlderIndex(RECIPE, MODEL, "d" * 64)]
    assert _older(pictures, RECIPE) == []
    assert _older(pictures, source="scans") == []


def test_of_several_older_indexes_the_newest_comes_first(pictures: Library) -> None:
    pictures.embed(pictures.media, OTHER)
    pictures.build(recipe=OTHER)
    assert _older(pictures, "c" * 64) == [OTHER, RECIPE]
    pictures.embed([pictures.add()])
    pictures.build()
    assert _older(pictures, "c" * 64) == [RECIPE, OTHER]


def test_an_older_index_is_waited_for_until_each_of_its_pictures_is_settled(pictures: Library) -> None:
    assert _waited_for(pictures)
    for one, status in zip(pictures.media, ("ok", "empty", "refused"), strict=True):
        assert _waited_for(pictures)
        pictures.embed([one], OTHER, status=status)
    assert not _waited_for(pictures)


def test_a_failure_that_is_tried_again_is_waited_for_and_a_last_one_is_not(pictures: Library) -> None:
    pictures.embed(pictures.media, OTHER, status="failed")
    assert not _waited_for(pictures)
    with pictures.catalog.write() as conn:
        again = t.features.update().where(t.features.c.recipe == OTHER)
        conn.execute(again.values(next_attempt_at=now(conn) + timedelta(hours=1)))
    assert _waited_for(pictures)


def test_newer_and_vanished_pictures_are_not_waited_for(pictures: Library) -> None:
    first, second, third = pictures.media
    pictures.embed([first], OTHER)
    pictures.set_state(second, "missing")
    pictures.change(third, [pictures.picture()])
    pictures.add()
    assert not _waited_for(pictures)
    pictures.set_state(second, "present")
    assert _waited_for(pictures)


def test_a_retired_index_is_gone_and_its_vectors_are_kept(pictures: Library) -> None:
    with pictures.catalog.read() as conn:
        before = index.manifest(conn, pictures.sources["photos"].id, RECIPE)
    assert before is not None
    assert _retire(pictures)
    with pictures.catalog.read() as conn:
        assert index.manifest(conn, pictures.sources["photos"].id, RECIPE) is None
        assert conn.execute(sa.select(sa.func.count()).select_from(t.index_members)).scalar_one() == 0
        named = set(conn.execute(sa.select(t.objects.c.key)).scalars())
    assert not named & {entry.key for entry in before.segments}
    query = pictures.vector()
    pictures.agrees(query)  # from the recorded vectors
    assert pictures.build().added == 3
    pictures.agrees(query)


def test_other_indexes_stay_when_one_is_retired(pictures: Library) -> None:
    pictures.embed(pictures.media, OTHER)
    pictures.build(recipe=OTHER)
    theirs = pictures.add("scans")
    pictures.embed([theirs])
    pictures.build("scans")
    assert _retire(pictures)
    query = pictures.vector()
    pictures.agrees(query, recipe=OTHER, names=("photos",))
    pictures.agrees(query, names=("scans",))
    with pictures.catalog.read() as conn:
        for source, recipe in (("photos", OTHER), ("scans", RECIPE)):
            assert index.manifest(conn, pictures.sources[source].id, recipe) is not None


def test_an_index_that_is_being_built_is_not_retired(pictures: Library) -> None:
    with pictures.catalog.write() as conn:
        lease = leases.acquire(conn, index.lease_name("photos", RECIPE), "worker", 60)
    assert lease is not None
    assert not _retire(pictures)
    assert _older(pictures) == [RECIPE]
    with pictures.catalog.write() as conn:
        leases.release(conn, lease)
    assert _retire(pictures)
    assert _older(pictures) == []
