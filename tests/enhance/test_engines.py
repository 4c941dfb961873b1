"""Every model of the registry in our hands and in the package's, and what a strength of denoising does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mirror_realm_assets.catalog.policy import parse_policy
from mirror_realm_assets.enhance.engines import EngineName, open_engine
from mirror_realm_assets.enhance.legacy import load
from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.fetch import sha256_of
from mirror_realm_assets.weights.registry import MODELS, RELEASED

Picture = npt.NDArray[np.uint8]
OTHERS = ("realesrgan-x4plus-anime", "realesr-animevideov3")
STRONG, WEAK = (RELEASED[f"realesr-general-{kind}x4v3"] for kind in ("", "wdn-"))


@pytest.mark.parametrize("name", OTHERS)
def test_both_engines_agree_on_every_model_that_a_package_carries(
    models_dir: Path, photos: dict[str, Picture], name: str
) -> None:
    made = []
    for engine in ("native", "realesrgan"):
        with open_engine(engine, MODELS[name], models_dir, device="cpu", precision="fp32") as opened:
            (strip,) = opened.strips(photos["astronaut"][:32, :32], tile=None)
            made.append(strip.astype(int))
    assert made[0].shape == (128, 128, 3)
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A models folder with the pair that is mixed, with random weights of the real size."""
    import torch
    from safetensors.torch import save_file

    build = load("realesrgan.archs.srvgg_arch").SRVGGNetCompact

    for seed, model in enumerate((STRONG, WEAK)):
        torch.manual_seed(seed)
        network = build(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=32, upscale=4, act_type="prelu")
        path = tmp_path / model.filename
        save_file({key: tensor * 0.5 for key, tensor in network.state_dict().items()}, path)
        record = {"form": 1, "source_sha256": model.source_sha256, "weights_sha256": sha256_of(path)}
        (tmp_path / f"{model.name}.json").write_text(json.dumps(record | {"bytes": path.stat().st_size}))
    return tmp_path


@pytest.mark.parametrize("engine", ["native", "realesrgan"])
def test_a_strength_of_denoising_lies_between_the_two_models(
    pair: Path, photos: dict[str, Picture], engine: EngineName
) -> None:
    made = {}
    for strength in (None, 1.0, 0.5, 0.0):
        model = replace(STRONG, weights_sha256=sha256_of(pair / STRONG.filename))
        with open_engine(engine, model, pair, device="cpu", precision="fp32", denoise_strength=strength) as opened:
            (made[strength],) = opened.strips(photos["coffee"][:16, :16])
    assert np.array_equal(made[None], made[1.0])
    assert not np.array_equal(made[1.0], made[0.0])
    assert not np.array_equal(made[0.5], made[1.0]) and not np.array_equal(made[0.5], made[0.0])
    weak = replace(WEAK, weights_sha256=sha256_of(pair / WEAK.filename))
    with open_engine(engine, weak, pair, device="cpu", precision="fp32") as opened:
        (alone,) = opened.strips(photos["coffee"][:16, :16])
    assert np.array_equal(alone, made[0.0])


def test_the_recipe_knows_model_engine_and_strength(pair: Path, models_dir: Path) -> None:
    stage = enhanced_images_stage("fp32", pair)
    options = {"enhance.model": STRONG.name}
    recipes = [
        stage.recipe(parse_policy(options | more))
        for more in ({}, {"enhance.denoise_strength": 0.5}, {"enhance.engine": "realesrgan"})
    ]
    assert len({recipe.digest for recipe in recipes if recipe}) == 3
    assert recipes[1] is not None and recipes[1].params["mixed_with"] == sha256_of(pair / WEAK.filename)
    with pytest.raises(SetupError, match="cannot be chosen"):
        enhanced_images_stage("fp32", models_dir).recipe(parse_policy({"enhance.denoise_strength": 0.5}))


def test_a_model_that_is_not_here_is_refused_before_any_work(models_dir: Path) -> None:
    with pytest.raises(SetupError) as caught:
        enhanced_images_stage("fp32", models_dir).recipe(parse_policy({"enhance.model": STRONG.name}))
    assert caught.value.code == "weights_missing"
    assert STRONG.name in caught.value.remedy
