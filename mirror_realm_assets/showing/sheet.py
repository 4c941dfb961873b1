"""The contact sheet: originals beside their enhanced pictures, at one size, with labels.

What belongs here: choosing pairs and drawing them. What does not: enhancing, and where the sheet is put (`placing`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog import listing, sources
from mirror_realm_assets.catalog.sources import display_path
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.showing.markup import visible
from mirror_realm_assets.showing.thumbnails import UNDECODABLE, opened, proxy_of
from mirror_realm_assets.stages.services import Services

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from mirror_realm_assets.catalog.listing import FileRow

MARK = b"\x89PNG\r\n\x1a\n"
"""What begins a sheet: one that is made again replaces any PNG of its name in our own folder."""

_LOOKED_AT = 200  # files of a source among which pairs are chosen
_CELL = (400, 300)
_GAP, _GUTTER, _MARGIN = 6, 44, 48
_TITLE, _CAPTION, _FOOT = 112, 58, 22
_PAPER, _INK, _SOFT, _MAT, _ACCENT = "#f6f3ed", "#211f1b", "#6d675c", "#ece6da", "#9a4f23"
_COLUMNS = 2
_NAME_CHARACTERS = 44


@dataclass(frozen=True)
class Pair:
    """One picture twice.

    Attributes:
        name: for people.
        before: the original's proxy.
        after: the enhanced picture.
        size: width and height of the original.
        enlarged: width and height of the enhanced picture.
        model: what made it.
    """

    name: str
    before: Image.Image
    after: Image.Image
    size: tuple[int, int]
    enlarged: tuple[int, int]
    model: str


def pairs_of(services: Services, source_name: str, *, count: int) -> list[Pair]:
    """Up to `count` pictures of a source that are enhanced, spread over its files; unreadable ones are passed over."""
    rules = [stage.rule for stage in standard_stages(services.settings)]
    with services.catalog.read() as conn:
        source = sources.get(conn, source_name)
        rows = [
            row
            for row in islice(listing.of_source(conn, source, rules, services.limits()), _LOOKED_AT)
            if row.features["enhanced_images"]["status"] == "ok"
        ]
    rows.sort(key=lambda row: row.paths)
    found: list[Pair] = []
    for row in _spread(rows, count):
        pair = _pair(services, row)
        if pair is not None:
            found.append(pair)
    return found


def draw(pairs: Sequence[Pair]) -> bytes:
    """The sheet as PNG.

    Raises:
        ValueError: there is nothing to show.
    """
    from PIL import Image, ImageDraw

    if not pairs:
        raise ValueError("a sheet needs a picture")
    columns = min(_COLUMNS, len(pairs))
    lines = -(-len(pairs) // columns)
    wide = 2 * _CELL[0] + _GAP
    high = _CELL[1] + _CAPTION
    width = 2 * _MARGIN + columns * wide + (columns - 1) * _GUTTER
    sheet = Image.new("RGB", (width, _TITLE + lines * high + (lines - 1) * _FOOT + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 34), "Mirror Realm", fill=_INK, font=_font(32))
    models = ", ".join(sorted({pair.model for pair in pairs}))
    words = f"before | after, at the same size · {models}"
    pen.text((width - _MARGIN, 62), words, fill=_SOFT, font=_font(19), anchor="rs")
    for number, pair in enumerate(pairs):
        left = _MARGIN + (number % columns) * (wide + _GUTTER)
        top = _TITLE + (number // columns) * (high + _FOOT)
        _draw_pair(sheet, pen, pair, left, top)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_pair(sheet: Image.Image, pen: ImageDraw.ImageDraw, pair: Pair, left: int, top: int) -> None:
    after = _fitted(pair.after)
    # As any viewer would enlarge the original to this size.
    before = pair.before.resize(after.size, _bicubic())
    sizes = ("before  {}x{}".format(*pair.size), "after  {}x{}".format(*pair.enlarged))
    for side, (image, words) in enumerate(zip((before, after), sizes, strict=True)):
        x = left + side * (_CELL[0] + _GAP)
        pen.rectangle((x, top, x + _CELL[0] - 1, top + _CELL[1] - 1), fill=_MAT)
        sheet.paste(image, (x + (_CELL[0] - image.width) // 2, top + (_CELL[1] - image.height) // 2))
        pen.text((x + 2, top + _CELL[1] + 10), words, fill=_ACCENT if side else _SOFT, font=_font(17))
    name = pair.name if len(pair.name) <= _NAME_CHARACTERS else f"{pair.name[: _NAME_CHARACTERS - 3]}..."
    pen.text((left + 2, top + _CELL[1] + 33), name, fill=_INK, font=_font(17))


def _pair(services: Services, row: FileRow) -> Pair | None:
    output = row.features["enhanced_images"]["output"]
    if not output or not row.digest or row.width is None or row.height is None:
        return None
    try:
        proxy = proxy_of(services, (row.digest, row.part))
        if proxy is None:
            return None
        before = opened(proxy, near=_CELL[0])
        after = opened(services.store.read(output["key"], output["sha256"]), near=_CELL[0])
    except (MirrorRealmError, *UNDECODABLE):
        return None
    name = display_path(row.paths[0]).rpartition("/")[2]
    return Pair(
        name=visible(name),
        before=before,
        after=after,
        size=(row.width, row.height),
        enlarged=(int(output["width"]), int(output["height"])),
        model=str(output["model"]),
    )


def _fitted(image: Image.Image) -> Image.Image:
    """The picture as large as its cell allows, and a small one enlarged to it: before and after have to be compared."""
    scale = min(_CELL[0] / image.width, _CELL[1] / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), _bicubic())


def _spread(rows: Sequence[FileRow], count: int) -> list[FileRow]:
    """`count` of them at equal distances, or all."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)  # comes with Pillow: a machine need not have any


def _bicubic() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BICUBIC
