"""Tiles cover a picture exactly once and never leave it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_realm_assets.enhance.tiling import SMALLEST_TILE, largest_tile, overhead, plan

SIDES = st.integers(1, 300)
TILES = st.integers(8, 400)
# A plan of a thousand tiles takes a while on a busy machine, and how long does not matter here.
unhurried = settings(deadline=None)


@unhurried
@given(height=SIDES, width=SIDES, tile=st.none() | TILES, halo=st.integers(0, 80))
def test_cores_cover_every_pixel_exactly_once(height: int, width: int, tile: int | None, halo: int) -> None:
    count = np.zeros((height, width), int)
    for piece in plan(height, width, tile=tile, halo=halo):
        core = piece.core
        count[core.top : core.bottom, core.left : core.right] += 1
    assert (count == 1).all()


@unhurried
@given(height=SIDES, width=SIDES, tile=TILES, halo=st.integers(0, 80))
def test_padding_is_a_whole_halo_or_ends_at_the_border(height: int, width: int, tile: int, halo: int) -> None:
    for piece in plan(height, width, tile=tile, halo=halo):
        core, padded = piece.core, piece.padded
        assert padded.top == max(0, core.top - halo)
        assert padded.left == max(0, core.left - halo)
        assert padded.bottom == min(height, core.bottom + halo)
        assert padded.right == min(width, core.right + halo)


@unhurried
@given(height=SIDES, width=SIDES, tile=TILES)
def test_cores_are_equal_within_a_pixel_and_at_most_the_tile(height: int, width: int, tile: int) -> None:
    cores = [piece.core for piece in plan(height, width, tile=tile)]
    for sides in ([core.height for core in cores], [core.width for core in cores]):
        assert max(sides) - min(sides) <= 1
        assert max(sides) <= tile


@unhurried
@given(height=SIDES, width=SIDES, max_pixels=st.integers(1, 90_000), halo=st.integers(0, 60))
def test_the_largest_tile_fits_or_is_the_smallest_there_is(height: int, width: int, max_pixels: int, halo: int) -> None:
    tile = largest_tile(height, width, max_pixels=max_pixels, halo=halo)
    largest = max(piece.padded.pixels for piece in plan(height, width, tile=tile, halo=halo))
    assert largest <= max_pixels or tile == SMALLEST_TILE


def test_a_tile_may_be_a_single_pixel() -> None:
    assert len(plan(3, 2, tile=1, halo=1)) == 6


def test_a_picture_that_fits_is_one_tile_without_overhead() -> None:
    tile = largest_tile(1080, 1920, max_pixels=1080 * 1920)
    assert len(plan(1080, 1920, tile=tile)) == 1
    assert overhead(plan(1080, 1920, tile=tile)) == 1.0


def test_full_hd_in_four_tiles_costs_two_ninths_more() -> None:
    assert overhead(plan(1080, 1920, tile=960)) == pytest.approx(1.218, abs=0.001)


@pytest.mark.parametrize(("height", "tile", "halo"), [(0, 8, 0), (8, 0, 0), (8, 8, -1)])
def test_sizes_that_make_no_sense_are_refused(height: int, tile: int, halo: int) -> None:
    with pytest.raises(ValueError, match="cannot tile"):
        plan(height, 8, tile=tile, halo=halo)
