"""Previews inside events: small pictures as Markdown, within a budget.

What belongs here: sizes and the Markdown. What does not: full pictures; those are in the store. SQLite keeps metadata
of a materialization three times, and the UI shows Markdown inline only below 1000 characters, so a `glance` is one
strip below that and a `preview` a sheet of at most 24 KB. No path and no name from disk is ever in one.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_GLANCE_CHARACTERS = 999
_GLANCE_PICTURES = 4
_GLANCE_SIDE = 36
_PREVIEW_BYTES = 24 * 1024
_PREVIEW_SIDE = 128
_GAP = 2


def glance(pictures: Sequence[tuple[bytes, ...]]) -> str | None:
    """One strip of up to four pictures as Markdown of less than 1000 characters, or None without pictures.

    Args:
        pictures: groups of encoded pictures; the last of each group (after) is shown.
    """
    shown = [_open(group[-1]) for group in pictures[:_GLANCE_PICTURES]]
    for count in range(len(shown), 0, -1):
        strip = _strip([_fitted(image, _GLANCE_SIDE) for image in shown[:count]])
        for quality in range(60, 0, -10):
            text = f"![pictures]({_data_uri(strip, quality)})"
            if len(text) <= _GLANCE_CHARACTERS:
                return text
    return None


def preview(pictures: Sequence[tuple[bytes, ...]]) -> str | None:
    """A sheet as Markdown of at most 24 KB, or None without pictures.

    Groups of two are shown as before and after, side by side and at one size, so that the eye can compare.
    """
    if not pictures:
        return None
    pairs = len(pictures[0]) > 1
    header = "before | after" if pairs else "pictures"
    opened = [[_open(data) for data in group] for group in pictures]
    for side in (_PREVIEW_SIDE, _PREVIEW_SIDE // 2):  # a sheet of nothing but noise fits only at half the size
        sheet = _stacked([_row(group, side, pairs=pairs) for group in opened])
        for quality in range(70, 0, -20):
            text = f"**{header}**\n\n![{header}]({_data_uri(sheet, quality)})"
            if len(text) <= _PREVIEW_BYTES:
                return text
    return None


def _row(group: Sequence[Image.Image], side: int, *, pairs: bool) -> Image.Image:
    images = [_fitted(image, side) for image in group]
    if pairs:
        images = [images[0].resize(images[1].size, _smooth()), *images[1:]]
    return _strip(images)


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
        image.draft("RGB", (2 * _PREVIEW_SIDE, 2 * _PREVIEW_SIDE))
        return image.convert("RGB")


def _fitted(image: Image.Image, side: int) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


def _smooth() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BICUBIC


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    from PIL import Image

    width = sum(image.width for image in images) + _GAP * (len(images) - 1)
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + _GAP
    return strip


def _stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows below each other in two columns, so that a sheet of eight stays compact."""
    from PIL import Image

    columns = [rows[0::2], rows[1::2]]
    columns = [column for column in columns if column]
    widths = [max(row.width for row in column) for column in columns]
    heights = [sum(row.height for row in column) + 2 * _GAP * (len(column) - 1) for column in columns]
    sheet = Image.new("RGB", (sum(widths) + 4 * _GAP * (len(columns) - 1), max(heights)), "white")
    left = 0
    for column, width in zip(columns, widths, strict=True):
        top = 0
        for row in column:
            sheet.paste(row, (left, top))
            top += row.height + 2 * _GAP
        left += width + 4 * _GAP
    return sheet


def _data_uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
