"""Upscaling a whole picture: tile by tile, in bounded memory, completely or not at all.

What belongs here: choosing tiles, running the network over them, assembling the result. What does not: the geometry
(`tiling`), the network (`networks`), files (`codec`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from mirror_realm_assets.enhance.networks import Network, Picture
from mirror_realm_assets.enhance.tiling import DEFAULT_HALO, SMALLEST_TILE, Tile, largest_tile, plan
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    Precision,
    PrecisionSetting,
    choose_device,
    choose_precision,
    cpu_flags,
    free_memory,
    release_memory,
)
from mirror_realm_assets.weights.registry import ModelSpec

# Peak memory of x4plus for each input pixel that it sees at once. Measured on a CPU: 9,000 at 320x320 and 12,600 at
# 160x120 in fp32, 6,000 to 7,000 in bf16; fp16 on a GPU is reckoned as three maps of 64 channels at output size.
_BYTES_PER_PIXEL: dict[Precision, int] = {"fp32": 13_000, "bf16": 7_000, "fp16": 7_000}
# Others use the machine too, and on a CPU too much means that the kernel ends the process.
_MEMORY_SHARE: dict[Device, float] = {"cpu": 0.4, "cuda": 0.8}


def _go_on() -> None:
    """Between tiles, do nothing."""


class Upscaler:
    """One enhancement model in memory, used by one thread at a time. Also a context manager.

    Args:
        spec: an `enhance` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; see `weights.hardware.choose_precision`.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for settings that this machine or
            this model does not allow.
    """

    def __init__(
        self,
        spec: ModelSpec,
        models_dir: Path,
        *,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
    ) -> None:
        if spec.purpose != "enhance":
            raise SetupError("invalid_argument", f"{spec.name} does not enhance pictures.")
        weights = require(spec, models_dir)
        self._spec = spec
        self._device = choose_device(device)
        self._precision = choose_precision(precision, self._device, cpu_flags())
        self._network = Network(weights, device=self._device, precision=self._precision, threads=threads)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._spec.name

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model digest of a recipe."""
        return self._spec.weights_sha256

    @property
    def device(self) -> Device:
        """Where the network runs."""
        return self._device

    @property
    def precision(self) -> Precision:
        """The number format in use. It belongs into the recipe: bf16 differs from fp32 by up to 13 grey levels."""
        return self._precision

    @property
    def scale(self) -> int:
        """How many times wider and higher the network's output is."""
        return self._network.scale

    def upscale(
        self,
        image: Picture,
        *,
        tile: int | None = None,
        halo: int = DEFAULT_HALO,
        outscale: float | None = None,
        between_tiles: Callable[[], None] = _go_on,
    ) -> Picture:
        """Enlarge a picture.

        Args:
            image: `HxWx3 uint8` sRGB, upright.
            tile: longest side of a tile's core in input pixels. None takes the largest that fits into the memory free
                now, and smaller ones when that runs out all the same. A given tile is never changed.
            halo: pixels of context around a tile; below 48 seams can be seen.
            outscale: how many times wider and higher the result is to be; anything but the network's own scale is
                reached by a final Lanczos resize.
            between_tiles: called between two tiles. What it raises ends the work and reaches the caller unchanged:
                the place to pause, to renew a lease, or to cancel.

        Returns:
            `round(H*outscale) x round(W*outscale) x 3 uint8` sRGB.

        Raises:
            Failed: `out_of_memory` or `model_failed`. One failed tile fails the picture; nothing partial is returned.
            ValueError: an array of another shape or type, a tile, halo or outscale out of range.
        """
        _check(image, outscale)
        if tile is not None:
            enlarged = self._assemble(image, plan(*image.shape[:2], tile=tile, halo=halo), between_tiles)
        else:
            enlarged = self._assemble_shrinking(image, halo, between_tiles)
        if outscale is None or outscale == self.scale:
            return enlarged
        return _resized(enlarged, image.shape[0] * outscale, image.shape[1] * outscale)

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._network.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assemble_shrinking(self, image: Picture, halo: int, between_tiles: Callable[[], None]) -> Picture:
        """Enlarge with the largest tiles that fit; when memory runs out, start again with half of that."""
        height, width = image.shape[:2]
        tile = largest_tile(height, width, max_pixels=self._tile_pixels(), halo=halo)
        while True:
            try:
                return self._assemble(image, plan(height, width, tile=tile, halo=halo), between_tiles)
            except Failed as failure:
                if failure.code != "out_of_memory" or tile <= SMALLEST_TILE:
                    raise
            # Outside of the handler, where the failed pass still holds its arrays.
            release_memory()
            tile = max(SMALLEST_TILE, tile // 2)

    def _assemble(self, image: Picture, tiles: tuple[Tile, ...], between_tiles: Callable[[], None]) -> Picture:
        scale = self.scale
        try:
            result = np.empty((image.shape[0] * scale, image.shape[1] * scale, 3), np.uint8)
        except MemoryError as error:
            raise Failed(
                "out_of_memory", f"No memory for a result of {image.shape[1]}x{image.shape[0]} pixels."
            ) from error
        for number, tile in enumerate(tiles):
            if number:
                between_tiles()
            core, padded = tile.core, tile.padded
            enlarged = self._network.run(image[padded.top : padded.bottom, padded.left : padded.right])
            top, left = (core.top - padded.top) * scale, (core.left - padded.left) * scale
            result[core.top * scale : core.bottom * scale, core.left * scale : core.right * scale] = enlarged[
                top : top + core.height * scale, left : left + core.width * scale
            ]
        return result

    def _tile_pixels(self) -> int:
        """Input pixels that may be in the network at once, from the memory that is free now."""
        return int(free_memory(self._device) * _MEMORY_SHARE[self._device] / _BYTES_PER_PIXEL[self._precision])


def _check(image: Picture, outscale: float | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected HxWx3 uint8, got {image.shape} {image.dtype}")
    if outscale is not None and not (math.isfinite(outscale) and outscale > 0):
        raise ValueError(f"outscale must be above 0, got {outscale}")


def _resized(image: Picture, height: float, width: float) -> Picture:
    from PIL import Image

    size = (max(1, round(width)), max(1, round(height)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
