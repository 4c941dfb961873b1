"""What an export can take is asked a page at a time, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from library import ENHANCE, Library, content, digest_of

from mirror_realm_assets.catalog import exports, features, sidecars
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.exports import Picture
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.sidecars import Reading, Seen
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import Recipe


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)


def pictures(library: Library, source: Source) -> dict[str, Picture]:
    return {found.digest: found for found in exports.pictures(library.catalog, source.id, ENHANCE)}


def enhance(library: Library, text: str, code: str) -> str:
    recipe = Recipe(ENHANCE, code)
    key = FeatureKey(content(text).parts[0].image_digest, 0, ENHANCE, recipe.digest)
    with library.catalog.write() as conn:
        features.write(conn, key, recipe, Finding("ok", {"key": code, "sha256": "", "bytes": 1}))
    return recipe.digest


def say(library: Library, source: Source, path: bytes, **facts: object) -> None:
    with library.catalog.write() as conn:
        sidecars.note(conn, source.id, [Seen(path, 1, 1)])
        (row,) = conn.execute(sa.select(t.sidecars.c.id).where(t.sidecars.c.path == path)).scalars()
        sidecars.record(conn, [Reading(row, "read", 1, 1, facts)])


def test_every_picture_comes_once_with_its_places_and_what_was_made(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_PAGE", 2)
    source, other = library.source(), library.source("other", b"/other")
    for n in range(5):
        library.read(source, f"{n}.jpg".encode(), f"number {n}")
    library.read(source, b"\xff/b.jpg", "number 0")
    library.read(other, b"c.jpg", "number 0")
    library.identify(source, b"4.jpg", content("no picture", parts=0))
    old, new = enhance(library, "number 1", "old"), enhance(library, "number 1", "new")
    found = pictures(library, source)
    assert set(found) == {digest_of(f"number {n}") for n in range(4)}
    assert [place.path for place in found[digest_of("number 0")].places] == [b"0.jpg", b"\xff/b.jpg"]
    assert [made.recipe for made in found[digest_of("number 1")].made] == [new, old]
    assert set(pictures(library, other)) == {digest_of("number 0")}


def test_what_is_deleted_is_not_there_and_what_is_away_is(library: Library) -> None:
    source = library.source()
    for state in ("present", "missing", "unreadable", "deleted", "ignored"):
        library.read(source, f"{state}.jpg".encode(), state)
        with library.catalog.write() as conn:
            place = t.locations.c.path == f"{state}.jpg".encode()
            conn.execute(t.locations.update().where(place).values(state=state))
    assert set(pictures(library, source)) == {digest_of(state) for state in ("present", "missing", "unreadable")}


def test_sidecars_are_those_of_its_places(library: Library) -> None:
    source = library.source()
    library.read(source, b"x/a.jpg", "a")
    library.read(source, b"y/a.jpg", "a")
    library.read(source, b"x/b.jpg", "b")
    say(library, source, b"x/a.jpg.json", title="google")
    say(library, source, b"x/a.xmp", title="xmp")
    say(library, source, b"y/a.jpg.xmp", title="the other place")
    found = pictures(library, source)
    said = [(kind, values["title"]) for kind, values in found[digest_of("a")].said]
    assert said == [("takeout", "google"), ("xmp", "xmp"), ("xmp", "the other place")]
    assert found[digest_of("b")].said == []
