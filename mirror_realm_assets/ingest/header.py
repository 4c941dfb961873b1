"""The size that a picture's header claims, without decoding anything.

What belongs here: reading width and height from the first bytes of the common formats, by plain arithmetic. What does
not: believing them (`ingest.decoding` checks what it decodes) or telling formats apart (`ingest.formats`).

Estimates read a few hundred headers of a folder nobody has looked at yet, so this must be fast, needs no sandbox and
never fails: where the bytes make no sense, there is no size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mirror_realm_assets.ingest.formats import BMP, GIF, JPEG, PNG, TIFF, WEBP, Format, sniff

HEADER_BYTES = 256 * 1024
"""How many leading bytes are worth reading: a JPEG's size comes after its metadata, which fill 64 kB a piece."""

Size = tuple[int, int]

# Frame headers; C4, C8 and CC in that range are tables and extensions.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length

_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
# Codes of TIFF's unsigned numbers of 16, 32 and 64 bits.
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}
_TIFF_MAX_ENTRIES = 4096


def claimed_size(head: bytes) -> Size | None:
    """Width and height in pixels as the header claims them, before any rotation.

    Args:
        head: the first `HEADER_BYTES` bytes of a file, or all of a shorter one; any bytes at all.

    Returns:
        Two numbers above 0, or None when the bytes are no picture we can measure this way (HEIC, AVIF and JPEG 2000
        are not) or the size stands further behind.
    """
    head = head[:HEADER_BYTES]
    found = sniff(head)
    reader = _READERS.get(found) if found else None
    if reader is None:
        return None
    try:
        size = reader(head)
    except (struct.error, IndexError):  # it ends in the middle
        return None
    return size if size and min(size) > 0 else None


def _png(head: bytes) -> Size | None:
    width, height = struct.unpack_from(">II", head, 16)
    return (width, height) if head[12:16] == b"IHDR" else None


def _gif(head: bytes) -> Size:
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def _bmp(head: bytes) -> Size:
    if int.from_bytes(head[14:18], "little") == 12:  # OS/2
        width, height = struct.unpack_from("<HH", head, 18)
    else:
        width, height = struct.unpack_from("<ii", head, 18)
    return width, abs(height)  # a negative height says that rows run from the top


def webp(head: bytes) -> Size | None:
    """Width and height that the first 30 bytes of a WebP state; None when they state none."""
    kind = head[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", head, 24)
        return (high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _jpeg(head: bytes) -> Size | None:
    position = 2
    while head[position] == 0xFF:
        marker = head[position + 1]
        if marker == 0xFF:  # any number of these may fill the space before a marker
            position += 1
            continue
        if marker in (_JPEG_SCAN, _JPEG_END):
            return None
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", head, position + 5)
            return width, height
        position += 2 if marker in _JPEG_BARE else 2 + _segment_length(head, position + 2)
    return None


def _segment_length(head: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">H", head, position)
    return int(length)


def _tiff(head: bytes) -> Size | None:
    """The first directory, where it lies within the first bytes; many programs write it at the end."""
    order = "<" if head[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", head, 2)
    # BigTIFF is the same with 64-bit numbers.
    big = version == 43
    start = struct.unpack_from(f"{order}Q", head, 8)[0] if big else struct.unpack_from(f"{order}I", head, 4)[0]
    counter, entry, width_of_entry = ("Q", "HHQ", 20) if big else ("H", "HHI", 12)
    if start > len(head):
        return None
    (count,) = struct.unpack_from(order + counter, head, start)
    position = start + struct.calcsize(order + counter)
    sides: dict[int, int] = {}
    for at in range(position, position + min(count, _TIFF_MAX_ENTRIES) * width_of_entry, width_of_entry):
        tag, kind, _ = struct.unpack_from(order + entry, head, at)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_NUMBERS:
            value_at = at + struct.calcsize(order + entry)
            (sides[tag],) = struct.unpack_from(order + _TIFF_NUMBERS[kind], head, value_at)
        if len(sides) == 2:
            return sides[_TIFF_WIDTH], sides[_TIFF_HEIGHT]
    return None


_READERS: dict[Format, Callable[[bytes], Size | None]] = {
    JPEG: _jpeg,
    PNG: _png,
    GIF: _gif,
    WEBP: webp,
    BMP: _bmp,
    TIFF: _tiff,
}
