"""Pages of PDF documents as pictures, with PDFium: what runs inside the sandboxed child, and only there.

What belongs here: counting and rendering pages. What does not: the document's text, which nothing reads yet.
"""

from __future__ import annotations

import mmap
import re
import time
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest.decoded import MAX_PARTS, Decoded, DecodedPart
from mirror_realm_assets.ingest.exif import Value, sanitised
from mirror_realm_assets.ingest.formats import PDF
from mirror_realm_assets.ingest.phash import perceptual_hash
from mirror_realm_assets.ingest.proxies import fitted, part_of

if TYPE_CHECKING:
    from PIL import Image
    from pypdfium2 import PdfDocument, PdfPage

_POINTS_PER_INCH, _DPI = 72.0, 150.0  # a page's size is told in points; 150 dpi is a readable print
_WRONG_PASSWORD, _UNKNOWN_PROTECTION = "Incorrect password", "security"
_DATE = re.compile(r"D:(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:(Z)|([+-]\d\d)'?(\d\d))?")


def describe(data: mmap.mmap, long_side: int, *, max_pixels: int, seconds: float) -> Decoded:
    """The first `MAX_PARTS` pages, as many as the time allows; later ones are counted.

    Args:
        data: the document's bytes.
        long_side: of the proxies, in pixels; pages are rendered at that size.
        max_pixels: a page that would be larger than this at 150 dpi is passed over.
        seconds: no page is begun after that time.

    Raises:
        Refused: `unsupported` when it is locked by a password, `corrupt` when no page can be shown.
    """
    end = time.monotonic() + seconds
    document = _opened(data)
    try:
        document.init_forms()  # so that fields are drawn with what is filled in
        count = len(document)
        if count < 1:
            raise Refused("corrupt", "The document has no page.")
        parts: list[DecodedPart] = []
        notes: list[str] = []
        phash = None
        for number in range(min(count, MAX_PARTS)):
            if parts and time.monotonic() > end:
                notes.append(f"no time for the pages after page {number}")
                break
            shown = _page(document, number, long_side, max_pixels)
            if isinstance(shown, str):
                notes.append(f"page {number + 1}: {shown}")
                continue
            picture, size = shown
            phash = perceptual_hash(picture) if not parts else phash
            parts.append(part_of(picture, long_side, "page", size=size, page=number + 1))
        if not parts:
            raise Refused("corrupt", f"None of its pages can be shown: {notes[0]}.")
        values, taken_at = _metadata(document)
    finally:
        document.close()
    return Decoded(
        PDF.mime, tuple(parts), frames=count, phash=phash, exif=values, taken_at=taken_at, notes=tuple(notes)
    )


def _opened(data: mmap.mmap) -> PdfDocument:
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(data[:])
    except pypdfium2.PdfiumError as error:
        text = str(error)
        if _WRONG_PASSWORD in text or _UNKNOWN_PROTECTION in text:
            raise Refused("unsupported", "The document is locked by a password.") from error
        raise Refused("corrupt", f"It is no document that can be opened: {text}") from error


def _page(
    document: PdfDocument, number: int, long_side: int, max_pixels: int
) -> tuple[Image.Image, tuple[int, int]] | str:
    """A page rendered at the size of a proxy, with its size in print; or why not."""
    import pypdfium2

    try:
        page: PdfPage = document[number]
        width, height = page.get_size()
        size = (max(1, round(width / _POINTS_PER_INCH * _DPI)), max(1, round(height / _POINTS_PER_INCH * _DPI)))
        if size[0] * size[1] > max_pixels:
            return f"{size[0]} x {size[1]} pixels at {_DPI:g} dpi; {max_pixels} are allowed"
        scale = max(fitted(size, long_side)) / max(width, height)
        # Annotations and forms are drawn: people see them on the page. Nothing in a page is ever run.
        bitmap = page.render(scale=scale, may_draw_forms=True)
        return bitmap.to_pil().convert("RGB"), size
    except (pypdfium2.PdfiumError, ZeroDivisionError, ValueError, OverflowError) as error:
        return f"cannot be shown ({error})"


def _metadata(document: PdfDocument) -> tuple[dict[str, Value], str | None]:
    found: dict[str, Any] = document.get_metadata_dict()
    values: dict[str, Value] = {}
    for key, name in (("Title", "description"), ("Creator", "software")):
        text = sanitised(found.get(key), limit=200)
        if text:
            values[name] = text
    taken = _iso(str(found.get("CreationDate") or ""))
    if taken:
        values["taken_at"] = taken
    return values, taken


def _iso(text: str) -> str | None:
    match = _DATE.match(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, zulu, hours, minutes = match.groups()
    zone = "+00:00" if zulu else f"{hours}:{minutes}" if hours else ""
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}{zone}"
