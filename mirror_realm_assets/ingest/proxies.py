"""Making a part of a file out of an upright sRGB picture: its digest and its proxy. Runs inside the sandboxed child.

What belongs here: what stills, frames and pages have in common. What does not: getting at the picture.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mirror_realm_assets.ingest import image_digest
from mirror_realm_assets.ingest.decoded import DecodedPart

if TYPE_CHECKING:
    from PIL import Image

_QUALITY = 95


def encoded(proxy: Image.Image) -> bytes:
    """A proxy as it is stored: JPEG, 4:4:4, without a word of the original's metadata."""
    out = io.BytesIO()
    proxy = proxy.copy()
    proxy.info = {}  # Pillow writes a comment that it has read
    proxy.save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()


def fitted(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """`size`, shrunk to a long side; never enlarged, never without pixels."""
    factor = min(1.0, long_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shrunk(picture: Image.Image, long_side: int) -> Image.Image:
    """The picture as a proxy shows it."""
    from PIL import Image

    target = fitted(picture.size, long_side)
    return picture if picture.size == target else picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)


def part_of(
    picture: Image.Image,
    long_side: int,
    kind: str,
    *,
    size: tuple[int, int] | None = None,
    time_s: float | None = None,
    page: int | None = None,
) -> DecodedPart:
    """A part named by its decoded pixels.

    Args:
        picture: upright, sRGB, mode RGB.
        long_side: of the proxy, in pixels.
        kind: see `DecodedPart`.
        size: of the part at full size, where the picture is not at full size.
        time_s: see `DecodedPart`.
        page: see `DecodedPart`.
    """
    width, height = size or picture.size
    proxy = shrunk(picture, long_side)
    return DecodedPart(
        kind=kind,
        width=width,
        height=height,
        image_digest=image_digest.with_orientation(image_digest.of_pixels(picture, None), 1),
        proxy=encoded(proxy),
        proxy_width=proxy.width,
        proxy_height=proxy.height,
        time_s=time_s,
        page=page,
    )
