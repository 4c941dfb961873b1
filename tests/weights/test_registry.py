"""The facts about models."""

from __future__ import annotations

import re

import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.registry import MODELS, ModelSpec, spec


def test_an_unknown_model_is_named_together_with_those_there_are() -> None:
    with pytest.raises(SetupError, match="realesrgan-x4plus") as caught:
        spec("nosuch")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_every_model_is_pinned_and_complete(model: ModelSpec) -> None:
    assert spec(model.name) is model
    assert re.fullmatch(r"[a-z0-9.-]+==[0-9.]+", model.package)
    for digest in (model.wheel_sha256, model.weights_sha256):
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert model.bytes > 0
    assert (model.scale is not None) == (model.purpose == "enhance")
    assert (model.dim is not None) == (model.purpose in ("embed", "text"))
