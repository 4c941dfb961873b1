"""Resizing by Lanczos while rows come in, so that neither picture has to be whole in memory.

What belongs here: which rows a row needs, and resampling them. What does not: enlarging by a network (`upscale`).

Pillow's filter sees the rows around the box it is given, so a strip with enough rows around it comes out as it would
from the whole picture, but for a last rounding now and then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mirror_realm_assets.enhance.layers import Pixels

_SUPPORT = 3.0  # of Lanczos, in pixels of whichever side is coarser
_MOST_ROWS = 512  # of the result at once


class RowResizer:
    """Resizes a picture that comes in rows.

    Args:
        source: height and width of what comes in.
        target: height and width of what goes out.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        self._source, self._target = source, target
        self._step = source[0] / target[0]
        self._reach = _SUPPORT * max(1.0, self._step) + 1
        self._rows: Pixels | None = None
        self._first = 0  # row of the source at which `_rows` begins
        self._done = 0

    def push(self, rows: Pixels) -> Iterator[Pixels]:
        """Take the next rows of the source, and give the rows of the target that are complete with them."""
        self._rows = rows if self._rows is None else np.concatenate([self._rows, rows])
        known = self._first + self._rows.shape[0]
        height = self._target[0]
        while self._done < height:
            end = height if known >= self._source[0] else math.floor((known - self._reach) / self._step)
            end = min(end, self._done + _MOST_ROWS)
            if end <= self._done:
                return
            yield self._made(self._rows, self._done, end)
            self._done = end
            self._forget()

    def _made(self, rows: Pixels, top: int, bottom: int) -> Pixels:
        begin, end = (edge * self._step - self._first for edge in (top, bottom))
        box = (0.0, max(0.0, begin), float(self._source[1]), min(float(rows.shape[0]), end))
        return _resampled(rows, (bottom - top, self._target[1]), box)

    def _forget(self) -> None:
        """Drop rows that nothing below needs."""
        needed = max(0, math.floor(self._done * self._step - self._reach))
        if self._rows is not None and needed > self._first:
            self._rows = self._rows[needed - self._first :].copy()
            self._first = needed


def resized_rows(plane: Pixels, target: tuple[int, int], top: int, bottom: int) -> Pixels:
    """Rows `top` to `bottom` of `plane` resized as a whole to the height and width `target`."""
    step = plane.shape[0] / target[0]
    reach = _SUPPORT * max(1.0, step) + 1
    first = max(0, math.floor(top * step - reach))
    last = min(plane.shape[0], math.ceil(bottom * step + reach))
    box = (0.0, top * step - first, float(plane.shape[1]), min(float(last - first), bottom * step - first))
    return _resampled(plane[first:last], (bottom - top, target[1]), box)


def _resampled(pixels: Pixels, size: tuple[int, int], box: tuple[float, float, float, float]) -> Pixels:
    """One call of Pillow's filter for each plane.

    As floats: of bytes Pillow rounds and clips what lies between its two passes, and which of them comes first depends
    on the size of the strip.
    """
    from PIL import Image

    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    made: Pixels = np.empty((*size, planes.shape[2]), pixels.dtype)
    for channel in range(planes.shape[2]):
        plane = Image.fromarray(planes[..., channel].astype(np.float32))
        wide = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.LANCZOS, box))
        made[..., channel] = np.clip(np.rint(wide), 0, np.iinfo(pixels.dtype).max)
    return made[..., 0] if pixels.ndim == 2 else made
