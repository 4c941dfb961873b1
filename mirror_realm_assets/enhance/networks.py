"""Networks that turn a picture into a larger one.

What belongs here: loading verified weights into a network, and one pass of it over one array or several of equal
shape. What does not: how many at once (`batches`), tiling and whole pictures (`upscale`), where the weights come from
(`weights.fetch`), face restoration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    # Whether all numbers are finite, and `NxHxWx3` of whole levels in main memory.
    Levels = tuple[bool, np.ndarray]


class Pass:
    """A pass of a network that has been begun; on a GPU it goes on while its caller does something else."""

    def __init__(self, collect: Callable[[], list[Pixels]]) -> None:
        self._collect = collect

    def results(self) -> list[Pixels]:
        """Wait for it and take what it made; once.

        Raises:
            Failed: `out_of_memory`, or `model_failed` for any other fault, numbers that are not finite among them.
        """
        return self._collect()


class Network:
    """A picture-to-picture network in memory, used by one thread at a time.

    Args:
        weights: a safetensors file, already verified, or tensors by name.
        device: where to run.
        precision: number format of weights and activations.
        threads: CPU threads of torch; a setting of the whole process.

    Attributes:
        scale: how many times wider and higher the output is.
        reach: how many pixels away something can change a pixel; None where it is far.
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
        self._copies = torch.cuda.Stream() if device == "cuda" else None
        self.scale = int(descriptor.scale)
        self.reach = _reach(descriptor.model)

    def run(self, picture: Pixels) -> Pixels:
        """Enlarge one picture, or one tile of it, in a single pass.

        Args:
            picture: `HxWx3` RGB, `uint8` or `uint16`.

        Returns:
            `(H*scale)x(W*scale)x3` of the same type.

        Raises:
            Failed: `out_of_memory`, or `model_failed` for any other fault, numbers that are not finite among them.
        """
        descriptor = self._loaded()
        try:
            return self._run(descriptor, picture)
        except Exception as error:  # whatever it is, it is the reason recorded for this picture
            raise model_failure(error, _subject([picture])) from error

    def begin(self, pictures: Sequence[Pixels]) -> Pass:
        """Begin a pass over several pictures at once.

        On a CPU it is done when this returns. On a GPU it has been handed over: begin the next before taking this one's
        results, and the GPU computes while those travel to main memory.

        Args:
            pictures: as for `run`, of one shape and type.

        Raises:
            Failed: as `run`, for what fails at once; the rest is raised by `Pass.results`.
            ValueError: none, or arrays of different shapes or types.
        """
        if len({(picture.shape, picture.dtype) for picture in pictures}) != 1:
            raise ValueError("expected pictures of one shape and type")
        descriptor, subject, first = self._loaded(), _subject(pictures), pictures[0]
        try:
            collect = self._begin(descriptor, pictures)
        except Exception as error:
            raise model_failure(error, subject) from error

        def results() -> list[Pixels]:
            try:
                return self._checked(collect(), len(pictures), first)
            except Exception as error:
                raise model_failure(error, subject) from error

        return Pass(results)

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._descriptor = None
        release_memory()

    def _loaded(self) -> ImageModelDescriptor:
        if self._descriptor is None:
            raise RuntimeError("this network is closed")
        return self._descriptor

    def _run(self, descriptor: ImageModelDescriptor, picture: Pixels) -> Pixels:
        return self._checked(self._begin(descriptor, [picture])(), 1, picture)[0]

    def _begin(self, descriptor: ImageModelDescriptor, pictures: Sequence[Pixels]) -> Callable[[], Levels]:
        import torch

        white = int(np.iinfo(pictures[0].dtype).max)
        with torch.inference_mode():
            batch = self._uploaded(pictures).permute(0, 3, 1, 2)
            # 16 bits are divided before they are rounded to the network's format, which may know no number so large.
            batch = batch.to(self._dtype).div_(white) if white == 255 else batch.float().div_(white).to(self._dtype)
            output = descriptor(batch.contiguous(memory_format=torch.channels_last))
            # An overflow in 16 bits would otherwise become a black tile.
            finite = torch.isfinite(output).all()
            # To whole numbers on the device: a quarter of what floats would cost on the way to main memory.
            scaled = output.float().mul_(white).round_().clamp_(0, white)
            whole = scaled.to(torch.uint8 if white == 255 else torch.int32).permute(0, 2, 3, 1).contiguous()
            return self._downloading(finite, whole)

    def _uploaded(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        """`NxHxWx3` on the device."""
        import torch

        # Of unsigned types torch knows but one. `stack` copies, so that read-only and strided arrays are welcome.
        plain = [picture if picture.dtype == np.uint8 else picture.astype(np.int32) for picture in pictures]
        levels = torch.from_numpy(np.stack(plain))
        if self._copies is None:
            return levels
        # From pinned memory, so that this does not wait for the passes before it. In their stream: 6 MB of 1080p take
        # a quarter of a millisecond, which is not worth another one.
        return levels.pin_memory().to(self._device, non_blocking=True)

    def _downloading(self, finite: torch.Tensor, whole: torch.Tensor) -> Callable[[], Levels]:
        """Begin to bring a pass's results into main memory; gives what waits for them."""
        import torch

        if self._copies is None:
            return lambda: (bool(finite), whole.numpy())
        # In a stream of their own: the 100 MB of an enlarged 1080p take 4 ms and more, in which the next pass computes.
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            sure = torch.empty(finite.shape, dtype=finite.dtype, pin_memory=True).copy_(finite, non_blocking=True)
            host = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True).copy_(whole, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._copies)
        # They are of the other stream, whose next pass must not be given their memory before this copy has ended, also
        # when nobody waits for it.
        for tensor in (finite, whole):
            tensor.record_stream(self._copies)

        def levels() -> Levels:
            arrived.synchronize()
            return bool(sure), host.numpy()

        return levels

    def _checked(self, levels: Levels, count: int, like: Pixels) -> list[Pixels]:
        finite, enlarged = levels
        if not finite:
            raise Failed("model_failed", "The network gave numbers that are not finite.")
        expected = (count, like.shape[0] * self.scale, like.shape[1] * self.scale, 3)
        if enlarged.shape != expected:
            raise Failed("model_failed", f"The network gave {enlarged.shape}, expected {expected}.")
        return list(enlarged.astype(like.dtype, copy=False))


def _subject(pictures: Sequence[Pixels]) -> str:
    height, width = pictures[0].shape[:2]
    tile = f"a tile of {width}x{height} pixels"
    return tile if len(pictures) == 1 else f"{len(pictures)} tiles of {width}x{height} pixels together"


def _reach(model: torch.nn.Module) -> int | None:
    """Of a plain chain of 3x3 convolutions, each of which looks one pixel farther."""
    from torch.nn import Conv2d

    if type(model).__name__ != "SRVGGNetCompact":
        return None
    return sum(isinstance(layer, Conv2d) for layer in model.modules())
