"""Networks that turn a picture into a larger one.

What belongs here: loading verified weights into a network, and one run of it on one array. What does not: tiling and
whole pictures (`upscale`), where the weights come from (`weights.fetch`), face restoration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.weights.hardware import Device, Precision, model_failure, release_memory, torch_dtype

if TYPE_CHECKING:
    import torch
    from spandrel import ImageModelDescriptor

    Weights = Path | Mapping[str, torch.Tensor]


class Network:
    """A picture-to-picture network in memory, used by one thread at a time.

    Args:
        weights: a safetensors file, already verified, or tensors by name.
        device: where to run.
        precision: number format of weights and activations.
        threads: CPU threads of torch; a setting of the whole process.

    Attributes:
        scale: how many times wider and higher the output is.
    """

    def __init__(self, weights: Weights, *, device: Device, precision: Precision, threads: int) -> None:
        import torch
        from spandrel import ImageModelDescriptor, ModelLoader

        torch.set_num_threads(threads)
        loader = ModelLoader(device="cpu")
        if isinstance(weights, Path):
            descriptor = loader.load_from_file(weights)
        else:
            descriptor = loader.load_from_state_dict(dict(weights))
        if not isinstance(descriptor, ImageModelDescriptor):
            raise Failed("model_failed", "These weights are of no picture-to-picture network.")
        descriptor.to(device=device, dtype=torch_dtype(precision)).eval()
        # oneDNN and cuDNN convolve this layout faster: 11 % in fp32 on a CPU, and more in 16 bits.
        descriptor.model.to(memory_format=torch.channels_last)
        self._descriptor: ImageModelDescriptor | None = descriptor
        self._device = device
        self._dtype = torch_dtype(precision)
        self.scale = int(descriptor.scale)

    def run(self, picture: Pixels) -> Pixels:
        """Enlarge one picture, or one tile of it, in a single pass.

        Args:
            picture: `HxWx3` RGB, `uint8` or `uint16`.

        Returns:
            `(H*scale)x(W*scale)x3` of the same type.

        Raises:
            Failed: `out_of_memory`, or `model_failed` for any other fault, numbers that are not finite among them.
        """
        if self._descriptor is None:
            raise RuntimeError("this network is closed")
        try:
            return self._run(self._descriptor, picture)
        except Exception as error:  # whatever it is, it is the reason recorded for this picture
            raise model_failure(error, f"a tile of {picture.shape[1]}x{picture.shape[0]} pixels") from error

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._descriptor = None
        release_memory()

    def _run(self, descriptor: ImageModelDescriptor, picture: Pixels) -> Pixels:
        import torch

        white = int(np.iinfo(picture.dtype).max)
        with torch.inference_mode():
            # torch.tensor copies, so that read-only and strided arrays are welcome; of unsigned types it knows but one.
            plain = picture if picture.dtype == np.uint8 else picture.astype(np.int32)
            levels = torch.tensor(np.ascontiguousarray(plain), device=self._device)
            batch = levels.permute(2, 0, 1).unsqueeze(0)
            # 16 bits are divided before they are rounded to the network's format, which may know no number so large.
            batch = batch.to(self._dtype).div_(white) if white == 255 else batch.float().div_(white).to(self._dtype)
            output = descriptor(batch.contiguous(memory_format=torch.channels_last))
            # An overflow in 16 bits would otherwise become a black tile.
            if not bool(torch.isfinite(output).all()):
                raise Failed("model_failed", "The network gave numbers that are not finite.")
            # To whole numbers on the device: a quarter of what floats would cost on the way to main memory.
            scaled = output[0].float().mul_(white).round_().clamp_(0, white)
            whole = scaled.to(torch.uint8 if white == 255 else torch.int32)
            enlarged = whole.permute(1, 2, 0).contiguous().cpu().numpy().astype(picture.dtype, copy=False)
        expected = (picture.shape[0] * self.scale, picture.shape[1] * self.scale, 3)
        if enlarged.shape != expected:
            raise Failed("model_failed", f"The network gave {enlarged.shape}, expected {expected}.")
        return enlarged
