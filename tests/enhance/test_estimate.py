"""Estimates are plain arithmetic over measured rates."""

from __future__ import annotations

import pytest

from mirror_realm_assets.enhance.estimate import estimate_seconds, seconds_per_megapixel
from mirror_realm_assets.weights.hardware import Precision
from mirror_realm_assets.weights.registry import MODELS, RELEASED


def test_native_bf16_is_reckoned_faster_than_fp32_and_a_gpu_faster_than_both() -> None:
    fp32 = seconds_per_megapixel("realesrgan-x4plus", "fp32")
    amx = seconds_per_megapixel("realesrgan-x4plus", "bf16", flags=frozenset({"amx_bf16"}))
    bf16 = seconds_per_megapixel("realesrgan-x4plus", "bf16")
    gpu = seconds_per_megapixel("realesrgan-x4plus", "fp16", "cuda")
    assert fp32 > 2 * bf16 > 2 * amx > 2 * gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_small_models_are_reckoned_faster_and_unknown_ones_like_x4plus(precision: Precision) -> None:
    names = ("realesr-animevideov3", "realesr-general-x4v3", "realesrgan-x4plus-anime", "realesrgan-x4plus")
    rates = [seconds_per_megapixel(name, precision) for name in names]
    assert rates == sorted(rates) and rates[0] * 20 < rates[-1]
    assert seconds_per_megapixel("somebody's", precision) == rates[-1]


def test_every_model_of_the_registry_has_a_rate_that_its_size_explains() -> None:
    for model in (*MODELS.values(), *RELEASED.values()):
        if model.purpose == "enhance":
            fast = model.architecture == "SRVGGNetCompact"
            assert (seconds_per_megapixel(model.name, "fp32") < 20) == fast


def test_an_estimate_adds_tiles_and_the_work_of_each_picture() -> None:
    assert estimate_seconds(2_000_000, 100.0) == 200.5
    assert estimate_seconds(2_000_000, 100.0, overhead=1.5, pictures=4, seconds_per_picture=1.0) == 304.0
    assert estimate_seconds(0, 100.0, pictures=0) == 0.0


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        estimate_seconds(-1, 100.0)
