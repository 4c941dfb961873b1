"""Which runs to ask for: a pure function of the pending batches and of Dagster's runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.catalog.batches import PendingBatch
from mirror_realm_assets.catalog.requests import Ended, decide, run_key

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def batch(n: int = 1, **values: Any) -> PendingBatch:
    known = {
        "id": n,
        "key": f"demo.20260101T000000.{n:04d}",
        "source": "demo",
        "lane": "search",
        "priority": 5,
        "attempt": 0,
        "estimate_seconds": 60.0,
        "open_items": 1,
        "not_before": None,
        "leased": False,
    }
    return PendingBatch(**(known | values))


pending_lists = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 3), st.floats(0, 10_000)), max_size=12
).map(
    lambda rows: [
        batch(n, leased=leased, not_before=LATER if waits else None, attempt=attempt, estimate_seconds=seconds)
        for n, (leased, waits, attempt, seconds) in enumerate(rows)
    ]
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[PendingBatch], set[str], dict[str, Ended], int]:
    pending = draw(pending_lists)
    keys = [found.key for found in pending]
    active = set(draw(st.lists(st.sampled_from(keys), max_size=6))) if keys else set()
    ended: dict[str, Ended] = {}
    for found in pending:
        how = draw(st.sampled_from(["succeeded", "failed", None]))
        if how:
            # Of this attempt, or of the one before, which says nothing about this one.
            attempt = found.attempt if draw(st.booleans()) else found.attempt - 1
            ended[f"{found.key}:{attempt}"] = how
    return pending, active, ended, draw(st.integers(0, 14))


@given(situations())
def test_only_free_batches_are_asked_for_in_order_and_within_the_room(
    situation: tuple[list[PendingBatch], set[str], dict[str, Ended], int],
) -> None:
    pending, active, ended, room = situation
    decision = decide(pending, active, ended, room=room)
    free = [
        found
        for found in pending
        if found.key not in active
        and not found.leased
        and found.not_before is None
        and f"{found.key}:{found.attempt}" not in ended
    ]
    assert [wish.batch for wish in decision.wishes] == free[:room]
    assert all(wish.run_key == f"{wish.batch.key}:{wish.batch.attempt}" for wish in decision.wishes)


@given(situations())
def test_an_ended_attempt_is_counted_with_how_it_ended_and_not_asked_for_again(
    situation: tuple[list[PendingBatch], set[str], dict[str, Ended], int],
) -> None:
    pending, active, ended, room = situation
    decision = decide(pending, active, ended, room=room)
    for found, failed in decision.ended:
        assert ended[run_key(found)] == ("failed" if failed else "succeeded")
        assert found.key not in active
        assert not found.leased
    assert not {f.key for f, _failed in decision.ended} & {wish.batch.key for wish in decision.wishes}


@given(situations())
def test_the_same_ledger_gives_the_same_decision_and_nothing_is_changed(
    situation: tuple[list[PendingBatch], set[str], dict[str, Ended], int],
) -> None:
    pending, active, ended, room = situation
    before = (list(pending), set(active), dict(ended))
    assert decide(pending, active, ended, room=room) == decide(pending, active, ended, room=room)
    assert (pending, active, ended) == before


@given(situations())
def test_every_batch_is_asked_for_ended_waiting_active_or_beyond_the_room(
    situation: tuple[list[PendingBatch], set[str], dict[str, Ended], int],
) -> None:
    pending, active, ended, _room = situation
    decision = decide(pending, active, ended, room=len(pending))
    elsewhere = sum(found.key in active for found in pending)
    assert len(decision.wishes) + len(decision.ended) + decision.leased + decision.backing_off + elsewhere == len(
        pending
    )


def test_a_run_may_take_five_times_its_estimate_and_at_least_half_an_hour() -> None:
    def limit(seconds: float, **options: float) -> int:
        (wish,) = decide([batch(estimate_seconds=seconds)], set(), {}, room=1, **options).wishes
        return wish.max_runtime

    assert limit(1) == 1800
    assert limit(3600) == 18_000
    assert limit(36_000, slice_seconds=1800) == 9000


def test_the_run_after_an_ended_one_has_another_run_key() -> None:
    first = batch(attempt=0)
    assert decide([first], set(), {run_key(first): "failed"}, room=1).wishes == []
    (wish,) = decide([batch(attempt=1)], set(), {run_key(first): "failed"}, room=1).wishes
    assert wish.run_key == f"{first.key}:1"
