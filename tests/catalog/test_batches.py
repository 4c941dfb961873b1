"""Forming batches and what is pending, computed from the ledger alone."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa
from library import EMBED, ENHANCE, RAW, Library, seen

from mirror_realm_assets.catalog import batches, items, leases, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch, NewItem, PendingBatch
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.forming import source_of

SEARCH = (RAW, EMBED)


def _pending(library: Library, lane: str = "search", features: tuple[str, ...] = SEARCH, **how) -> list[PendingBatch]:
    with library.catalog.read() as conn:
        return batches.pending(conn, lane, features, **how)


def _keys(library: Library, **how) -> list[str]:
    return [batch.key for batch in _pending(library, **how)]


def _batch(library: Library, name: str = "photos", **options) -> tuple[sources.Source, Batch]:
    source = library.source(name, b"/" + name.encode())
    library.sight(source, seen(b"a", "one"))
    return source, library.form(source, b"a", **options)


def _settle_all(library: Library, batch: Batch, *features: str) -> None:
    c = t.batch_items.c
    with library.catalog.write() as conn:
        done = {"state": "settled", "settled_at": now(conn), "outcome": "ok"}
        conn.execute(t.batch_items.update().where(c.batch_id == batch.id, c.feature.in_(features)).values(**done))


def test_a_formed_batch_is_found_again_with_all_it_was_given(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "one"), seen(b"b", "two!"))
    with library.catalog.write() as conn:
        deadline = now(conn) + timedelta(hours=1)
        new = [NewItem(location_id=library.location(source, path)["id"], size=5) for path in (b"b", b"a")]
        formed = batches.form(
            conn, source, new, SEARCH, kind="request", seconds=7.5, request={"enhance": False}, deadline=deadline
        )
        assert batches.get(conn, formed.key) == formed
        assert batches.get(conn, "photos.20200101T000000.0001") is None
    assert source_of(formed.key) == "photos"
    assert (formed.items, formed.bytes, formed.priority, formed.deadline) == (
        2,
        10,
        batches.PRIORITY["request"],
        deadline,
    )
    works = library.open_work(formed, source)
    assert [(work.n, work.subject.path, work.feature) for work in works] == [
        (0, b"b", RAW),
        (0, b"b", EMBED),
        (1, b"a", RAW),
        (1, b"a", EMBED),
    ]


def test_a_batch_of_nothing_is_not_formed(library: Library) -> None:
    source = library.source()
    for new, features in (([], SEARCH), ([NewItem(location_id=1)], ())):
        with pytest.raises(ValueError, match="at least one"), library.catalog.write() as conn:
            batches.form(conn, source, new, features)
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(t.batches.c.id)).first() is None


def test_eight_formers_at_once_get_eight_numbers(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "one"))
    formed: list[Batch] = []
    start = threading.Barrier(8)

    def form() -> None:
        start.wait()
        formed.append(library.form(source, b"a"))

    threads = [threading.Thread(target=form) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({batch.key for batch in formed}) == 8
    assert sorted(int(batch.key.rpartition(".")[2]) for batch in formed) == list(range(1, 9))


def test_a_number_is_given_back_with_a_transaction_that_fails(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "one"))
    location_id = library.location(source, b"a")["id"]
    with pytest.raises(RuntimeError), library.catalog.write() as conn:
        batches.form(conn, source, [NewItem(location_id=location_id)], SEARCH)
        raise RuntimeError
    assert library.form(source, b"a").key.endswith(".0001")


def test_pending_is_most_urgent_first_and_asking_changes_nothing(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "one"))
    kinds = ["recompute", "ingest", "request", "retry", "ingest"]
    formed = {n: library.form(source, b"a", kind=kind).key for n, kind in enumerate(kinds)}
    expected = [formed[n] for n in (2, 1, 4, 3, 0)]
    assert _keys(library) == expected
    assert _keys(library) == expected


def test_a_batch_is_pending_until_its_items_of_the_lane_are_settled(library: Library) -> None:
    source, batch = _batch(library)
    assert [(p.key, p.open_items, p.attempt, p.source) for p in _pending(library)] == [(batch.key, 2, 0, "photos")]
    _settle_all(library, batch, RAW)
    assert [p.open_items for p in _pending(library)] == [1]
    _settle_all(library, batch, EMBED)
    assert _pending(library) == []
    with library.catalog.read() as conn:
        assert not batches.has_open(conn, source.id, SEARCH)
        assert batches.has_open(conn, source.id, [ENHANCE])


def test_a_later_lane_waits_for_the_one_before(library: Library) -> None:
    _source, batch = _batch(library)
    how = {"lane": "enhance", "features": (ENHANCE,), "after": SEARCH}
    assert _keys(library, **how) == []
    _settle_all(library, batch, *SEARCH)
    assert _keys(library, **how) == [batch.key]


def test_a_paused_source_has_nothing_pending_unless_asked_for(library: Library) -> None:
    source, batch = _batch(library)
    _other, kept = _batch(library, "other")
    with library.catalog.write() as conn:
        sources.set_state(conn, "photos", "paused", "systemic: weights are missing")
    assert _keys(library) == [kept.key]
    assert _keys(library, active_only=False, source_id=source.id) == [batch.key]
    with library.catalog.write() as conn:
        sources.set_state(conn, "photos", "active")
    assert _keys(library, source_id=source.id) == [batch.key]


def test_a_leased_batch_says_so_in_its_own_lane_only(library: Library) -> None:
    _source, batch = _batch(library)
    with library.catalog.write() as conn:
        lease = leases.acquire(conn, batches.lease_name(batch.key, "search"), "worker", 60)
        assert lease is not None
    assert [p.leased for p in _pending(library)] == [True]
    assert [p.leased for p in _pending(library, "enhance", (ENHANCE,))] == [False]
    with library.catalog.write() as conn:
        leases.release(conn, lease)
    assert [p.leased for p in _pending(library)] == [False]
    with library.catalog.write() as conn:
        assert leases.acquire(conn, lease.name, "worker", -1) is not None
    assert [p.leased for p in _pending(library)] == [False]


def test_a_batch_is_due_when_its_first_item_is(library: Library) -> None:
    _batch(library, of=[RAW, EMBED])
    with library.catalog.write() as conn:
        soon, late = now(conn) + timedelta(minutes=1), now(conn) + timedelta(minutes=9)
        ids = conn.execute(sa.select(t.batch_items.c.id).order_by(t.batch_items.c.id)).scalars().all()
        for item_id, due in zip(ids, (soon, late), strict=True):
            conn.execute(t.batch_items.update().where(t.batch_items.c.id == item_id).values(not_before=due))
    assert [p.not_before for p in _pending(library)] == [soon]
    with library.catalog.write() as conn:
        conn.execute(t.batch_items.update().where(t.batch_items.c.id == ids[0]).values(not_before=None))
    assert [p.not_before for p in _pending(library)] == [None]


def _bump(library: Library, batch: Batch, expected: int, *, failed: bool) -> PendingBatch:
    with library.catalog.write() as conn:
        batches.bump_attempt(conn, batch.id, "search", expected, failed=failed)
    return _pending(library)[0]


def test_a_run_that_ended_is_counted_once_however_often_it_is_seen(library: Library) -> None:
    _source, batch = _batch(library)
    assert _bump(library, batch, 0, failed=False).attempt == 1
    assert _bump(library, batch, 0, failed=False).attempt == 1
    assert _bump(library, batch, 5, failed=True).attempt == 1
    assert _bump(library, batch, 1, failed=False).attempt == 2


def test_failed_runs_back_off_and_a_good_one_ends_that(library: Library) -> None:
    _source, batch = _batch(library)
    waits = []
    for attempt in range(8):
        due = _bump(library, batch, attempt, failed=True).not_before
        assert due is not None
        with library.catalog.read() as conn:
            waits.append(round((due - now(conn)).total_seconds()))
    assert all(
        abs(found - wanted) <= 2 for found, wanted in zip(waits, [10, 20, 40, 80, 160, 320, 640, 900], strict=True)
    )
    assert _bump(library, batch, 8, failed=False).not_before is None
    due = _bump(library, batch, 9, failed=True).not_before
    assert due is not None
    with library.catalog.read() as conn:
        assert (due - now(conn)).total_seconds() <= 10


def test_eight_ticks_that_see_the_same_run_count_it_once(library: Library) -> None:
    _source, batch = _batch(library)
    errors: list[Exception] = []
    start = threading.Barrier(8)

    def tick() -> None:
        start.wait()
        try:
            with library.catalog.write() as conn:
                batches.bump_attempt(conn, batch.id, "search", 0, failed=True)
                batches.note_run(conn, batch.id, "search", "run-1")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=tick) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _pending(library)[0].attempt == 1
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(t.batch_lanes.c.failures)).scalars().all() == [1]
        assert conn.execute(sa.select(t.batch_runs.c.run_id)).scalars().all() == ["run-1"]


def test_a_cancelled_batch_that_nobody_works_on_is_over_at_once(library: Library) -> None:
    source, batch = _batch(library)
    with library.catalog.write() as conn:
        batches.request_cancel(conn, batch.id)
        assert not batches.has_open(conn, source.id, (RAW, EMBED, ENHANCE))
    assert _pending(library) == []
    assert set(library.outcomes(batch).values()) == {("cancelled", "cancelled")}
    assert library.waiting(source) == [library.location(source, b"a")["id"]]


def test_a_running_item_of_a_cancelled_batch_is_ended_by_its_worker_or_by_the_next_run(library: Library) -> None:
    source, batch = _batch(library)
    running = [work for work in library.open_work(batch, source) if work.feature == RAW]
    with library.catalog.write() as conn:
        items.claim(conn, running, "worker", 60)
        batches.request_cancel(conn, batch.id)
    assert [p.open_items for p in _pending(library)] == [1]
    assert library.settle(batch, source) == []
    assert library.outcomes(batch)[0, RAW] == ("cancelled", "cancelled")
    assert _pending(library) == []
