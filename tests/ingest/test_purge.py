"""Deleted files: what was made of them is kept for a while, then purged; what another file needs stays."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
import sqlalchemy as sa
from ingest.test_cases import Library
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import intents, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.purge import Purged, purge


@pytest.fixture
def library(lab: Lab) -> Library:
    return Library(lab)


def gone_for(library: Library, days: float) -> None:
    """Let time pass for what is deleted."""
    at = t.locations.c.deleted_at
    with library.lab.catalog.write() as conn:
        rows = conn.execute(sa.select(t.locations.c.id, at).where(at.is_not(None))).all()
        for row in rows:
            conn.execute(
                t.locations.update().where(t.locations.c.id == row[0]).values(deleted_at=row[1] - timedelta(days))
            )


def features_of(library: Library) -> set[str]:
    with library.lab.catalog.read() as conn:
        return set(conn.execute(sa.select(t.features.c.image_digest)).scalars())


def objects(library: Library, kind: str) -> set[str]:
    with library.lab.catalog.read() as conn:
        return set(conn.execute(sa.select(t.objects.c.key).where(t.objects.c.kind == kind)).scalars())


def delete(library: Library, *names: str) -> None:
    for name in names:
        (library.lab.folder / name).unlink()
    library.work()
    library.work()
    assert {library.places()[name][1] for name in names} == {"deleted"}


def test_what_was_made_of_a_deleted_file_is_kept_for_a_while_and_then_goes(library: Library) -> None:
    for n, name in enumerate(("a.png", "b.png")):
        library.lab.picture(name, number=n)
    library.work()
    before, proxies = features_of(library), objects(library, "proxy")
    delete(library, "a.png")
    gone_for(library, 29)
    assert purge(library.lab.catalog, 30) == Purged()
    assert features_of(library) == before
    gone_for(library, 2)
    found = purge(library.lab.catalog, 30)
    objects_gone = proxies - objects(library, "proxy")
    assert (found.media, found.objects, len(objects_gone)) == (1, 1, 1)
    assert features_of(library) < before
    assert not intents.named_keys(library.lab.catalog, sorted(objects_gone))
    assert intents.named_keys(library.lab.catalog, sorted(proxies - objects_gone))
    assert purge(library.lab.catalog, 30) == Purged()
    assert library.counts() == {"ok": 1}


def test_a_file_that_returns_within_the_time_costs_nothing_and_after_it_is_computed_anew(library: Library) -> None:
    path = library.lab.picture("a.png")
    library.lab.picture("stays.png", number=1)
    kept = path.read_bytes()
    library.work()
    delete(library, "a.png")
    path.write_bytes(kept)
    assert library.work() <= 1
    assert [attempts for _digest, attempts in library.embedded()] == [1, 1]
    delete(library, "a.png")
    gone_for(library, 31)
    assert purge(library.lab.catalog, 30).media == 1
    assert len(library.embedded()) == 1
    media = library.places()["a.png"][0]
    path.write_bytes(kept)
    assert library.work() == 1
    assert library.places()["a.png"] == (media, "present")
    assert library.counts() == {"ok": 2}


def test_what_a_second_place_or_another_source_needs_stays(library: Library, tmp_path) -> None:
    path = library.lab.picture("a.png")
    (library.lab.folder / "copy.png").write_bytes(path.read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.png").write_bytes(path.read_bytes())
    library.lab.picture("stays.png", number=1)
    library.work()
    with library.lab.catalog.write() as conn:
        sources.add(conn, "other", str(other).encode(), {})
    library.work("other")
    before = features_of(library)
    delete(library, "a.png")
    gone_for(library, 31)
    assert purge(library.lab.catalog, 30).media == 0
    delete(library, "copy.png")
    gone_for(library, 31)
    found = purge(library.lab.catalog, 30)
    assert (found.media, found.features, found.objects) == (1, 0, 0)
    assert features_of(library) == before
    (other / "c.png").unlink()
    library.work("other")
    library.work("other")


def test_what_a_picture_with_other_metadata_shares_stays(library: Library) -> None:
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    for name, comment in (("a.jpg", b"one"), ("b.jpg", b"two")):
        data = io.BytesIO()
        picture.save(data, "JPEG", comment=comment)
        (library.lab.folder / name).write_bytes(data.getvalue())
    library.work()
    shared = objects(library, "proxy")
    assert len(shared) == 1
    delete(library, "a.jpg")
    gone_for(library, 31)
    found = purge(library.lab.catalog, 30)
    assert (found.media, found.features, found.objects) == (1, 1, 0)  # what says how its bytes were read
    assert objects(library, "proxy") == shared
    assert library.counts() == {"ok": 1}


def test_copies_that_we_kept_go_as_well(library: Library) -> None:
    library.lab.picture("a.png")
    library.lab.picture("stays.png", number=1)
    with library.lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"originals": "copy"})
    library.work()
    assert len(objects(library, "original")) == 2
    delete(library, "a.png")
    gone_for(library, 31)
    purge(library.lab.catalog, 30)
    assert len(objects(library, "original")) == 1
