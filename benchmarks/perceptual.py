"""How different two pictures look: a distance between what a network sees in them.

What belongs here: that distance. What does not: comparing pixel by pixel (`enhance.psnr`), who is compared (`quality`).

It is made like LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018),
over the network that is here: features at five resolutions, each place's channels made a vector of length 1, the
squared difference, its mean over places, summed over the five. LPIPS itself cannot be had from packages: `lpips` brings
its learned factors of channels, but no backbone (AlexNet or VGG are downloaded). So channels count alike here, and the
numbers, from 0 for equal pictures to 20, are not comparable with published ones. On three photos they rise with every
step of blur, noise and JPEG compression, and are near 0 (0.02 to 0.05) where all is 10 levels brighter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Picture = npt.NDArray[np.uint8]
# Where the resolution is about to be halved, and the end: 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's sides.
_STAGES = (0, 1, 2, 4, 6)


def perceptual_distance(weights: Path) -> Callable[[Picture, Picture], float]:
    """A function that compares two pictures, `HxWx3 uint8` RGB of one size.

    Args:
        weights: of EfficientNet-Lite0, verified.
    """
    import torch
    from safetensors.torch import load_file

    from mirror_realm_assets.understand.efficientnet_lite import efficientnet_lite0

    network = efficientnet_lite0()
    network.load_state_dict(load_file(weights), strict=True)
    network.eval()
    seen: list[torch.Tensor] = []
    stages = dict(network.named_children())["blocks"]
    for stage in _STAGES:
        stages.get_submodule(str(stage)).register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def features(picture: Picture) -> list[torch.Tensor]:
        seen.clear()
        with torch.inference_mode():
            network(torch.tensor(picture.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1)[None])
            return [torch.nn.functional.normalize(each, dim=1) for each in seen]

    def distance(one: Picture, other: Picture) -> float:
        pairs = zip(features(one), features(other), strict=True)
        return sum(float((left - right).square().sum(dim=1).mean()) for left, right in pairs)

    return distance
