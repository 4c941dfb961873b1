"""How many pictures a change of a recipe concerns, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from search.picture_library import OTHER, RECIPE, Library

from mirror_realm_assets.catalog import changing
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.changing import Counts
from mirror_realm_assets.catalog.engine import Catalog


@pytest.fixture
def pictures(catalog: Catalog, tmp_path: Path) -> Library:
    return Library(tmp_path, names=("photos", "scans"), catalog=catalog)


def counted(pictures: Library, recipe: str = RECIPE, **limits: object) -> Counts:
    with pictures.catalog.read() as conn:
        return changing.count(conn, pictures.sources["photos"].id, "embeddings", recipe, **limits)  # type: ignore[arg-type]


def test_a_picture_counts_once_and_is_left_until_the_recipe_has_settled_it(pictures: Library) -> None:
    twice = pictures.picture()
    first, second = pictures.add(images=[twice]), pictures.add(images=[twice, pictures.picture()])
    pictures.add(source="scans")
    assert counted(pictures) == Counts(pictures=2, left=2, pixels=2)
    pictures.embed([first, second])
    assert counted(pictures) == Counts(pictures=2, left=0, pixels=0)
    assert counted(pictures, OTHER) == Counts(pictures=2, left=2, pixels=2)


def test_a_failure_that_is_tried_again_is_left_and_a_final_one_is_not(pictures: Library) -> None:
    pictures.embed([pictures.add()])
    with pictures.catalog.write() as conn:
        conn.execute(t.features.update().values(status="failed", next_attempt_at=None))
    assert counted(pictures).left == 0
    with pictures.catalog.write() as conn:
        conn.execute(t.features.update().values(next_attempt_at=t.features.c.updated_at))
    assert counted(pictures).left == 1


def test_what_is_gone_too_large_or_no_still_is_not_wanted(pictures: Library) -> None:
    gone, away = pictures.add(), pictures.add()
    pictures.set_state(gone, "deleted")
    pictures.set_state(away, "missing")  # a drive may be unplugged
    pictures.add(images=[pictures.picture(), pictures.picture()])
    assert counted(pictures).pictures == 3
    assert counted(pictures, stills_only=True).pictures == 2
    with pictures.catalog.write() as conn:
        conn.execute(t.parts.update().where(t.parts.c.kind == "frame").values(width=100_000, height=100_000))
    assert counted(pictures).pixels == 10_000_000_002
    assert counted(pictures, max_pixels=10).pictures == 2


def test_nothing_known_is_nothing(pictures: Library) -> None:
    assert counted(pictures) == Counts(0, 0, 0)
