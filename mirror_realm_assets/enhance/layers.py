"""What of a picture goes through a network, and putting the rest back.

What belongs here: grey, transparency and depth of arrays. What does not: tiles and networks (`upscale`), files.

Networks know three channels. Grey goes through as three equal ones and comes back as one, so that it stays grey.
Transparency is resampled beside it: a network would cost as much again and invent edges. Colours of what cannot be seen
are whatever a program left there, often black, and would bleed into what can: the nearest visible colour takes their
place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_ROWS = 1024  # compared at once: two temporaries of a wide picture's rows


@dataclass(frozen=True)
class Layers:
    """A picture taken apart.

    Attributes:
        colours: `HxWx3`, what the network sees.
        grey: whether the result is to have one channel.
        alpha: `HxW`, or None where everything is opaque.
    """

    colours: Pixels
    grey: bool
    alpha: Pixels | None


def taken_apart(pixels: Pixels) -> Layers:
    """The layers of a picture.

    Args:
        pixels: `HxW`, `HxWx2`, `HxWx3` or `HxWx4`, `uint8` or `uint16`, see `ingest.still.Still`.

    Raises:
        ValueError: an array of another shape or type, or an empty one.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or channels > 4 or 0 in pixels.shape:
        raise ValueError(f"expected HxW, HxWx2, HxWx3 or HxWx4 of 8 or 16 bits, got {pixels.shape} {pixels.dtype}")
    alpha = pixels[..., -1] if channels in (2, 4) else None
    if alpha is not None and int(alpha.min()) == white(pixels):
        alpha = None
    if channels < 3:
        grey = pixels if pixels.ndim == 2 else pixels[..., 0]
        colours = np.repeat(grey[..., None], 3, axis=2)
        return Layers(_visible(colours, alpha), True, alpha)
    colours = np.ascontiguousarray(pixels[..., :3])
    return Layers(_visible(colours, alpha), _is_grey(colours), alpha)


def white(pixels: Pixels) -> int:
    """The level of white, or of full opacity: 255 or 65535."""
    return int(np.iinfo(pixels.dtype).max)


def as_grey(colours: Pixels) -> Pixels:
    """One channel of three that are nearly the same: their mean, rounded."""
    total = colours.astype(np.uint32).sum(axis=2)
    grey: Pixels = ((2 * total + 3) // 6).astype(colours.dtype)
    return grey


def put_together(colours: Pixels, alpha: Pixels | None) -> Pixels:
    """Rows of colours or grey with their transparency, if any."""
    if alpha is None:
        return colours
    whole: npt.NDArray[Any] = np.dstack([colours, alpha])
    return whole


def _is_grey(colours: npt.NDArray[Any]) -> bool:
    """Whether all channels are equal everywhere; answered by the first rows for most pictures that are not."""
    for top in range(0, colours.shape[0], _ROWS):
        rows = colours[top : top + _ROWS]
        if not (np.array_equal(rows[..., 0], rows[..., 1]) and np.array_equal(rows[..., 0], rows[..., 2])):
            return False
    return True


def _visible(colours: npt.NDArray[Any], alpha: Pixels | None) -> Pixels:
    """The colours, with the nearest visible one where nothing is seen."""
    if alpha is None or int(alpha.min()) > 0 or int(alpha.max()) == 0:
        return colours
    import cv2

    hidden = (alpha == 0).astype(np.uint8)
    _far, nearest = cv2.distanceTransformWithLabels(hidden, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    seen = hidden == 0
    by_label = np.zeros((int(nearest.max()) + 1, 3), colours.dtype)
    by_label[nearest[seen]] = colours[seen]
    filled: Pixels = np.where(seen[..., None], colours, by_label[nearest])
    return filled
