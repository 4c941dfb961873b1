"""Options of a source: names, types, precedence."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.catalog.policy import SourcePolicy, check_source_name, parse_options, parse_policy
from mirror_realm_assets.errors import SetupError

VALUES = {
    "enhance": st.booleans(),
    "enhance.model": st.text(max_size=8),
    "enhance.outscale": st.floats(0.5, 8),
    "enhance.max_pixels": st.integers(1, 10**9),
    "enhance.format": st.sampled_from(["png", "jpeg", "webp"]),
    "originals": st.sampled_from(["reference", "copy"]),
    "embedder": st.text(max_size=8),
    "faces": st.booleans(),
    "watch": st.sampled_from(["auto", "native", "poll"]),
    "ignore": st.lists(st.text(max_size=8), max_size=3),
    "budget.device_seconds_day": st.none() | st.floats(1, 1e6),
    "budget.bytes_day": st.none() | st.integers(1, 10**12),
    "budget.read_mb_s": st.none() | st.floats(1, 1e6),
    "quiet_hours": st.none() | st.sampled_from(["23:00-06:30", "00:00-23:59"]),
}
options = st.fixed_dictionaries({}, optional=VALUES)


@given(options)
def test_a_policy_survives_being_stored(given_options) -> None:
    policy = parse_policy(given_options)
    assert parse_policy(json.loads(json.dumps(policy.as_options()))) == policy
    assert set(policy.as_options()) <= set(given_options)


@given(options, options, st.none() | options)
def test_the_last_override_of_an_option_wins(source, node, request) -> None:
    merged = parse_policy(source).merged(node, request)
    assert merged == parse_policy({**source, **node, **(request or {})})


def test_an_override_can_go_back_to_the_default() -> None:
    assert parse_policy({"enhance": False}).merged({"enhance": True}) == SourcePolicy()
    assert parse_policy({"budget.bytes_day": 5}).merged({"budget.bytes_day": None}) == SourcePolicy()


@given(options, st.text(min_size=1).filter(lambda name: name not in VALUES))
def test_an_unknown_option_is_named_with_those_there_are(given_options, name) -> None:
    with pytest.raises(SetupError) as caught:
        parse_policy({**given_options, name: "1"})
    assert caught.value.code == "invalid_argument"
    assert "enhance.max_pixels" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enhance", "perhaps"),
        ("enhance.outscale", "9"),
        ("enhance.outscale", "nan"),
        ("enhance.max_pixels", "0"),
        ("enhance.max_pixels", "many"),
        ("enhance.format", "gif"),
        ("originals", "move"),
        ("watch", "always"),
        ("budget.bytes_day", "-1"),
        ("budget.read_mb_s", "inf"),
        ("quiet_hours", "24:00-06:00"),
        ("quiet_hours", "at night"),
        ("enhance_max_pixels", "5"),
    ],
)
def test_a_wrong_value_is_refused_and_its_option_named(name: str, value: str) -> None:
    with pytest.raises(SetupError) as caught:
        parse_policy(parse_options([f"{name}={value}"]))
    assert caught.value.code == "invalid_argument"
    assert repr(name) in caught.value.message


def test_words_of_the_command_line_become_options() -> None:
    words = ["enhance=false", "enhance.max_pixels=5", "ignore=*.bak", "ignore=old/*=x", "embedder="]
    policy = parse_policy(parse_options(words))
    assert (policy.enhance, policy.enhance_max_pixels, policy.embedder) == (False, 5, "")
    assert policy.ignore == ("*.bak", "old/*=x")
    with pytest.raises(SetupError, match="key=value"):
        parse_options(["enhance"])


@pytest.mark.parametrize("name", ["a", "0", "my-photos", "a" * 40])
def test_names_of_the_grammar_are_taken(name: str) -> None:
    assert check_source_name(name) == name


@pytest.mark.parametrize("name", ["", "-", "a-", "-a", "A", "a_b", "a.b", "a" * 41, "a\n", "ä", "a/b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SetupError, match="no source name"):
        check_source_name(name)


@pytest.mark.parametrize(
    ("hours", "quiet", "loud"),
    [
        ("23:00-06:30", ("23:00", "03:00", "06:29"), ("06:30", "12:00", "22:59")),
        ("08:00-18:00", ("08:00", "12:00", "17:59"), ("18:00", "00:00", "07:59")),
    ],
)
def test_quiet_hours_go_over_midnight(hours, quiet, loud):
    policy = parse_policy({"quiet_hours": hours})
    for clock in quiet + loud:
        at = datetime.fromisoformat(f"2026-03-04T{clock}:00")
        assert policy.is_quiet(at) is (clock in quiet)
    assert not parse_policy({}).is_quiet(at)
