"""Tiles leave no seam, however different pictures are: cut or whole, the result is the same within a level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from seam_pictures import SIDE, Picture, seam_pictures

from mirror_realm_assets.enhance.tiling import DEFAULT_HALO, plan
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.registry import MODELS

PICTURES = seam_pictures()
# A chirp up to the finest rings a picture can hold: what the network makes of one depends on all of them.
HARDEST = "rings"


@pytest.fixture(scope="module")
def small(models_dir: Path) -> Iterator[Upscaler]:
    with Upscaler(MODELS["realesr-animevideov3"], models_dir, device="cpu", precision="fp32", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def large(models_dir: Path) -> Iterator[Upscaler]:
    with Upscaler(MODELS["realesrgan-x4plus"], models_dir, device="cpu", precision="fp32", threads=2) as loaded:
        yield loaded


def worst(upscaler: Upscaler, picture: Picture, tile: int, halo: int) -> int:
    """Grey levels between the whole picture and its tiles."""
    whole, tiled = (upscaler.upscale(picture, tile=size, halo=halo).astype(int) for size in (SIDE, tile))
    return int(np.abs(whole - tiled).max())


def test_there_are_many_and_no_two_are_alike() -> None:
    assert len(PICTURES) >= 15
    assert len({picture.tobytes() for picture in PICTURES.values()}) == len(PICTURES)
    assert all(picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 for picture in PICTURES.values())


def test_the_small_model_sees_no_further_than_its_halo(small: Upscaler) -> None:
    """Eighteen convolutions reach 18 pixels: from there on, every bit is the same."""
    part = slice(32, 128)
    assert small.halo == 18
    assert max(tile.padded.height for tile in plan(96, 96, tile=32, halo=small.halo)) < 96
    for name, picture in PICTURES.items():
        assert worst(small, picture[part, part], 32, small.halo) == 0, name
    assert worst(small, PICTURES[HARDEST][part, part], 32, 2) > 1  # a halo that is too small is noticed


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in PICTURES if name != HARDEST])
def test_the_default_halo_leaves_at_most_one_level(large: Upscaler, name: str) -> None:
    assert large.halo == DEFAULT_HALO
    assert worst(large, PICTURES[name], 64, DEFAULT_HALO) <= 1


@pytest.mark.long
def test_even_the_hardest_picture_has_no_visible_seam(large: Upscaler) -> None:
    assert worst(large, PICTURES[HARDEST], 64, DEFAULT_HALO) <= 4
