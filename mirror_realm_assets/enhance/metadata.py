"""EXIF in the files that we write.

What belongs here: where each format keeps an EXIF block, and putting one in while a finished file is copied. What does
not: reading EXIF of files from outside (`ingest.stills`), colour profiles (`codec`), directories of TIFF (`tiff_exif`).

libvips would take the block apart and write what it knows of it.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from typing import BinaryIO

from mirror_realm_assets.enhance import tiff_exif
from mirror_realm_assets.ingest import header

_PNG_HEADER_END = 33  # IHDR is always the first chunk and 25 bytes long, behind 8 bytes of magic
_MARKER = b"Exif\x00\x00"
_MOST_IN_JPEG = 65_533 - len(_MARKER)
_VP8X_EXIF, _VP8X_ALPHA = 0x08, 0x10
_COPY = 1 << 20


def copy_with_exif(source: BinaryIO, target: BinaryIO, file_format: str, exif: bytes | None) -> None:
    """Copy a picture file from its beginning, with an EXIF block in it.

    Args:
        source: a finished file without EXIF, at its beginning.
        target: where to.
        file_format: `png`, `jpeg`, `webp` or `tiff`.
        exif: a TIFF structure as EXIF defines it; None or one too large for a JPEG copies the file as it is.
    """
    put = {"png": _into_png, "jpeg": _into_jpeg, "webp": _into_webp, "tiff": _into_tiff}.get(file_format)
    if exif and put is not None:
        put(source, target, exif)
    shutil.copyfileobj(source, target, _COPY)


def _into_png(source: BinaryIO, target: BinaryIO, exif: bytes) -> None:
    target.write(source.read(_PNG_HEADER_END))
    target.write(struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif)))


def _into_jpeg(source: BinaryIO, target: BinaryIO, exif: bytes) -> None:
    if len(exif) > _MOST_IN_JPEG:
        return
    target.write(source.read(2))
    # The EXIF standard wants its block first; readers take a JFIF block behind it as well.
    target.write(b"\xff\xe1" + struct.pack(">H", 2 + len(_MARKER) + len(exif)) + _MARKER + exif)


def _into_webp(source: BinaryIO, target: BinaryIO, exif: bytes) -> None:
    """Behind all other chunks; a file of the simple form becomes one of the extended form first."""
    head = source.read(30)
    (length,) = struct.unpack_from("<I", head, 4)
    size = header.webp(head)
    if size is None:
        target.write(head)
        return
    if head[12:16] == b"VP8X":
        begin, rest = head[:20] + bytes([head[20] | _VP8X_EXIF]) + head[21:], length + 8 - len(head)
    else:
        alpha = _VP8X_ALPHA if head[12:16] == b"VP8L" and head[24] & 0x10 else 0
        sides = (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")
        extended = b"VP8X" + struct.pack("<I", 10) + bytes([_VP8X_EXIF | alpha, 0, 0, 0]) + sides
        begin, rest = head[:12] + extended + head[12:], length + 8 - len(head)
        length += len(extended)
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\x00" * (len(exif) % 2)
    target.write(begin[:4] + struct.pack("<I", length + len(chunk)) + begin[8:])
    _copy(source, target, rest)
    target.write(chunk)


def _into_tiff(source: BinaryIO, target: BinaryIO, exif: bytes) -> None:
    try:
        made = tiff_exif.header_and_addition(source, exif)
    except (struct.error, KeyError):  # no block of ours: the picture is worth more
        made = None
    source.seek(0)
    if made is None:
        return
    head, addition = made
    source.seek(len(head))
    target.write(head)
    shutil.copyfileobj(source, target, _COPY)
    target.write(addition)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count > 0:
        piece = source.read(min(count, _COPY))
        if not piece:
            return
        target.write(piece)
        count -= len(piece)
