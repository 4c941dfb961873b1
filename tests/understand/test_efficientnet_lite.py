"""Our EfficientNet-Lite0 is timm's: same parameters, same features."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from mirror_realm_assets.understand.efficientnet_lite import efficientnet_lite0


@pytest.mark.parametrize("side", [224, 225, 97])
def test_its_features_are_those_of_timm(models_dir: Path, side: int) -> None:
    weights = load_file(models_dir / "efficientnet-lite0.safetensors")
    ours, theirs = efficientnet_lite0().eval(), timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(weights, strict=True)
    theirs.load_state_dict(weights, strict=True)
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=1e-5)
