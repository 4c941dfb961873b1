"""Estimates are plain arithmetic over measured rates."""

from __future__ import annotations

import pytest

from mirror_realm_assets.enhance.estimate import estimate_seconds, seconds_per_megapixel


def test_native_bf16_is_reckoned_faster_than_fp32_and_a_gpu_faster_than_both() -> None:
    fp32 = seconds_per_megapixel("realesrgan-x4plus", "fp32")
    amx = seconds_per_megapixel("realesrgan-x4plus", "bf16", flags=frozenset({"amx_bf16"}))
    bf16 = seconds_per_megapixel("realesrgan-x4plus", "bf16")
    gpu = seconds_per_megapixel("realesrgan-x4plus", "fp16", "cuda")
    assert fp32 > 2 * bf16 > 2 * amx > 2 * gpu


def test_an_estimate_adds_tiles_and_the_work_of_each_picture() -> None:
    assert estimate_seconds(2_000_000, 100.0) == 200.5
    assert estimate_seconds(2_000_000, 100.0, overhead=1.5, pictures=4, seconds_per_picture=1.0) == 304.0
    assert estimate_seconds(0, 100.0, pictures=0) == 0.0


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        estimate_seconds(-1, 100.0)
