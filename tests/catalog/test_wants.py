"""What is wanted and what of it is missing: properties over all pipelines, policies and records."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import (
    PartFacts,
    Recipe,
    Record,
    Rule,
    State,
    Want,
    failure_record,
    judge,
    missing,
    verdict,
    waiting_for,
    wanted,
)
from mirror_realm_assets.errors import REASONS

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
POLICY = SourcePolicy()
LIMIT_NAMES = ("max_pixels", "max_frames", "max_file_bytes")

limits = st.fixed_dictionaries({name: st.integers(0, 100) for name in LIMIT_NAMES})
times = st.integers(-3600, 3600).map(lambda seconds: NOW + timedelta(seconds=seconds))
records = st.one_of(
    st.builds(Record, st.sampled_from(["ok", "empty"])),
    st.builds(
        Record,
        st.just("refused"),
        st.just("too_many_pixels"),
        limits=st.none() | st.dictionaries(st.sampled_from(LIMIT_NAMES), st.integers(0, 100)),
    ),
    st.builds(
        Record,
        st.just("failed"),
        st.sampled_from(sorted(REASONS)),
        st.booleans(),
        st.integers(1, 9),
        st.integers(0, 3),
        st.none() | times,
    ),
)


def _rule(feature: str, needs: tuple[str, ...], version: str | None, max_pixels: int | None) -> Rule:
    return Rule(feature, needs, lambda _p: Recipe(feature, version) if version else None, lambda _p: max_pixels)


@st.composite
def pipelines(draw: st.DrawFn) -> list[Rule]:
    """Rules in dependency order, each needing any of those before it."""
    names = [f"f{n}" for n in range(draw(st.integers(1, 6)))]
    return [
        _rule(
            name,
            tuple(draw(st.lists(st.sampled_from(names[:n]), unique=True))) if n else (),
            draw(st.sampled_from(["1", "1", "1", None])),
            draw(st.none() | st.integers(1, 100)),
        )
        for n, name in enumerate(names)
    ]


facts = st.none() | st.builds(PartFacts, st.integers(1, 12), st.integers(1, 12))


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, Want], dict[str, Record]]:
    """Wants of a part, and what is recorded of them."""
    wants = wanted(draw(pipelines()), POLICY, draw(facts))
    return wants, draw(st.dictionaries(st.sampled_from(sorted(wants)), records))


@given(situations(), limits, limits)
def test_what_is_done_is_never_missing(situation, some, other) -> None:
    wants, known = situation
    for feature, found in judge(wants, known, NOW, some).items():
        if found.state is State.DONE and found.outcome in ("ok", "empty"):
            assert feature not in missing(wants, known, NOW + timedelta(days=9), other)


@given(situations(), limits, st.sampled_from(LIMIT_NAMES), st.integers(1, 100))
def test_raising_a_limit_never_takes_work_away_unless_it_reopens_what_that_needs(situation, before, name, by) -> None:
    wants, known = situation
    after = before | {name: before[name] + by}
    reopened = {
        feature
        for feature, record in known.items()
        if verdict(record, NOW, before).state is State.DONE and verdict(record, NOW, after).state is State.PENDING
    }
    assert all(known[feature].status == "refused" for feature in reopened)
    assert set(missing(wants, known, NOW, before)) <= set(missing(wants, known, NOW, after))


@given(pipelines(), facts, st.data())
def test_a_changed_recipe_makes_just_its_own_feature_missing(rules, shape, data) -> None:
    wants = wanted(rules, POLICY, shape)
    known = {feature: Record("ok") for feature, want in wants.items() if want.recipe}
    recorded = {(want.feature, want.recipe.digest): known[want.feature] for want in wants.values() if want.recipe}
    changed = data.draw(st.sets(st.sampled_from([rule.feature for rule in rules])))
    newer = [
        _rule(rule.feature, rule.needs, "2" if rule.recipe(POLICY) else None, rule.max_pixels(POLICY))
        if rule.feature in changed
        else rule
        for rule in rules
    ]
    now_wanted = wanted(newer, POLICY, shape)
    matching = {
        feature: recorded[feature, want.recipe.digest]
        for feature, want in now_wanted.items()
        if want.recipe and (feature, want.recipe.digest) in recorded
    }
    verdicts = judge(now_wanted, matching, NOW, {})
    unfinished = {feature for feature, found in verdicts.items() if found.state in (State.PENDING, State.BLOCKED)}
    assert unfinished == {feature for feature in changed if now_wanted[feature].recipe}


@given(situations(), limits)
def test_work_is_blocked_exactly_when_something_it_needs_is_unmet(situation, today) -> None:
    wants, known = situation
    verdicts = judge(wants, known, NOW, today)
    for feature, want in wants.items():
        unmet = [
            need
            for need in want.needs
            if not (verdicts[need].state is State.DONE and verdicts[need].outcome in ("ok", "empty"))
        ]
        alone = verdict(known.get(feature), NOW, today).state if want.recipe else State.NOT_WANTED
        if alone is State.PENDING:
            assert (verdicts[feature].state is State.BLOCKED) == bool(unmet)
            assert verdicts[feature].final == any(verdicts[need].final for need in unmet)
        else:
            assert verdicts[feature].state is alone


@given(situations(), limits, st.randoms(use_true_random=False))
def test_the_order_of_records_decides_nothing(situation, today, shuffler: random.Random) -> None:
    wants, known = situation
    shuffled = list(known.items())
    shuffler.shuffle(shuffled)
    assert judge(wants, dict(shuffled), NOW, today) == judge(wants, known, NOW, today)


@given(situations(), limits)
def test_every_feature_has_a_verdict_and_only_a_retry_has_a_time(situation, today) -> None:
    wants, known = situation
    verdicts = judge(wants, known, NOW, today)
    assert list(verdicts) == list(wants)
    for found in verdicts.values():
        assert (found.due is not None) == (found.state is State.WAITING)
        assert found.due is None or found.due > NOW
        assert not (found.final and found.state in (State.PENDING, State.WAITING))


@given(pipelines(), facts)
def test_nothing_is_wanted_above_its_pixels_and_the_reason_says_so(rules, shape) -> None:
    for rule in rules:
        want = wanted(rules, POLICY, shape)[rule.feature]
        limit = rule.max_pixels(POLICY)
        too_large = shape is not None and limit is not None and shape.pixels > limit
        assert (want.recipe is None) == (rule.recipe(POLICY) is None or too_large)
        assert (want.reason is None) == (want.recipe is not None)


@given(st.sampled_from(sorted(REASONS)), st.none() | records)
def test_a_failure_counts_the_failures_before_it_and_no_successes(code, previous) -> None:
    record = failure_record(code, previous, NOW)
    failed = previous is not None and previous.status == "failed"
    assert record.attempts == (previous.attempts + 1 if failed else 1)
    assert record.retryable == (record.next_attempt_at is not None)
    assert record.retryable == (record.attempts < REASONS[code].retry.max_attempts)


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.randoms(use_true_random=False),
)
def test_a_recipes_digest_knows_its_values_and_not_their_order(params, inputs, shuffler: random.Random) -> None:
    recipe = Recipe("f", "1", params, "m", inputs)
    shuffled = list(params.items())
    shuffler.shuffle(shuffled)
    assert Recipe("f", "1", dict(shuffled), "m", dict(reversed(inputs.items()))).digest == recipe.digest
    others = [
        replace(recipe, feature="g"),
        replace(recipe, code_version="2"),
        replace(recipe, model_digest=None),
        replace(recipe, params=dict(params) | {"new": 1, "newer": "1"}),
        replace(recipe, inputs=dict(inputs) | {"newest!": "1"}),
    ]
    assert len({other.digest for other in [recipe, *others]}) == 6


def test_what_waits_for_a_feature_is_found_through_others() -> None:
    def rule(name: str, *needs: str, after: tuple[str, ...] = ()) -> Rule:
        return Rule(name, needs, lambda _policy: Recipe(name, "1"), after=lambda _policy: after)

    rules = (rule("read"), rule("embed", "read"), rule("grow", "read"), rule("keep", "read", after=("grow",)))
    assert waiting_for(rules, POLICY, "read") == ["read", "embed", "grow", "keep"]
    assert waiting_for(rules, POLICY, "embed") == ["embed"]
    assert waiting_for(rules, POLICY, "grow") == ["grow", "keep"]
