"""Recognising a complete picture file of ours.

What belongs here: the structure of PNG, JPEG, WebP and TIFF, as far as it tells whether a file is whole, and its size.
What does not: writing them (`codec`), and files from outside (`ingest`).
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mirror_realm_assets.enhance.codec import PictureFormat
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.ingest import header

_DROPPED_TOGETHER = 16 << 20  # bytes, whole pages
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGICS = (b"II*\x00", b"II+\x00", b"MM\x00*", b"MM\x00+")
# Frame headers; C4, C8 and CC in that range are tables and extensions.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA


class Buffer(Protocol):
    """Bytes, or a mapped file."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...


class Probe(NamedTuple):
    """What a picture file says of itself: `width` and `height` in pixels, and its `format`."""

    width: int
    height: int
    format: PictureFormat


def probe(content: Buffer) -> Probe:
    """Size and format of a picture file of ours, having checked that it is whole.

    PNG is checked by its checksums. The others have none: there it is checked that the structure is sound and the end
    is present. Cheap enough to follow every write (no pixel is decoded), and not meant for files from outside.

    Args:
        content: the file's bytes, or its mapping into memory.

    Raises:
        Failed: `not_verified`, saying what is wrong.
    """
    return _probe(content, lambda _position: None)


def _probe(content: Buffer, read_up_to: Callable[[int], None]) -> Probe:
    head = bytes(content[:12])
    try:
        if head.startswith(_PNG_MAGIC):
            with memoryview(content) as view:  # type: ignore[arg-type] # bytes and mmap are buffers
                return _probe_png(view, read_up_to)
        if head.startswith(b"\xff\xd8"):
            return _probe_jpeg(content)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _probe_webp(content)
        if head[:4] in _TIFF_MAGICS:
            return _probe_tiff(content)
    except (struct.error, IndexError) as error:
        raise _broken("it ends in the middle of a header") from error
    raise _broken("it is neither PNG, JPEG, WebP nor TIFF")


def probe_file(path: Path) -> Probe:
    """`probe` of a file, which is mapped, not read into memory."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise _broken("it is empty")
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return _probe(content, _Dropping(content).up_to)


class _Dropping:
    """Lets go of a mapping's pages behind the reader, which else count as this process's memory."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._dropped = 0

    def up_to(self, position: int) -> None:
        length = (position - self._dropped) // _DROPPED_TOGETHER * _DROPPED_TOGETHER
        if length:
            self._content.madvise(mmap.MADV_DONTNEED, self._dropped, length)
            self._dropped += length


def _probe_png(content: memoryview, read_up_to: Callable[[int], None]) -> Probe:
    width, height = struct.unpack_from(">II", content, 16)
    position, kind = len(_PNG_MAGIC), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", content, end)
        if _crc(content, position + 4, end) != checksum:
            raise _broken(f"a PNG checksum is wrong at byte {position}")
        position = end + 4
        read_up_to(position)
    if position != len(content):
        raise _broken("something follows the end of the PNG")
    return Probe(width, height, "png")


def _crc(content: memoryview, begin: int, end: int) -> int:
    with content[begin:end] as view:
        return zlib.crc32(view)


def _probe_jpeg(content: Buffer) -> Probe:
    if bytes(content[-2:]) != b"\xff\xd9":
        raise _broken("the end of the JPEG is missing")
    position, size = 2, None
    while True:
        prefix, marker, length = struct.unpack(">BBH", content[position : position + 4])
        if prefix != 0xFF:
            raise _broken(f"a JPEG marker is missing at byte {position}")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", content[position + 5 : position + 9])
            size = Probe(width, height, "jpeg")
        if marker == _JPEG_SCAN:
            break
        position += 2 + length
    if size is None:
        raise _broken("the JPEG has no frame header")
    return size


def _probe_webp(content: Buffer) -> Probe:
    head = bytes(content[:30])
    (length,) = struct.unpack_from("<I", head, 4)
    if length + 8 != len(content):
        raise _broken(f"the WebP has {len(content)} bytes of {length + 8}")
    width_height = header.webp(head)
    if width_height is None:
        raise _broken("the WebP has no picture")
    return Probe(*width_height, "webp")


def _probe_tiff(content: Buffer) -> Probe:
    """Of the first directory: every strip has to lie inside of the file."""
    order = "<" if content[0] == ord("I") else ">"
    big = struct.unpack(order + "H", content[2:4])[0] == 43
    count_form, offset_form, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    at = 8 if big else 4
    (position,) = struct.unpack(order + offset_form, content[at : at + struct.calcsize(offset_form)])
    wide = struct.calcsize(count_form)
    (entries,) = struct.unpack(order + count_form, content[position : position + wide])
    values: dict[int, tuple[int, ...]] = {}
    for number in range(min(entries, 1000)):
        begin = position + wide + number * entry
        values.update(_tiff_values(content, content[begin : begin + entry], order, big))
    if position + wide + entries * entry + struct.calcsize(offset_form) > len(content):
        raise _broken("the TIFF ends in its directory")
    try:
        size = Probe(values[256][0], values[257][0], "tiff")
        strips = list(zip(values[273], values[279], strict=True))
    except (KeyError, ValueError) as error:
        raise _broken("the TIFF has no picture") from error
    if any(begin + length > len(content) for begin, length in strips):
        raise _broken("a strip of the TIFF is missing")
    return size


_TIFF_TYPES = {3: "H", 4: "I", 16: "Q"}
_TIFF_SIZES = {1: 1, 2: 1, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 17: 8, 18: 8}
_TIFF_TAGS = frozenset({256, 257, 273, 279})  # width, height, where strips begin, how long they are


def _tiff_values(content: Buffer, entry: bytes, order: str, big: bool) -> dict[int, tuple[int, ...]]:
    tag, kind, count = struct.unpack(order + ("HHQ" if big else "HHI"), entry[: 12 if big else 8])
    form = f"{order}{count}{_TIFF_TYPES[kind]}" if kind in _TIFF_TYPES else ""
    size, place = struct.calcsize(form) if form else count * _TIFF_SIZES.get(kind, 1), entry[12 if big else 8 :]
    if size > len(place):
        (at,) = struct.unpack(order + ("Q" if big else "I"), place)
        if at + size > len(content):
            raise _broken("a value of the TIFF is missing")
        place = content[at : at + size]
    return {tag: struct.unpack(form, place[:size])} if form and tag in _TIFF_TAGS else {}


def _broken(what: str) -> Failed:
    return Failed("not_verified", f"The written picture is not whole: {what}.")
