"""From any of Pillow's pixel modes to what we show: 8 bit, sRGB, on white, upright.

What belongs here: depth, colour profile, transparency and orientation of an already decoded picture. What does not:
opening files (`ingest.decoding`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.ingest.exif import sanitised

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageCms

_STRIP_PIXELS = 1 << 22  # 4 megapixels at a time: 12 MB of RGB, and the cost of a strip is lost in its pixels
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_CHANNELS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The `image` in horizontal strips with the row that each begins at, so that conversions need little memory."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def white_level(image: Image.Image, *, bits: int | None = None) -> float:
    """The value that stands for white in `image`; 255 unless it is deeper than 8 bits.

    Args:
        image: loaded.
        bits: the file's own statement, where it has one: 12-bit scans come in 16-bit samples.
    """
    if image.mode not in _DEEP_MODES:
        return 255.0
    if image.mode.startswith("I;16"):
        return float(2**bits - 1) if bits and 8 < bits < 16 else 65535.0
    top = image.getextrema()[1]  # 32-bit samples have no agreed white: the smallest usual one that holds all values
    top = float(top) if isinstance(top, int | float) else 65535.0
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((level for level in usual if top <= level), top)


def to_eight_bit(image: Image.Image, white: float) -> Image.Image:
    """`image` in one of the modes L, LA, RGB, RGBA, CMYK and LAB.

    Args:
        image: of any mode.
        white: of the whole picture, by `white_level`, also where `image` is a strip of it.
    """
    if image.mode in _DEEP_MODES:
        return _scaled(image, white)
    if image.mode in ("CMYK", "LAB", "LA", "RGBA"):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image, white: float) -> Image.Image:
    import numpy as np
    from PIL import Image

    transparent = image.info.get("transparency")
    result = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
    for top, strip in strips(image):
        values = np.asarray(strip)
        wide = np.nan_to_num(values.astype(np.float32)) * np.float32(255.0 / white)
        grey = np.clip(np.rint(wide), 0, 255).astype(np.uint8)
        if isinstance(transparent, int):
            grey = np.dstack([grey, np.where(values == transparent, 0, 255).astype(np.uint8)])
        result.paste(Image.fromarray(grey), (0, top))
    return result


def describe_profile(icc: bytes) -> str | None:
    """The name of a colour profile, or None when it is none."""
    from PIL import ImageCms

    try:
        return sanitised(ImageCms.getProfileDescription(_profile(icc))) or "unnamed"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def colour_space(icc: bytes) -> str | None:
    """`RGB`, `GRAY`, `CMYK` or another name of what a profile's pixels are; None when it is no profile."""
    from PIL import ImageCms

    try:
        return str(_profile(icc).profile.xcolor_space).strip()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _profile(icc: bytes) -> ImageCms.ImageCmsProfile:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


@lru_cache(maxsize=16)  # building one takes up to 10 ms, and a folder has few different profiles
def _transform(icc: bytes | None, mode: str) -> Any:
    """How to get from `mode` under the profile to sRGB; None when the profile is broken or of another kind."""
    from PIL import ImageCms

    try:
        source: Any = ImageCms.createProfile("LAB") if icc is None else _profile(icc)
        space = source.xcolor_space if icc is None else source.profile.xcolor_space
        if _CHANNELS.get(space.strip()) != mode:
            return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bool]:
    """`image` as RGB in sRGB on white, and whether its colour profile could be used.

    Args:
        image: in a mode that `to_eight_bit` gives.
        icc: its colour profile.
    """
    from PIL import Image

    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    rgb = _managed(colours, icc) if icc else None
    used = rgb is not None
    if rgb is None:
        rgb = _managed(colours, None) if colours.mode == "LAB" else colours.convert("RGB")
    if rgb is None:
        raise ValueError("No colour conversion for this picture.")
    if alpha is not None:
        white = Image.new("RGB", rgb.size, (255, 255, 255))
        white.paste(rgb, mask=alpha)
        rgb = white
    return rgb, used


def _managed(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    from PIL import ImageCms

    for mode in dict.fromkeys((image.mode, "RGB" if image.mode == "L" else image.mode)):
        if transform := _transform(icc, mode):
            try:
                return ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
            except (ImageCms.PyCMSError, ValueError):
                return None
    return None


def transposed(image: Image.Image, orientation: int) -> Image.Image:
    """`image` turned as the EXIF `orientation` says."""
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the HxWxC array `upright` in the order in which the file stores it: writing there turns the picture."""
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    view = upright[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return view.transpose(1, 0, 2) if orientation >= 5 else view
