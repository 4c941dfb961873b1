"""The image digest: a name for what a picture shows, blind to ratings, titles, places and dates.

What belongs here: which bytes of a file make its picture. The digest keys all picture features, so an edit of metadata
costs no model call; orientation and colour profile change what is shown and therefore count. What does not belong
here: the sha256 of the file, which `ingest.originals` takes.

JPEG, PNG, WebP and GIF are read structurally: their coded data, without decoding. Everything else, and whatever has a
structure we do not understand, is named by its decoded pixels (`of_pixels`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# Raise a version when the choice of bytes changes: old and new digests must never meet by chance.
_VERSION = "1"
_STRIP_PIXELS = 1 << 22

Buffer = Any  # bytes, or an mmap: both can be sliced, searched and have a length


class _Malformed(Exception):
    """The structure is not what the format says; the picture is named by its pixels instead."""


def of_coded(data: Buffer, mime: str) -> bytes | None:
    """Digest of the coded picture in the file `data`, or None when it has to be named by its pixels."""
    reader = _READERS.get(mime)
    if reader is None:
        return None
    try:
        return _digest(mime, reader(data))
    except _Malformed:
        return None


def of_pixels(image: Image.Image, icc: bytes | None, *, extra: bytes = b"") -> bytes:
    """Digest of the decoded `image` as stored, with its mode, size and colour profile.

    Args:
        image: loaded, in its own mode.
        icc: its colour profile.
        extra: names what the first picture does not show (further pages or frames).
    """
    if image.mode == "P":
        image = image.convert("RGBA")  # the order of a palette does not matter, the colours do
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    strips = (
        image.crop((0, top, image.width, min(top + rows, image.height))).tobytes()
        for top in range(0, image.height, rows)
    )
    size = f"{image.mode} {image.width} {image.height}".encode()
    # Strips have a length that follows from the size, so their borders add nothing.
    return _digest("pixels", [(b"head", size), (b"icc", icc or b""), (b"extra", extra), *((b"", s) for s in strips)])


def with_orientation(core: bytes, orientation: int) -> str:
    """The image digest (64 hexadecimal characters) of a picture and its EXIF orientation (1 to 8)."""
    return _digest("image", [(b"core", core), (b"orientation", bytes([orientation]))]).hex()


def _digest(scheme: str, parts: Iterable[tuple[bytes, Buffer]]) -> bytes:
    digest = hashlib.sha256(f"mirror-realm image digest {_VERSION} {scheme}\n".encode())
    for tag, payload in parts:
        digest.update(tag + b"\0" + len(payload).to_bytes(8, "big"))
        digest.update(payload)
    return digest.digest()


# JPEG --------------------------------------------------------------------------------------------------------------

_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_EOI, _JPEG_SOS, _JPEG_APP2, _JPEG_APP14, _JPEG_COM = 0xD9, 0xDA, 0xE2, 0xEE, 0xFE
_JPEG_SCAN_END = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def jpeg_segments(data: Buffer) -> list[tuple[bytes, Buffer]]:
    """The segments of a JPEG that say how it is coded, as marker code and payload; none where it is malformed."""
    try:
        return list(_jpeg(data))
    except _Malformed:
        return []


def _jpeg(data: Buffer) -> Iterator[tuple[bytes, Buffer]]:
    profile: list[bytes] = []
    adobe = b""
    scans = 0
    position = 2
    while True:
        position, marker = _jpeg_marker(data, position)
        if marker == _JPEG_EOI:
            break
        if marker in _JPEG_STANDALONE:
            continue
        payload = _jpeg_segment(data, position)
        position += 2 + len(payload)
        if marker == _JPEG_APP2 and payload.startswith(b"ICC_PROFILE\0"):
            profile.append(payload)
        elif marker == _JPEG_APP14 and payload.startswith(b"Adobe"):
            adobe = payload
        elif not (0xE0 <= marker <= 0xEF or marker == _JPEG_COM):
            yield bytes([marker]), payload
        if marker == _JPEG_SOS:
            scans += 1
            end = _JPEG_SCAN_END.search(data, position)
            if end is None:
                raise _Malformed
            yield b"scan", data[position : end.start()]
            position = end.start()
    if not scans:
        raise _Malformed
    # Programs that edit metadata move these segments about; their place means nothing.
    yield b"adobe", adobe
    yield b"icc", b"".join(sorted(profile))


def _jpeg_marker(data: Buffer, position: int) -> tuple[int, int]:
    """Position after the next marker, and its code."""
    start = position
    while data[position : position + 1] == b"\xff":  # any number of fill bytes
        position += 1
    code = data[position : position + 1]
    if position == start or not code or code == b"\0":
        raise _Malformed
    return position + 1, code[0]


def _jpeg_segment(data: Buffer, position: int) -> bytes:
    length = int.from_bytes(data[position : position + 2], "big")
    payload = bytes(data[position + 2 : position + length])
    if length < 2 or len(payload) != length - 2:
        raise _Malformed
    return payload


# PNG ---------------------------------------------------------------------------------------------------------------

_PNG_COLOUR = frozenset({b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP"})
_PNG_FRAMES = frozenset({b"acTL", b"fcTL", b"fdAT"})


def _png(data: Buffer) -> Iterator[tuple[bytes, Buffer]]:
    position = 8
    colour: list[tuple[bytes, bytes]] = []
    pixels = hashlib.sha256()  # over all of them: where the data is cut into chunks means nothing
    has_pixels = False
    while True:
        length, kind = int.from_bytes(data[position : position + 4], "big"), bytes(data[position + 4 : position + 8])
        payload = data[position + 8 : position + 8 + length]
        if len(payload) != length or len(kind) != 4 or (position == 8) != (kind == b"IHDR"):
            raise _Malformed
        position += 12 + length
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            if not has_pixels:
                yield kind, b""  # its place among the frames says whether it is one of them
            has_pixels = True
            pixels.update(payload)
        elif kind == b"IHDR" or kind in _PNG_FRAMES:
            yield kind, payload
        elif kind in _PNG_COLOUR:
            colour.append((kind, payload))
    if not has_pixels:
        raise _Malformed
    yield b"pixels", pixels.digest()
    yield from sorted(colour)


# WebP --------------------------------------------------------------------------------------------------------------

_WEBP_PICTURE = frozenset({b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})


def _webp(data: Buffer) -> Iterator[tuple[bytes, Buffer]]:
    end = 8 + int.from_bytes(data[4:8], "little")
    position = 12
    canvas = b""
    kinds = set()
    while position + 8 <= end:
        kind, length = bytes(data[position : position + 4]), int.from_bytes(data[position + 4 : position + 8], "little")
        payload = data[position + 8 : position + 8 + length]
        if len(payload) != length:
            raise _Malformed
        position += 8 + length + length % 2
        kinds.add(kind)
        if kind == b"VP8X":
            canvas = bytes(payload[4:10])
        elif kind in _WEBP_PICTURE:
            yield kind, payload
    if not kinds & {b"VP8 ", b"VP8L", b"ANMF"}:
        raise _Malformed
    if b"ANMF" in kinds:
        # Only animations: adding metadata to a plain file adds a VP8X chunk, its canvas being the picture's size.
        yield b"canvas", canvas


# GIF ---------------------------------------------------------------------------------------------------------------

_GIF_TRAILER, _GIF_IMAGE, _GIF_EXTENSION = 0x3B, 0x2C, 0x21
_GIF_COMMENT, _GIF_APPLICATION = 0xFE, 0xFF


def _gif_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _gif(data: Buffer) -> Iterator[tuple[bytes, Buffer]]:
    if len(data) < 13:
        raise _Malformed
    position = 13 + _gif_table_bytes(data[10])
    yield b"head", data[6:position]
    pictures = 0
    while True:
        kind = _gif_byte(data, position)
        if kind == _GIF_TRAILER:
            break
        if kind == _GIF_EXTENSION:
            label = _gif_byte(data, position + 1)
            end = _gif_blocks_end(data, position + 2)
            # Of the applications' blocks (XMP among them) only the loop count is part of what is shown.
            name = data[position + 3 : position + 14]
            if label != _GIF_COMMENT and (label != _GIF_APPLICATION or name == b"NETSCAPE2.0"):
                yield b"extension", data[position:end]
        elif kind == _GIF_IMAGE:
            pictures += 1
            end = _gif_blocks_end(data, position + 11 + _gif_table_bytes(_gif_byte(data, position + 9)))
            yield b"picture", data[position:end]
        else:
            raise _Malformed
        position = end
    if not pictures:
        raise _Malformed


def _gif_blocks_end(data: Buffer, position: int) -> int:
    while length := _gif_byte(data, position):
        position += 1 + length
    return position + 1


def _gif_byte(data: Buffer, position: int) -> int:
    byte = data[position : position + 1]
    if not byte:
        raise _Malformed
    return int(byte[0])


_READERS = {"image/jpeg": _jpeg, "image/png": _png, "image/webp": _webp, "image/gif": _gif}
