"""Upscaling a whole picture: tile by tile, in bounded memory, completely or not at all.

What belongs here: choosing tiles, running the network over them, assembling the result. What does not: the geometry
(`tiling`), the network (`networks`), how many arrays go through it at once (`batches`), files (`codec`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np

from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.batches import AHEAD, MOST, Batches, Begun, equal_runs
from mirror_realm_assets.enhance.layers import Layers, Pixels, as_grey, put_together, taken_apart
from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.progress import Prepared, Tiles, Watch, go_on, tell_nobody
from mirror_realm_assets.enhance.remembered import Bound, Key, RememberedTiles
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

_Running = Callable[[], AbstractContextManager[None]]  # what a pass of the network is run within


class Upscaler:
    """One enhancement model in memory, used by one thread at a time. Also a context manager.

    Args:
        spec: an `enhance` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; see `weights.hardware.choose_precision`.
        threads: CPU threads of torch, for the whole process.
        denoise_strength: see `weights.denoise`; only for a model that has a pair to be mixed with.
        remembered: what earlier processes learnt of this machine's memory, and where it is told to later ones.

    Attributes:
        need: what the network needs for a tile.
        halo: pixels of context that its tiles have; a network that looks less far than `DEFAULT_HALO` needs no more.

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
        remembered: RememberedTiles | None = None,
    ) -> None:
        if spec.purpose != "enhance":
            raise SetupError("invalid_argument", f"{spec.name} does not enhance pictures.")
        mixed = None if denoise_strength is None else denoised_state(spec, denoise_strength, models_dir)
        weights = mixed or require(spec, models_dir)
        self._spec = spec
        self._device = choose_device(device)
        self._precision = choose_precision(precision, self._device, cpu_flags())
        self._network = Network(weights, device=self._device, precision=self._precision, threads=threads)
        self._batches = Batches(self._network, MOST[self._device])
        self.need = memory.of_network(spec.architecture, self._precision, self._device, cpu_flags())
        self._remembered = remembered
        reach = self._network.reach
        self.halo = DEFAULT_HALO if reach is None else min(reach, DEFAULT_HALO)

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
        halo: int | None = None,
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
        halo: int | None = None,
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
                now and that ended no process before, and smaller ones when memory runs out all the same. A given tile
                is never changed.
            halo: pixels of context around a tile; the network's own by default.
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
        picture = self.prepare(image, outscale)
        yield from self.finished(
            picture, self._enlarged(_colours(picture), tile, halo, outscale, between_tiles, on_progress)
        )

    def prepare(self, image: Pixels, outscale: float | None = None) -> Prepared:
        """The first of three steps that together are `strips`, for a caller with threads: any of them may take it.

        Args:
            image: see `strips`.
            outscale: likewise.

        Raises:
            ValueError: an array of another shape or type, or an outscale out of range.
        """
        if outscale is not None and not (math.isfinite(outscale) and outscale > 0):
            raise ValueError(f"outscale must be above 0, got {outscale}")
        return Prepared(image, outscale, taken_apart(image))

    def at_once(self, picture: Prepared) -> int:
        """How many pictures like this one are best enlarged together, by the memory that is free now: often 1."""
        return self._fitting(picture.image)

    def enlarged(
        self, pictures: Sequence[Prepared], *, between_tiles: Callable[[], None] = go_on
    ) -> list[Iterator[Pixels]]:
        """The second step, in the thread that owns this: rows of the network's own scale, for each picture.

        On a GPU, pictures that fit into memory whole go through the network together. They are begun here, so that the
        GPU has work while earlier results are taken; with larger pictures, and on a CPU, all is done as rows are
        asked for. When a pass over several fails, each is done alone: a bad picture never fails its neighbours.

        Args:
            pictures: of equal size and type, as many as `at_once` says.
            between_tiles: see `strips`.

        Returns:
            Rows for each, to be taken in this order; they raise what `strips` raises for that picture.
        """
        colours = [_colours(picture) for picture in pictures]
        alone = [
            self._enlarged(_colours(one), None, None, one.outscale, between_tiles, tell_nobody) for one in pictures
        ]
        height, width = colours[0].shape[:2]
        if MOST[self._device] == 1 or height * width > self._tile_pixels():
            return alone
        begun = self._batches.begin(colours)
        return [_whole(begun, number, rows) for number, rows in enumerate(alone)]

    def finished(self, picture: Prepared, rows: Iterable[Pixels]) -> Iterator[Pixels]:
        """The third step, in any thread: the result's rows, see `strips`, from those of the network's own scale."""
        layers, (height, width) = _layers(picture), picture.image.shape[:2]
        size = self.output_size(height, width, picture.outscale)
        native = (height * self.scale, width * self.scale)
        resizer = None if size == native else RowResizer(native, size)
        top = 0
        for enlarged in rows:
            grey_or_colours = as_grey(enlarged) if layers.grey else enlarged
            for part in [grey_or_colours] if resizer is None else resizer.push(grey_or_colours):
                bottom = top + part.shape[0]
                alpha = None if layers.alpha is None else resized_rows(layers.alpha, size, top, bottom)
                yield put_together(part, alpha)
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
        halo: int | None,
        outscale: float | None,
        between_tiles: Callable[[], None],
        on_progress: Callable[[Tiles], None],
    ) -> Iterator[Pixels]:
        """Rows of the network's own scale, one row of tiles after the other.

        With the largest tiles that fit; when memory runs out, what is left is done with half of that.
        """
        height, width = colours.shape[:2]
        itemsize, halo = colours.itemsize, self.halo if halo is None else halo
        size = tile or self.chosen_tile(memory.Picture(height, width, itemsize=itemsize), halo=halo, outscale=outscale)
        top = done = 0
        while top < height:
            tiles = plan(height, width, tile=size, halo=halo, top=top)
            watch = Watch(tiles, done, between_tiles, on_progress)
            running = nullcontext if tile else self._trial(height, width, size, tiles)
            each = self._each(colours, tiles, watch, running)
            try:
                for _row, group in groupby(tiles, key=lambda one: one.core.top):
                    row = list(group)
                    rows = self._row(colours, row, each, watch)
                    top = row[-1].core.bottom
                    yield rows
                return
            except Failed as failure:
                if tile is not None or failure.code != "out_of_memory" or size <= SMALLEST_TILE:
                    raise
            # Outside of the handler, where the failed pass still holds its arrays.
            release_memory()
            size, done = max(SMALLEST_TILE, size // 2), watch.done

    def _each(self, colours: Pixels, tiles: Sequence[Tile], watch: Watch, running: _Running) -> Iterator[Pixels]:
        """The padded box of each tile, enlarged, in order."""
        pieces = [colours[tile.padded.top : tile.padded.bottom, tile.padded.left : tile.padded.right] for tile in tiles]
        if MOST[self._device] == 1:
            for piece in pieces:
                watch.begin()
                with running():
                    made = self._network.run(piece)
                yield made
            return
        begun: deque[tuple[Sequence[Pixels], Begun]] = deque()
        for equal in equal_runs(pieces, key=lambda piece: piece.shape, most=self._fitting):
            watch.begin()
            begun.append((equal, self._batches.begin(equal)))
            if len(begun) > AHEAD[self._device]:
                yield from self._taken(*begun.popleft())
        while begun:
            yield from self._taken(*begun.popleft())

    def _taken(self, pieces: Sequence[Pixels], begun: Begun) -> Iterator[Pixels]:
        for piece, made in zip(pieces, begun.results(), strict=True):
            yield self._network.run(piece) if made is None else made

    def _row(self, colours: Pixels, row: list[Tile], each: Iterator[Pixels], watch: Watch) -> Pixels:
        """One row of tiles, enlarged and put together."""
        scale = self.scale
        width = colours.shape[1] * scale
        if row[0].core == row[0].padded and row[0].core.width == colours.shape[1]:  # nothing to be put together
            whole = next(each)
            watch.end()
            return whole
        result = _room((row[0].core.height * scale, width), colours)
        for tile in row:
            core, padded = tile.core, tile.padded
            enlarged = next(each)
            top, left = (core.top - padded.top) * scale, (core.left - padded.left) * scale
            result[:, core.left * scale : core.right * scale] = enlarged[
                top : top + core.height * scale, left : left + core.width * scale
            ]
            watch.end()
        return result

    def _fitting(self, piece: Pixels) -> int:
        return self._batches.at_once(piece.shape[0], piece.shape[1], self._tile_pixels())

    def _tile_pixels(self) -> int:
        """Input pixels that may be in the network at once, from the memory that is free now."""
        return memory.tile_pixels(self.need, free_memory(self._device), self._device, 0)

    def chosen_tile(self, picture: memory.Picture, *, halo: int | None = None, outscale: float | None = None) -> int:
        """The tile with which a picture is enlarged when none is given; see `strips`.

        Raises:
            Failed: `out_of_memory` where the smallest tile ended a process before, and no more memory is free now.
        """
        free = free_memory(self._device)
        halo = self.halo if halo is None else halo
        key = self._key(picture.height, picture.width)
        bound = self._remembered.bound(key, free) if self._remembered else Bound()

        def largest(beside: int) -> int:
            fits = memory.tile_pixels(self.need, free, self._device, beside)
            pixels = fits if bound.pixels is None else min(fits, bound.pixels)
            return largest_tile(picture.height, picture.width, max_pixels=pixels, halo=halo)

        tile = largest(0)
        if self._device == "cpu":  # what a picture takes beside the network grows with the rows of its tiles
            tile = largest(memory.of_picture(picture, tile=tile, scale=self.scale, outscale=outscale))
        if bound.tile is None or bound.tile >= tile:
            return tile
        if 2 * bound.tile <= SMALLEST_TILE and self.need.of(_most_pixels(picture, halo)) > free:
            raise Failed("out_of_memory", f"Memory ran out even in tiles of {SMALLEST_TILE} pixels.")
        return max(SMALLEST_TILE, bound.tile)

    def _trial(self, height: int, width: int, tile: int, tiles: Sequence[Tile]) -> _Running:
        if self._remembered is None:
            return nullcontext
        pixels = max(one.padded.pixels for one in tiles)
        return self._remembered.trial(self._key(height, width), tile, pixels, free_memory(self._device)).running

    def _key(self, height: int, width: int) -> Key:
        return Key(self.name, self._device, self._precision, (height, width))


def _most_pixels(picture: memory.Picture, halo: int) -> int:
    """Of a padded tile of the smallest kind."""
    tiles = plan(picture.height, picture.width, tile=SMALLEST_TILE, halo=halo)
    return max(tile.padded.pixels for tile in tiles)


def _layers(picture: Prepared) -> Layers:
    if picture.layers is None:
        raise ValueError("this picture was prepared by another engine")
    return picture.layers


def _colours(picture: Prepared) -> Pixels:
    return _layers(picture).colours


def _whole(begun: Begun, number: int, alone: Iterator[Pixels]) -> Iterator[Pixels]:
    """One picture of those begun together; what became nothing there is done alone."""
    made = begun.take(number)
    if made is None:
        yield from alone
    else:
        yield made


def _room(size: tuple[int, int], like: Pixels) -> Pixels:
    """An array of that height and width, of the type and channels of another."""
    try:
        return np.empty((*size, *like.shape[2:]), like.dtype)
    except MemoryError as error:
        raise Failed("out_of_memory", f"No memory for a result of {size[1]}x{size[0]} pixels.") from error
