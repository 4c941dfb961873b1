"""Pictures that differ as much as pictures can, for what must hold for any: photos, scans, and drawn patterns."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageDraw

Picture = npt.NDArray[np.uint8]
SIDE = 160
# Row and column of a corner from which on there is something to see.
_PHOTOS = {"astronaut": (40, 140), "chelsea": (60, 80), "coffee": (120, 200), "rocket": (150, 250)}
_SCANS = {"camera": (80, 180), "page": (20, 20), "coins": (40, 40), "brick": (100, 100)}


def seam_pictures() -> dict[str, Picture]:
    """`160x160x3 uint8` each, by name."""
    pictures = {name: _part(name, *corner) for name, corner in (_PHOTOS | _SCANS).items()}
    rows, columns = np.mgrid[:SIDE, :SIDE]
    rng = np.random.default_rng(7)
    pictures["noise"] = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pictures["line grid"] = _grey(np.where((rows % 8 == 0) | (columns % 8 == 0), 0, 255))
    pictures["checkerboard of 1"] = _grey((rows + columns) % 2 * 255)
    pictures["checkerboard of 8"] = _grey((rows // 8 + columns // 8) % 2 * 255)
    pictures["gradient"] = np.dstack([rows, columns, 255 - rows]).astype(np.uint8)
    pictures["text"] = _text()
    pictures["rings"] = _grey(127.5 + 127.5 * np.cos((rows**2 + columns**2) * np.pi / (2 * SIDE)))
    pictures["dots"] = _grey(np.where((rows % 16 == 8) & (columns % 16 == 8), 255, 0))
    pictures["JPEG of quality 10"] = _compressed(pictures["astronaut"])
    return pictures


def _part(name: str, top: int, left: int) -> Picture:
    picture = getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(_grey(picture) if picture.ndim == 2 else picture)


def _grey(levels: npt.NDArray[np.generic]) -> Picture:
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=2)


def _text() -> Picture:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for line in range(0, SIDE, 12):
        pen.text((2, line), "The quick brown fox jumps over 镜界 0123456789", fill=(20, 20, 60))
    return np.asarray(image)


def _compressed(picture: Picture) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=10)
    return np.asarray(Image.open(buffer))
