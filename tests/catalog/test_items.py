"""Where each item of a batch stands: computed from the ledger, settled when nothing more will happen to it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from library import EMBED, ENHANCE, RAW, Library, content, seen

from mirror_realm_assets.catalog import batches, files, items, media, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch, NewItem
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.wants import State


@pytest.fixture
def source(library: Library) -> sources.Source:
    return library.source(**{"enhance.max_pixels": 2000})


@pytest.fixture
def batch(library: Library, source: sources.Source) -> Batch:
    library.sight(source, seen(b"a.jpg", "one"))
    return library.form(source, b"a.jpg")


def _states(library: Library, batch: Batch, source: sources.Source, **limits: float) -> dict[str, State]:
    return {work.feature: work.verdict.state for work in library.open_work(batch, source, **limits)}


def test_an_unread_file_has_only_its_bytes_to_be_read(library: Library, source: sources.Source, batch: Batch) -> None:
    assert _states(library, batch, source) == {RAW: State.PENDING, EMBED: State.BLOCKED, ENHANCE: State.BLOCKED}
    work = library.open_work(batch, source)[0]
    assert (work.subject.path, work.subject.size, work.subject.digest) == (b"a.jpg", 3, None)
    with pytest.raises(ValueError, match="not known"):
        _ = work.key
    assert len(library.settle(batch, source)) == 3
    assert set(library.outcomes(batch).values()) == {(None, None)}


def test_a_read_file_has_its_features_to_be_made(library: Library, source: sources.Source, batch: Batch) -> None:
    found = library.read_raw(source, b"a.jpg", "one")
    assert _states(library, batch, source) == {RAW: State.DONE, EMBED: State.PENDING, ENHANCE: State.PENDING}
    works = library.settle(batch, source)
    assert [(work.feature, work.key.image_digest) for work in works] == [
        (EMBED, found.parts[0].image_digest),
        (ENHANCE, found.parts[0].image_digest),
    ]
    assert library.outcomes(batch)[0, RAW] == ("ok", None)


def test_after_one_feature_only_what_can_have_changed_is_judged(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"a.jpg", "one"), seen(b"b.jpg", "two"))
    batch = library.form(source, b"a.jpg", b"b.jpg")
    found = [library.read_raw(source, path, text) for path, text in ((b"a.jpg", "one"), (b"b.jpg", "two"))]
    assert len(library.settle(batch, source, after=RAW)) == 4, "everything waits for the bytes"
    for each in found:
        library.find(each.parts[0].image_digest, EMBED)
        library.find(each.parts[0].image_digest, ENHANCE)
    assert library.settle(batch, source, after=EMBED) == []
    outcomes = library.outcomes(batch)
    assert [outcomes[n, EMBED] for n in (0, 1)] == [("ok", None)] * 2
    assert [outcomes[n, ENHANCE] for n in (0, 1)] == [(None, None)] * 2
    library.sight(source, seen(b"a.jpg", "another", mtime_ns=2))
    library.settle(batch, source, after=EMBED)
    outcomes = library.outcomes(batch)
    assert [outcomes[n, ENHANCE] for n in (0, 1)] == [("blocked", "changed_while_reading"), (None, None)]
    with library.catalog.write() as conn:
        conn.execute(t.batch_items.update().where(t.batch_items.c.n == 1).values(cancel_requested_at=now(conn)))
    assert library.settle(batch, source, after=EMBED) == []
    assert library.outcomes(batch)[1, ENHANCE] == ("cancelled", "cancelled")


def test_an_item_of_a_stage_that_is_no_more_is_settled_after_any_other(
    library: Library, source: sources.Source
) -> None:
    library.sight(source, seen(b"a.jpg", "one"))
    batch = library.form(source, b"a.jpg", of=(RAW, EMBED, "once"))
    library.read_raw(source, b"a.jpg", "one")
    library.settle(batch, source, after=EMBED)
    assert library.outcomes(batch)[0, "once"] == ("not_wanted", None)


def test_ok_and_empty_are_both_done(library: Library, source: sources.Source, batch: Batch) -> None:
    found = library.read_raw(source, b"a.jpg", "one")
    library.find(found.parts[0].image_digest, EMBED, "empty")
    library.find(found.parts[0].image_digest, ENHANCE, "ok")
    assert library.settle(batch, source) == []
    outcomes = library.outcomes(batch)
    assert [outcomes[0, feature] for feature in (RAW, EMBED, ENHANCE)] == [("ok", None), ("empty", None), ("ok", None)]
    with library.catalog.read() as conn:
        assert not batches.has_open(conn, source.id, (RAW, EMBED, ENHANCE))


def test_what_another_batch_made_is_not_made_again(library: Library, source: sources.Source, batch: Batch) -> None:
    found = library.read_raw(source, b"a.jpg", "one")
    library.find(found.parts[0].image_digest, EMBED)
    library.sight(source, seen(b"copy.jpg", "one"))
    library.identify(source, b"copy.jpg", content("one"))
    again = library.form(source, b"copy.jpg", of=[RAW, EMBED])
    assert library.settle(again, source) == []


def test_a_refused_place_ends_its_items_and_blocks_the_others(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    with library.catalog.write() as conn:
        files.location_failed(conn, library.location(source, b"a.jpg")["id"], "outside_root", "A link leads out.", None)
    assert library.settle(batch, source) == []
    outcomes = library.outcomes(batch)
    assert outcomes[0, RAW] == ("refused", "outside_root")
    assert outcomes[0, EMBED] == outcomes[0, ENHANCE] == ("blocked", "outside_root")


def test_a_corrupt_file_ends_its_items_and_leaves_its_neighbour(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"bad.jpg", "bad"), seen(b"good.jpg", "good"))
    batch = library.form(source, b"bad.jpg", b"good.jpg", of=[RAW, EMBED])
    broken = content("bad", parts=0)
    library.identify(source, b"bad.jpg", broken)
    library.find(broken.digest, RAW, "refused", code="corrupt")
    assert [(work.n, work.feature) for work in library.settle(batch, source)] == [(1, RAW), (1, EMBED)]
    assert library.outcomes(batch)[0, RAW] == ("refused", "corrupt")
    assert library.outcomes(batch)[0, EMBED] == ("blocked", "corrupt")


@pytest.mark.parametrize("state", ["missing", "ignored"])
def test_a_file_that_left_ends_its_items(library: Library, source: sources.Source, batch: Batch, state: str) -> None:
    library.sight(source, files.Sighting(state, b"a.jpg", 3, 1, code="hidden: .*"), generation=2)
    assert library.settle(batch, source) == []
    assert library.outcomes(batch)[0, RAW] == ("failed", "file_gone")
    library.sight(source, seen(b"a.jpg", "one"), generation=3)
    assert len(library.waiting(source)) == 1


def test_raising_a_limit_makes_what_it_refused_pending(library: Library, source: sources.Source, batch: Batch) -> None:
    found = content("one", width=100, height=6, parts=0)
    library.identify(source, b"a.jpg", found)
    library.find(found.digest, RAW, "refused", code="too_many_pixels", limits={"max_pixels": 500})
    assert _states(library, batch, source)[RAW] is State.DONE
    assert _states(library, batch, source, max_pixels=499)[RAW] is State.DONE
    assert _states(library, batch, source, max_pixels=501)[RAW] is State.PENDING


def test_a_place_with_too_many_bytes_is_taken_when_the_limit_is_raised(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    with library.catalog.write() as conn:
        files.location_failed(conn, library.location(source, b"a.jpg")["id"], "too_many_bytes", "Too large.", None)
    assert _states(library, batch, source, max_file_bytes=2)[RAW] is State.DONE
    assert _states(library, batch, source, max_file_bytes=3)[RAW] is State.PENDING


def test_a_failure_that_is_due_later_keeps_the_item_open_until_then(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    found = library.read_raw(source, b"a.jpg", "one")
    record = library.find(found.parts[0].image_digest, EMBED, "failed", code="out_of_memory")
    library.find(found.parts[0].image_digest, ENHANCE)
    assert _states(library, batch, source)[EMBED] is State.WAITING
    assert [work.feature for work in library.settle(batch, source)] == [EMBED]
    with library.catalog.read() as conn:
        pending = batches.pending(conn, "search", (RAW, EMBED))
    assert [batch.not_before for batch in pending] == [record.next_attempt_at]
    with library.catalog.write() as conn:
        conn.execute(t.features.update().values(next_attempt_at=now(conn) - timedelta(seconds=1)))
    assert [work.verdict.state for work in library.settle(batch, source)] == [State.PENDING]
    with library.catalog.read() as conn:
        assert [batch.not_before for batch in batches.pending(conn, "search", (RAW, EMBED))] == [None]


def test_a_place_that_failed_is_tried_again_when_it_is_due(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    location_id = library.location(source, b"a.jpg")["id"]
    for seconds, state in ((60, State.WAITING), (-1, State.PENDING)):
        with library.catalog.write() as conn:
            files.location_failed(conn, location_id, "io_error", "Gone.", now(conn) + timedelta(seconds=seconds))
        assert _states(library, batch, source)[RAW] is state
    with library.catalog.write() as conn:
        files.location_failed(conn, location_id, "io_error", "Gone.", None)
    assert library.settle(batch, source) == []
    assert library.outcomes(batch)[0, RAW] == ("failed", "io_error")


def test_a_failure_at_its_last_attempt_is_final(library: Library, source: sources.Source, batch: Batch) -> None:
    found = library.read_raw(source, b"a.jpg", "one")
    library.find(found.parts[0].image_digest, EMBED, "failed", code="store_corrupt")
    library.find(found.parts[0].image_digest, ENHANCE)
    assert library.settle(batch, source) == []
    assert library.outcomes(batch)[0, EMBED] == ("failed", "store_corrupt")


def test_a_picture_above_the_policys_pixels_is_not_wanted(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"big.jpg", "big"))
    batch = library.form(source, b"big.jpg")
    library.read_raw(source, b"big.jpg", "big", width=50, height=41)
    assert _states(library, batch, source)[ENHANCE] is State.NOT_WANTED
    library.settle(batch, source)
    assert library.outcomes(batch)[0, ENHANCE] == ("not_wanted", None)


def test_a_request_overrides_the_policy_for_its_batch_alone(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"big.jpg", "big"))
    asked = library.form(source, b"big.jpg", request={"enhance.max_pixels": 5000}, kind="request")
    usual = library.form(source, b"big.jpg")
    library.read_raw(source, b"big.jpg", "big", width=50, height=41)
    assert _states(library, asked, source)[ENHANCE] is State.PENDING
    assert _states(library, usual, source)[ENHANCE] is State.NOT_WANTED


def test_an_item_past_its_deadline_is_over(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"a.jpg", "one"))
    with library.catalog.read() as conn:
        at = now(conn)
    late = library.form(source, b"a.jpg", deadline=at - timedelta(seconds=1))
    early = library.form(source, b"a.jpg", deadline=at + timedelta(hours=1))
    assert library.settle(late, source) == []
    assert set(library.outcomes(late).values()) == {("failed", "deadline_exceeded")}
    assert len(library.settle(early, source)) == 3


def test_a_cancelled_batch_settles_whatever_is_left(library: Library, source: sources.Source, batch: Batch) -> None:
    library.read_raw(source, b"a.jpg", "one")
    library.settle(batch, source)
    with library.catalog.write() as conn:
        items.claim(conn, items.open_work(conn, batch, source, [], {}), "worker", 60)
        batches.request_cancel(conn, batch.id)
    assert library.settle(batch, source) == []
    outcomes = library.outcomes(batch)
    assert outcomes[0, RAW] == ("ok", None)  # what was done stays done
    assert outcomes[0, EMBED] == ("cancelled", "cancelled")


def test_claimed_items_are_running_and_released_ones_wait(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    with library.catalog.write() as conn:
        works = library_works = items.open_work(conn, batch, source, [], {})
        items.claim(conn, works[:2], "worker-1", 60)
    assert [(w.running, w.worker_id) for w in library.open_work(batch, source)] == [
        (True, "worker-1"),
        (True, "worker-1"),
        (False, None),
    ]
    with library.catalog.write() as conn:
        items.progress(conn, works[0].item_id, 0.5)
        items.release(conn, library_works)
    assert [work.running for work in library.open_work(batch, source)] == [False] * 3
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(t.batch_items.c.attempt).order_by(t.batch_items.c.id)).scalars().all() == [
            1,
            1,
            0,
        ]


def test_items_found_running_count_a_crash_each_and_wait_again(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    for crashes in (1, 2):
        with library.catalog.write() as conn:
            running = [work for work in items.open_work(conn, batch, source, [], {}) if work.feature == RAW]
            items.claim(conn, running, "dead", 60)
        with library.catalog.write() as conn:
            assert items.count_crashes(conn, batch.id, EMBED) == []
            assert items.count_crashes(conn, batch.id, RAW) == [running[0].item_id]
            assert items.count_crashes(conn, batch.id, RAW) == []
        work = library.open_work(batch, source)[0]
        assert (work.feature, work.crashes, work.running) == (RAW, crashes, False)


def test_every_part_of_a_file_is_work_and_its_bytes_are_read_once(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"book.tif", "book"))
    batch = library.form(source, b"book.tif", of=[RAW, EMBED])
    found = content("book", parts=3)
    library.identify(source, b"book.tif", found)
    works = library.open_work(batch, source)
    assert [(work.feature, work.subject.part) for work in works] == [(RAW, 0), (EMBED, 0), (EMBED, 1), (EMBED, 2)]
    assert works[0].key.image_digest == found.digest
    library.find(found.digest, RAW)
    library.find(found.parts[0].image_digest, EMBED)
    library.find(found.parts[1].image_digest, EMBED, "empty", part=1)
    assert {work.subject.part for work in library.settle(batch, source)} == {0, 1, 2}  # one part keeps the item open
    library.find(found.parts[2].image_digest, EMBED, "refused", part=2, code="corrupt")
    assert library.settle(batch, source) == []
    assert library.outcomes(batch)[0, EMBED] == ("refused", "corrupt")


def test_an_item_of_a_media_and_one_part_needs_no_place(library: Library, source: sources.Source) -> None:
    library.sight(source, seen(b"book.tif", "book"))
    media_id = library.identify(source, b"book.tif", content("book", parts=3))
    library.find(content("book").digest, RAW)
    with library.catalog.write() as conn:
        new = [NewItem(media_id=media_id, part=1), NewItem(media_id=media_id)]
        batch = batches.form(conn, source, new, [EMBED], kind="recompute")
    works = library.open_work(batch, source)
    assert [(work.n, work.subject.part, work.subject.path) for work in works] == [
        (0, 1, None),
        (1, 0, None),
        (1, 1, None),
        (1, 2, None),
    ]
    assert {work.verdict.state for work in works} == {State.PENDING}


def test_a_file_that_changes_while_its_batch_is_open_is_read_again(
    library: Library, source: sources.Source, batch: Batch
) -> None:
    library.read_raw(source, b"a.jpg", "one")
    library.sight(source, seen(b"a.jpg", "longer"), generation=2)
    assert _states(library, batch, source) == {RAW: State.PENDING, EMBED: State.BLOCKED, ENHANCE: State.BLOCKED}
    with library.catalog.write() as conn:
        media.record(conn, library.location(source, b"a.jpg")["id"], content("longer"))
    library.find(content("longer").digest, RAW)
    assert _states(library, batch, source)[EMBED] is State.PENDING
