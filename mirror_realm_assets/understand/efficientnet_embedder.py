"""The default embedder: EfficientNet-Lite0's pooled features.

What belongs here: preparing pictures for this network and running it. What does not: the network itself
(`efficientnet_lite`), batches and settings (`network_embedder`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_realm_assets.understand.efficientnet_lite import efficientnet_lite0
from mirror_realm_assets.understand.embedder import Picture
from mirror_realm_assets.understand.network_embedder import NetworkEmbedder
from mirror_realm_assets.weights.hardware import torch_dtype
from mirror_realm_assets.weights.registry import Model

if TYPE_CHECKING:
    import torch

# It was trained on the central 7/8 of the shorter side, scaled to 224 pixels, with values from -1 to 1.
_SIDE = 224
_CENTRAL = 0.875


class EfficientNetEmbedder(NetworkEmbedder[Model]):
    """EfficientNet-Lite0's pooled features (ImageNet-1k), of length 1280.

    Good at finding the same picture again after flips, crops, greying and re-encoding (105 of 105 first hits on 15
    pictures), fair at finding similar subjects; it knows nothing of text. Arguments and errors: `NetworkEmbedder`.
    """

    def _loaded(self, weights: Path) -> torch.nn.Module:
        import torch
        from safetensors.torch import load_file

        network = efficientnet_lite0()
        network.load_state_dict(load_file(weights), strict=True)
        network.eval().to(device=self._device, dtype=torch_dtype(self._precision)).to(memory_format=torch.channels_last)
        return network

    def _prepared(self, image: Picture) -> torch.Tensor:
        """The central part of the shorter side as `3x224x224 float32` from -1 to 1.

        Cutting and scaling are one step from the source: scaling first would blow a strip of 10,000x1 up to 2.5
        million pixels in width.
        """
        import torch
        from PIL import Image

        height, width = image.shape[:2]
        side = min(height, width) * _CENTRAL
        left, top = (width - side) / 2, (height - side) / 2
        scaled = Image.fromarray(image).resize(
            (_SIDE, _SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        return torch.from_numpy(np.asarray(scaled, np.float32).transpose(2, 0, 1) / 127.5 - 1.0)

    def _encoded(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        features: torch.Tensor = network(pixels.contiguous(memory_format=torch.channels_last))
        return features
