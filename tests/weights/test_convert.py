"""The real converted weights: what spandrel and the reference networks make of them, on small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.registry import MODELS


@pytest.mark.parametrize(
    ("name", "architecture"), [("realesrgan-x4plus-anime", "ESRGAN"), ("realesr-animevideov3", "Compact")]
)
def test_a_small_picture_is_enlarged_four_times_and_stays_itself(
    name: str, architecture: str, models_dir: Path, photos: dict[str, npt.NDArray[np.uint8]]
) -> None:
    import torch
    from spandrel import ModelLoader

    descriptor = ModelLoader(device="cpu").load_from_file(require(MODELS[name], models_dir)).eval()
    assert (str(descriptor.architecture.id), descriptor.scale) == (architecture, MODELS[name].scale)
    picture = photos["chelsea"][:32, :32].astype(np.float32) / 255
    with torch.inference_mode():
        enlarged = descriptor(torch.tensor(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert enlarged.shape == (128, 128, 3)
    # Made smaller again it is the picture: 30 dB and more were measured, noise would give less than 10.
    again = enlarged.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert -10 * np.log10(np.mean((again - picture) ** 2)) > 25


def test_the_face_detector_has_its_three_networks_and_knows_a_face(models_dir: Path) -> None:
    import skimage.data
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.nn import functional

    weights = load_file(require(MODELS["mtcnn"], models_dir))
    assert {name.partition(".")[0] for name in weights} == {"pnet", "rnet", "onet"}

    def of(layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"onet.{layer}.weight"], weights[f"onet.{layer}.bias"]

    def probability(picture: Image.Image) -> float:
        """What the last network of the cascade gives for a face."""
        levels = torch.tensor(np.asarray(picture.resize((48, 48)))).float()
        x = ((levels - 127.5) / 128).permute(2, 0, 1)[None]
        for n, pool in ((1, 3), (2, 3), (3, 2)):
            x = functional.prelu(functional.conv2d(x, *of(f"conv{n}")), weights[f"onet.prelu{n}.weight"])
            x = functional.max_pool2d(x, pool, 2, ceil_mode=True)
        x = functional.prelu(functional.conv2d(x, *of("conv4")), weights["onet.prelu4.weight"])
        x = functional.linear(x.permute(0, 3, 2, 1).flatten(1), *of("dense5"))
        x = functional.linear(functional.prelu(x, weights["onet.prelu5.weight"]), *of("dense6_1"))
        return float(x.softmax(1)[0, 1])

    assert probability(Image.fromarray(skimage.data.astronaut()).crop((176, 56, 276, 176))) > 0.95
    assert probability(Image.fromarray(skimage.data.coffee()).crop((100, 60, 220, 180))) < 0.5
