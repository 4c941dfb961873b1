"""Cutting waiting files into batches, and the grammar of batch keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.catalog.forming import BatchLimits, Candidate, batch_key, cut, source_of

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)

candidates = st.lists(
    st.tuples(st.integers(0, 120), st.floats(0, 12), st.floats(0, 5)),
    max_size=90,
).map(
    lambda rows: [
        Candidate(n, size, seconds, NOW - timedelta(seconds=age)) for n, (size, seconds, age) in enumerate(rows)
    ]
)
limits = st.builds(BatchLimits, st.integers(1, 40), st.integers(1, 300), st.floats(0.5, 60), st.floats(0, 4))
names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@given(candidates, limits, st.booleans())
def test_every_candidate_stands_in_at_most_one_batch_and_the_order_is_kept(waiting, limit, busy) -> None:
    batches = cut(waiting, limit, NOW, busy=busy)
    flat = [candidate for batch in batches for candidate in batch]
    assert flat == waiting[: len(flat)]
    assert all(batches)


@given(candidates, limits, st.booleans())
def test_no_batch_is_over_a_limit_but_that_of_a_single_large_file(waiting, limit, busy) -> None:
    for batch in cut(waiting, limit, NOW, busy=busy):
        assert len(batch) <= limit.items
        if len(batch) > 1:
            assert sum(c.size for c in batch) <= limit.bytes
            assert sum(c.seconds for c in batch) <= limit.seconds


@given(candidates, limits)
def test_nothing_is_left_once_the_oldest_is_ripe(waiting, limit) -> None:
    ripe = any((NOW - c.waiting_since).total_seconds() >= limit.age for c in waiting)
    batches = cut(waiting, limit, NOW, busy=False)
    if ripe:
        assert sum(len(batch) for batch in batches) == len(waiting)
        assert not batches or len(batches[0]) <= 32


@given(candidates, limits)
def test_only_full_batches_are_cut_while_the_source_is_busy(waiting, limit) -> None:
    batches = cut(waiting, limit, NOW, busy=True)
    taken = 0
    for batch in batches:
        taken += len(batch)
        following = waiting[taken] if taken < len(waiting) else None
        full = len(batch) == limit.items or (
            following is not None
            and (
                sum(c.size for c in batch) + following.size > limit.bytes
                or sum(c.seconds for c in batch) + following.seconds > limit.seconds
            )
        )
        assert full
    rest = waiting[taken:]
    assert len(rest) < limit.items or not rest


@given(names, st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)), st.integers(1, 999_999))
def test_a_key_names_its_source_and_fits_a_label(source, at, seq) -> None:
    key = batch_key(source, at, seq)
    assert len(key) <= 63
    assert source_of(key) == source
    assert key.rpartition(".")[2] == f"{seq:04d}"


@pytest.mark.parametrize("source", ["", "a" * 41, "-a", "a-", "A", "a.b", "ä", "a b", "a\n"])
def test_a_name_outside_the_grammar_gives_no_key(source: str) -> None:
    with pytest.raises(ValueError, match="no batch key"):
        batch_key(source, NOW, 1)


def test_a_key_longer_than_a_label_is_refused() -> None:
    assert len(batch_key("a" * 40, NOW, 999_999)) == 63
    with pytest.raises(ValueError, match="no batch key"):
        batch_key("a" * 40, NOW, 1_000_000)


@given(st.text() | st.from_regex(r"\w{1,5}\.\d{8}T\d{6}\.\d{4}\n?"))
def test_what_is_no_key_has_no_source(text) -> None:
    try:
        source = source_of(text)
    except ValueError:
        return
    assert text.isascii()
    assert text.startswith(f"{source}.")
    assert "\n" not in text
