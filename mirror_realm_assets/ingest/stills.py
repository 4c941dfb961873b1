"""Writing a still at full size as its file holds it: what runs inside the sandboxed child, and only there.

What belongs here: which of depth, colours, transparency and metadata an opened picture has, and keeping them. What does
not: opening it (`ingest.decoding`), colours that Pillow cannot read in full (`ingest.deep`), pictures for the screen
(`ingest.upright`).

RGB and grey stay in the profile they are in. CMYK and Lab, which no enhancement model knows, become sRGB by their
profile.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.ingest import deep, upright
from mirror_realm_assets.ingest.still import StillFacts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Rows = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_MODES = {channels: mode for mode, channels in _CHANNELS.items()}
# Several pictures in a file of other formats are pages, or one picture in several sizes.
_ANIMATIONS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})

_EXIF_IFD, _GPS_IFD, _ORIENTATION = 0x8769, 0x8825, 0x0112
# Of the main directory: description, make, model, software, date, artist, rating, rating in percent, copyright. The
# others say how a file keeps its pixels, and are wrong for another file.
_KEPT = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x4746, 0x4749, 0x8298)
# Maker's notes hold offsets into the old file; sizes, and the pointer to interoperability, are the old picture's.
_DROPPED = frozenset({0x927C, 0xA002, 0xA003, 0xA005})
_USER_COMMENT = 0x9286
_MAX_EXIF = 65_000  # a JPEG's block takes 65,533 with its marker


@dataclass(frozen=True)
class _Rows:
    """Where the pixels come from: `strips` of rows with the row each begins at, and what they are."""

    channels: int
    deep: bool
    icc: bytes | None
    strips: Iterator[tuple[int, Rows]]


def write(
    image: Image.Image, data: mmap.mmap, out: int, *, orientation: int, white: float, icc: bytes | None, frames: int
) -> StillFacts:
    """Write a picture into the file `out`, upright, a strip at a time.

    Args:
        image: loaded by Pillow.
        data: the whole file, for what Pillow reads in 8 bits only.
        out: where to; large enough for any picture that is allowed.
        orientation: of EXIF: how it has to be turned.
        white: see `upright.white_level`.
        icc: its colour profile.
        frames: how many pictures the file holds.
    """
    import numpy as np

    sixteen = deep.colours(image, data)
    if sixteen is None:
        rows = _rows(image, white, icc)
    else:
        channels = sixteen.shape[2] if sixteen.ndim == 3 else 1
        rows = _Rows(channels, True, _fitting(icc, _MODES[channels]), iter([(0, sixteen)]))
    height, width = image.height, image.width
    if orientation >= 5:
        height, width = width, height
    kind: Any = np.uint16 if rows.deep else np.uint8
    with mmap.mmap(out, height * width * rows.channels * np.dtype(kind).itemsize) as memory:
        whole = np.frombuffer(memory, dtype=kind).reshape(height, width, rows.channels)
        stored = upright.as_stored(whole, orientation)
        for top, strip in rows.strips:
            stored[top : top + strip.shape[0]] = strip if strip.ndim == 3 else strip[..., None]
        del whole, stored  # the mapping cannot be closed while arrays point into it
    animated = frames > 1 and image.format in _ANIMATIONS
    return StillFacts(height, width, rows.channels, 16 if rows.deep else 8, animated, rows.icc, kept_exif(image))


def _rows(image: Image.Image, white: float, icc: bytes | None) -> _Rows:
    mode, used, convert = _conversion(image, white, icc)
    strips = ((top, convert(strip)) for top, strip in upright.strips(image))
    return _Rows(_CHANNELS[mode], image.mode in _DEEP_MODES, used, strips)


def _conversion(
    image: Image.Image, white: float, icc: bytes | None
) -> tuple[str, bytes | None, Callable[[Image.Image], Rows]]:
    """The mode that the picture will have, the profile that stays with it, and what does that to a strip."""
    import numpy as np

    if image.mode in _DEEP_MODES:
        transparent = image.info.get("transparency")
        mode = "LA" if isinstance(transparent, int) else "L"
        return mode, _fitting(icc, "L"), lambda strip: _sixteen_bit(np.asarray(strip), white, transparent)
    mode = upright.to_eight_bit(image.crop((0, 0, 1, 1)), white).mode if image.mode not in _CHANNELS else image.mode
    if image.has_transparency_data and mode in ("L", "RGB"):
        mode = "RGBA"
    if mode not in _CHANNELS:  # CMYK or Lab
        return "RGB", None, lambda strip: np.asarray(upright.to_srgb(upright.to_eight_bit(strip, white), icc)[0])
    used = _fitting(icc, mode)
    if icc is not None and used is None and mode in ("L", "LA") and _fitting(icc, "RGB"):
        return mode, None, lambda strip: _grey_of(upright.to_eight_bit(strip, white), icc)
    return mode, used, lambda strip: np.asarray(_as(upright.to_eight_bit(strip, white), mode))


def _as(strip: Image.Image, mode: str) -> Image.Image:
    return strip if strip.mode == mode else strip.convert(mode)


def _grey_of(strip: Image.Image, icc: bytes) -> Rows:
    """Grey under a profile of colours, which no grey file may carry: its greys in sRGB."""
    import numpy as np

    colours = strip.convert("L") if strip.mode == "LA" else strip
    grey = np.asarray(upright.to_srgb(colours, icc)[0])[..., 1]
    return np.dstack([grey, np.asarray(strip.getchannel("A"))]) if strip.mode == "LA" else grey


def _sixteen_bit(values: npt.NDArray[Any], white: float, transparent: object) -> Rows:
    import numpy as np

    wide = np.nan_to_num(values.astype(np.float64)) * (65535.0 / white)
    grey = np.clip(np.rint(wide), 0, 65535).astype(np.uint16)
    if not isinstance(transparent, int):
        return grey
    return np.dstack([grey, np.where(values == transparent, 0, 65535).astype(np.uint16)])


def _fitting(icc: bytes | None, mode: str) -> bytes | None:
    """The profile, if it is one of such pixels."""
    if icc is None:
        return None
    return icc if upright.colour_space(icc) == {"L": "GRAY", "LA": "GRAY"}.get(mode, "RGB") else None


def kept_exif(image: Image.Image) -> bytes | None:
    """The EXIF block of an upright copy of `image`; None when there is nothing worth keeping."""
    with contextlib.suppress(Exception):  # whatever hostile tags do to the parser, the picture is fine
        for without in ((), (_USER_COMMENT,)):
            block = _exif(image, frozenset(without))
            if block is None or len(block) <= _MAX_EXIF:
                return block
    return None


def _as_written(value: Any) -> Any:
    """A text as the bytes that it was: Pillow reads any byte as a letter, and writes `?` for what is not ASCII."""
    return value if not isinstance(value, str) or value.isascii() else value.encode("latin-1", "replace")


def _exif(image: Image.Image, without: frozenset[int]) -> bytes | None:
    from PIL import Image as Pillow

    old = image.getexif()
    new = Pillow.Exif()
    new.endian = "<"
    for tag in _KEPT:
        if tag in old:
            new[tag] = _as_written(old[tag])
    for ifd in (_EXIF_IFD, _GPS_IFD):
        entries = {tag: _as_written(value) for tag, value in old.get_ifd(ifd).items() if tag not in _DROPPED | without}
        if entries:
            new.get_ifd(ifd).update(entries)
            new[ifd] = new.get_ifd(ifd)
    if not len(new):
        return None
    new[_ORIENTATION] = 1
    return new.tobytes().removeprefix(b"Exif\x00\x00")
