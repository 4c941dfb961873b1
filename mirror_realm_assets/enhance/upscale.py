"""Upscaling a whole picture: tile by tile, in bounded memory, completely or not at all.

What belongs here: choosing tiles, running the network over them, assembling the result. What does not: the geometry
(`tiling`), the network (`networks`), files (`codec`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np

from mirror_realm_assets.enhance.layers import Pixels, as_grey, put_together, taken_apart
from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.resizing import RowResizer, resized_rows
from mirror_realm_assets.enhance.tiling import DEFAULT_HALO, SMALLEST_TILE, Tile, largest_tile, plan
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.denoise import denoised_state
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
from mirror_realm_assets.weights.registry import Model

# Peak memory of x4plus for each input pixel that it sees at once. Measured on a CPU: 9,000 at 320x320 and 12,600 at
# 160x120 in fp32, 6,000 to 7,000 in bf16; fp16 on a GPU is reckoned as three maps of 64 channels at output size.
_BYTES_PER_PIXEL: dict[Precision, int] = {"fp32": 13_000, "bf16": 7_000, "fp16": 7_000}
# Others use the machine too, and on a CPU too much means that the kernel ends the process.
_MEMORY_SHARE: dict[Device, float] = {"cpu": 0.4, "cuda": 0.8}


def go_on() -> None:
    """Between tiles, do nothing."""


@dataclass(frozen=True)
class Tiles:
    """How far a picture is: `done` of `total` tiles, and `left`, the share of the computing that is to come."""

    done: int
    total: int
    left: float


def tell_nobody(_tiles: Tiles) -> None:
    """Of progress."""


class _Watch:
    """Counts tiles; a plan that replaces another goes on counting."""

    def __init__(
        self,
        tiles: Sequence[Tile],
        done: int,
        between_tiles: Callable[[], None],
        on_progress: Callable[[Tiles], None],
    ) -> None:
        self._pixels = [tile.padded.pixels for tile in tiles]
        self._before, self._here = done, 0
        self._between_tiles, self._on_progress = between_tiles, on_progress
        self._tell()

    @property
    def done(self) -> int:
        return self._before + self._here

    def begin(self) -> None:
        if self.done:
            self._between_tiles()

    def end(self) -> None:
        self._here += 1
        self._tell()

    def _tell(self) -> None:
        left = sum(self._pixels[self._here :]) / sum(self._pixels)
        self._on_progress(Tiles(self.done, self._before + len(self._pixels), left))


class Upscaler:
    """One enhancement model in memory, used by one thread at a time. Also a context manager.

    Args:
        spec: an `enhance` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; see `weights.hardware.choose_precision`.
        threads: CPU threads of torch, for the whole process.
        denoise_strength: see `weights.denoise`; only for a model that has a pair to be mixed with.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for settings that this machine or
            this model does not allow.
    """

    def __init__(
        self,
        spec: Model,
        models_dir: Path,
        *,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
        denoise_strength: float | None = None,
    ) -> None:
        if spec.purpose != "enhance":
            raise SetupError("invalid_argument", f"{spec.name} does not enhance pictures.")
        mixed = None if denoise_strength is None else denoised_state(spec, denoise_strength, models_dir)
        weights = mixed or require(spec, models_dir)
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

    def output_size(self, height: int, width: int, outscale: float | None = None) -> tuple[int, int]:
        """Height and width of the result for a picture of that size."""
        if outscale is None or outscale == self.scale:
            return height * self.scale, width * self.scale
        return max(1, round(height * outscale)), max(1, round(width * outscale))

    def upscale(
        self,
        image: Pixels,
        *,
        tile: int | None = None,
        halo: int = DEFAULT_HALO,
        outscale: float | None = None,
        between_tiles: Callable[[], None] = go_on,
        on_progress: Callable[[Tiles], None] = tell_nobody,
    ) -> Pixels:
        """Enlarge a picture; see `strips`, whose rows it puts into one array.

        Returns:
            The whole result.
        """
        rows = self.strips(
            image, tile=tile, halo=halo, outscale=outscale, between_tiles=between_tiles, on_progress=on_progress
        )
        result: Pixels | None = None
        top = 0
        for strip in rows:
            if result is None:
                result = _room(self.output_size(image.shape[0], image.shape[1], outscale), strip)
            result[top : top + strip.shape[0]] = strip
            top += strip.shape[0]
        if result is None:
            raise RuntimeError("a picture without rows")
        return result

    def strips(
        self,
        image: Pixels,
        *,
        tile: int | None = None,
        halo: int = DEFAULT_HALO,
        outscale: float | None = None,
        between_tiles: Callable[[], None] = go_on,
        on_progress: Callable[[Tiles], None] = tell_nobody,
    ) -> Iterator[Pixels]:
        """Enlarge a picture, and give its rows from top to bottom as soon as they are done.

        What has been given on need not stay in memory: that is how a result of hundreds of megapixels is written.

        Args:
            image: upright, of any kind that `ingest.still.Still` has: grey or RGB, with or without alpha, of 8 or 16
                bits.
            tile: longest side of a tile's core in input pixels. None takes the largest that fits into the memory free
                now, and smaller ones when that runs out all the same. A given tile is never changed.
            halo: pixels of context around a tile; see `tiling`.
            outscale: how many times wider and higher the result is to be; anything but the network's own scale is
                reached by a final Lanczos resize.
            between_tiles: called between two tiles. What it raises ends the work and reaches the caller unchanged:
                the place to pause, to renew a lease, or to cancel.
            on_progress: called before the first tile and after each.

        Yields:
            Rows of the result, of the image's type: `hxW` where all its channels are equal, else `hxWx3`, with one
            channel more where anything is transparent. Alpha is resized by Lanczos.

        Raises:
            Failed: `out_of_memory` or `model_failed`. One failed tile fails the picture; rows that were given before
                are worth nothing then.
            ValueError: an array of another shape or type, a tile, halo or outscale out of range.
        """
        if outscale is not None and not (math.isfinite(outscale) and outscale > 0):
            raise ValueError(f"outscale must be above 0, got {outscale}")
        layers = taken_apart(image)
        height, width = image.shape[:2]
        size = self.output_size(height, width, outscale)
        native = (height * self.scale, width * self.scale)
        resizer = None if size == native else RowResizer(native, size)
        top = 0
        for enlarged in self._enlarged(layers.colours, tile, halo, between_tiles, on_progress):
            grey_or_colours = as_grey(enlarged) if layers.grey else enlarged
            for rows in [grey_or_colours] if resizer is None else resizer.push(grey_or_colours):
                bottom = top + rows.shape[0]
                alpha = None if layers.alpha is None else resized_rows(layers.alpha, size, top, bottom)
                yield put_together(rows, alpha)
                top = bottom

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._network.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enlarged(
        self,
        colours: Pixels,
        tile: int | None,
        halo: int,
        between_tiles: Callable[[], None],
        on_progress: Callable[[Tiles], None],
    ) -> Iterator[Pixels]:
        """Rows of the network's own scale, one row of tiles after the other.

        With the largest tiles that fit; when memory runs out, what is left is done with half of that.
        """
        height, width = colours.shape[:2]
        size = tile or largest_tile(height, width, max_pixels=self._tile_pixels(), halo=halo)
        top = done = 0
        while top < height:
            tiles = plan(height, width, tile=size, halo=halo, top=top)
            watch = _Watch(tiles, done, between_tiles, on_progress)
            try:
                for _row, group in groupby(tiles, key=lambda one: one.core.top):
                    row = list(group)
                    rows = self._row(colours, row, watch)
                    top = row[-1].core.bottom
                    yield rows
                return
            except Failed as failure:
                if tile is not None or failure.code != "out_of_memory" or size <= SMALLEST_TILE:
                    raise
            # Outside of the handler, where the failed pass still holds its arrays.
            release_memory()
            size, done = max(SMALLEST_TILE, size // 2), watch.done

    def _row(self, colours: Pixels, row: list[Tile], watch: _Watch) -> Pixels:
        """One row of tiles, enlarged and put together."""
        scale = self.scale
        width = colours.shape[1] * scale
        result = _room((row[0].core.height * scale, width), colours)
        for tile in row:
            watch.begin()
            core, padded = tile.core, tile.padded
            enlarged = self._network.run(colours[padded.top : padded.bottom, padded.left : padded.right])
            top, left = (core.top - padded.top) * scale, (core.left - padded.left) * scale
            result[:, core.left * scale : core.right * scale] = enlarged[
                top : top + core.height * scale, left : left + core.width * scale
            ]
            watch.end()
        return result

    def _tile_pixels(self) -> int:
        """Input pixels that may be in the network at once, from the memory that is free now."""
        return int(free_memory(self._device) * _MEMORY_SHARE[self._device] / _BYTES_PER_PIXEL[self._precision])


def _room(size: tuple[int, int], like: Pixels) -> Pixels:
    """An array of that height and width, of the type and channels of another."""
    try:
        return np.empty((*size, *like.shape[2:]), like.dtype)
    except MemoryError as error:
        raise Failed("out_of_memory", f"No memory for a result of {size[1]}x{size[0]} pixels.") from error
