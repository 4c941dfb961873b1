"""Looking takes a share of the time at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.cli.pacing import rest


@given(took=st.floats(0, 1e6), share=st.floats(0.01, 1), at_least=st.floats(0, 1e3))
def test_a_look_and_its_rest_keep_to_the_share(took: float, share: float, at_least: float) -> None:
    waited = rest(took, share=share, at_least=at_least)
    assert waited >= at_least
    assert took <= (took + waited) * share * (1 + 1e-9)


def test_a_quick_look_is_repeated_as_often_as_is_wished_and_a_slow_one_is_not() -> None:
    assert rest(0.01, share=0.5, at_least=2.0) == 2.0
    assert rest(45.0, share=0.5, at_least=2.0) == 45.0
    assert rest(45.0, share=0.05, at_least=0.0) == pytest.approx(855.0)
