"""Counts and listings: the same truth counted in SQL and told file by file, on both databases."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from library import EMBED, ENHANCE, LIMITS, RAW, RULES, Library, content, digest_of, seen

from mirror_realm_assets.catalog import batches, features, files, items, listing, media, sources, status
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.catalog.listing import FileRow
from mirror_realm_assets.catalog.media import Identified
from mirror_realm_assets.catalog.status import STATUSES

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def rows_of(library: Library, source: sources.Source) -> list[FileRow]:
    with library.catalog.read() as conn:
        return list(listing.of_source(conn, source, RULES, LIMITS))


def test_no_transaction_is_open_while_a_listed_row_is_used(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGE", 2)
    source = library.source()
    for number in range(5):
        library.read(source, b"%d.jpg" % number, str(number))
    library.sight(source, seen(b"unread.jpg", "x"))
    found = []
    for row in listing.in_pages(library.catalog, source, RULES, LIMITS):
        assert library.catalog.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        found.append(row)
    assert found == rows_of(library, source)
    assert len(found) == 6
    assert list(listing.in_pages(library.catalog, source, RULES, LIMITS, "...")) == []


def status_of(library: Library, source: sources.Source) -> status.SourceStatus:
    with library.catalog.read() as conn:
        return status.of_source(conn, sources.by_id(conn, source.id), RULES, LIMITS)


def counted(rows: list[FileRow]) -> dict[str, dict[str, int]]:
    """What `status` must say, by counting the listing.

    `raw_media` is counted by place, everything else by picture; a file that is gone is not counted, and a file that
    is no picture only under `raw_media`.
    """
    found = {rule.feature: Counter(dict.fromkeys(STATUSES, 0)) for rule in RULES}
    for row in rows:
        if row.location_state not in ("present", "unreadable"):
            continue
        raw = row.features[RAW]["status"]
        if row.part == 0:
            found[RAW][raw] += len(row.paths)
        for feature in (EMBED, ENHANCE):
            if raw not in ("refused", "failed"):
                found[feature][row.features[feature]["status"]] += 1
    return {feature: dict(counts) for feature, counts in found.items()}


class Mixture:
    """Files in every state that a library can be in, at random."""

    def __init__(self, library: Library, source: sources.Source, seed: int) -> None:
        self.library, self.source = library, source
        self.random = random.Random(seed)  # noqa: S311 - a mixture, no secret
        self.made = 0

    def add(self) -> None:
        self.made += 1
        name = b"%d.jpg" % self.made
        self.random.choice(
            [self.unread, self.unreadable, self.link, self.gone, self.refused, self.undecoded, self.changed]
            + 6 * [self.picture]  # most files are
        )(name)

    def unread(self, name: bytes) -> None:
        self.library.sight(self.source, seen(name, "unread"))

    def unreadable(self, name: bytes) -> None:
        self.unread(name)
        code = self.random.choice(["too_many_bytes", "empty_file", "io_error"])
        due = LATER if code == "io_error" and self.random.random() < 0.5 else None
        with self.library.catalog.write() as conn:
            files.location_failed(conn, self.library.location(self.source, name)["id"], code, "words", due)

    def link(self, name: bytes) -> None:
        self.library.sight(self.source, Sighting("ignored", name, code="outside_root"))

    def gone(self, name: bytes) -> None:
        self.picture(name, places=1)
        self.library.sight(self.source, Sighting("missing", name), generation=9)

    def changed(self, name: bytes) -> None:
        self.picture(name, places=1)
        self.library.sight(self.source, seen(name, "other bytes, unread", mtime_ns=2), generation=9)

    def refused(self, name: bytes) -> None:
        text = f"no picture {self.made}"
        self.library.sight(self.source, seen(name, text))
        self.library.identify(self.source, name, Identified(digest_of(text), len(text), 1))
        self.library.find(digest_of(text), RAW, "refused", code="corrupt")

    def undecoded(self, name: bytes) -> None:
        """Known by its bytes, and decoding it failed in our hands: it is tried again, or was for the last time."""
        text = f"undecoded {self.made}"
        self.library.sight(self.source, seen(name, text))
        self.library.identify(self.source, name, Identified(digest_of(text), len(text), 1))
        recipe = RULES[0].recipe(self.source.policy)
        assert recipe is not None
        with self.library.catalog.write() as conn:
            key = FeatureKey(digest_of(text), 0, RAW, recipe.digest)
            features.write(conn, key, recipe, Finding("failed", code="internal"), final=self.random.random() < 0.5)

    def picture(self, name: bytes, places: int = 2) -> None:
        text = f"picture {self.made}"
        width = self.random.choice([40, 40, 4000])  # the last is larger than the default policy enhances
        found = content(text, width=width, height=300, parts=self.random.choice([1, 1, 1, 3]))
        for place in [name, b"copy of " + name][: min(places, self.random.choice([1, 1, 2]))]:
            self.library.sight(self.source, seen(place, text))
            self.library.identify(self.source, place, found)
        self.library.find(found.digest, RAW)
        for part in found.parts:
            for feature in (EMBED, ENHANCE):
                self.record(part, feature)

    def record(self, part: media.Part, feature: str) -> None:
        how = self.random.choice(["ok", "ok", "empty", "failed", "retried", "refused", None])
        recipe = next(rule.recipe(sources.SourcePolicy()) for rule in RULES if rule.feature == feature)
        if how is None or recipe is None:
            return
        code = {"failed": "model_failed", "retried": "model_failed", "refused": "corrupt"}.get(how)
        finding = Finding("failed" if how == "retried" else how, code=code)
        key = FeatureKey(part.image_digest, part.part, feature, recipe.digest)
        with self.library.catalog.write() as conn:
            features.write(conn, key, recipe, finding, final=how == "failed")


@pytest.mark.parametrize("seed", range(4))
def test_the_counts_are_those_of_the_listing(library: Library, seed: int) -> None:
    source = library.source(enhance=bool(seed % 3))
    mixture = Mixture(library, source, seed)
    for _file in range(25):
        mixture.add()
    rows, found = rows_of(library, source), status_of(library, source)
    assert found.features == counted(rows)
    places: Counter[str] = Counter()
    for row in rows:
        if row.part == 0:
            places[row.location_state] += len(row.paths)
    assert found.locations == places
    assert found.files == places["present"] + places["unreadable"]


def test_a_picture_whose_reading_is_refused_now_is_blocked_and_not_pending_for_ever(library: Library) -> None:
    """It was read under an older recipe; under today's it is refused, so that nothing after it will ever run."""
    source = library.source()
    library.read(source, b"a.jpg", "one")
    library.find(digest_of("one"), RAW, "refused", code="decoder_crashed")
    (row,) = rows_of(library, source)
    assert {name: value["status"] for name, value in row.features.items()} == {
        RAW: "refused",
        EMBED: "blocked",
        ENHANCE: "blocked",
    }
    found = status_of(library, source)
    assert found.features[RAW]["refused"] == 1
    assert found.features[EMBED] == found.features[ENHANCE] == dict.fromkeys(STATUSES, 0)
    assert found.settled


def test_what_is_being_done_is_running_in_both(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"unread.jpg", "unread"))
    library.sight(source, seen(b"read.jpg", "read"))
    library.read_raw(source, b"read.jpg", "read")
    batch = library.form(source, b"unread.jpg", b"read.jpg")
    works = library.open_work(batch, source)
    begun = {(b"unread.jpg", RAW), (b"read.jpg", EMBED)}
    with library.catalog.write() as conn:
        items.claim(conn, [w for w in works if (w.subject.path, w.feature) in begun], "worker", 60)
    rows, found = rows_of(library, source), status_of(library, source)
    by_path = {row.paths[0]: {name: value["status"] for name, value in row.features.items()} for row in rows}
    assert by_path[b"unread.jpg"] == {RAW: "running", EMBED: "pending", ENHANCE: "pending"}
    assert by_path[b"read.jpg"] == {RAW: "ok", EMBED: "running", ENHANCE: "pending"}
    assert found.features == counted(rows)
    assert not found.settled


def test_a_failure_that_is_tried_again_is_pending_with_its_reason(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    found = library.read_raw(source, b"a.jpg", "one")
    library.find(found.parts[0].image_digest, EMBED, "failed", code="model_failed", reason="no luck")
    (row,) = rows_of(library, source)
    told = row.features[EMBED]
    assert (told["status"], told["code"], told["reason"], told["attempts"]) == (
        "pending",
        "model_failed",
        "no luck",
        1,
    )


def test_a_picture_too_large_for_the_policy_says_why(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    library.read_raw(source, b"a.jpg", "one", width=2000, height=2000)
    (row,) = rows_of(library, source)
    assert row.features[ENHANCE]["status"] == "not_wanted"
    assert "1000000" in row.features[ENHANCE]["reason"]
    assert (row.width, row.height, row.mime) == (2000, 2000, "image/jpeg")


def test_the_listing_names_every_place_of_a_media_in_raw_bytes(library: Library) -> None:
    source = library.source()
    for path in (b"b.jpg", b"\xff.jpg", b"a.jpg"):
        library.read(source, path, "one")
    (row,) = rows_of(library, source)
    assert row.paths == [b"a.jpg", b"b.jpg", b"\xff.jpg"]
    library.sight(source, Sighting("missing", b"a.jpg"), generation=9)
    assert rows_of(library, source)[0].location_state == "present"  # it is elsewhere still


def test_the_listing_pages_through_more_media_than_one_page(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGE", 3)
    source = library.source()
    for n in range(8):
        library.read(source, b"%d.jpg" % n, f"picture {n}")
    library.sight(source, seen(b"unread.jpg", "x"))
    rows = rows_of(library, source)
    assert rows[0].paths == [b"unread.jpg"]
    assert [row.paths for row in rows[1:]] == [[b"%d.jpg" % n] for n in range(8)]


def test_the_json_of_a_status_has_the_keys_of_the_contract(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    library.form(source, b"a.jpg")
    found = status_of(library, source).as_json()
    assert {"files", "bytes", "batches", "locations", "features", "index"} <= set(found)
    assert (found["files"], found["bytes"], found["batches"], found["locations"]) == (1, 3, 1, {"present": 1})
    assert set(found["features"]) == {RAW, EMBED, ENHANCE}
    for counts in found["features"].values():
        assert set(counts) == {"ok", "empty", "failed", "refused", "pending", "running", "not_wanted"}
    assert found["index"] == {"vectors": 0, "tombstones": 0, "segments": 0, "model": None, "recall_at_10": None}


def test_a_source_without_files_has_zeros(library: Library) -> None:
    found = status_of(library, library.source())
    assert (found.files, found.bytes, found.locations) == (0, 0, {})
    assert found.settled


def test_the_history_tells_versions_batches_and_runs(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    batch = library.form(source, b"a.jpg")
    library.read(source, b"a.jpg", "two", mtime_ns=2)
    (row,) = rows_of(library, source)
    with library.catalog.write() as conn:
        batches.note_run(conn, batch.id, "search", "run-1")
        ids = listing.places_of(conn, source.id, row.paths)
        found = listing.history(conn, row.media, ids)
    assert [version["digest"] for version in found["history"]] == [digest_of("one"), digest_of("two")]
    assert found["history"][0]["seen_to"] is not None
    assert found["history"][1]["seen_to"] is None
    (told,) = found["batches"]
    assert (told["key"], told["kind"]) == (batch.key, "ingest")
    assert [item["feature"] for item in told["items"]] == [RAW, EMBED, ENHANCE]
    assert [run["run_id"] for run in told["runs"]] == ["run-1"]
    assert told["runs"][0]["started_at"] - told["created_at"] < timedelta(minutes=1)
