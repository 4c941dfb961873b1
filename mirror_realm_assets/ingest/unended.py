"""JPEGs whose pixels are all there and whose end marker is not: what runs inside the sandboxed child, and only there.

Some cameras and frame grabbers leave the marker out, and every viewer shows their pictures. Decoders, ours too, cannot
tell such a file from one whose end was lost in a copy, and that one is to be copied again, not to be shown with a grey
bottom. What belongs here: telling the two apart. What does not: decoding a picture (`decoding`).
"""

from __future__ import annotations

import hashlib
import io
import mmap
from functools import cache

from mirror_realm_assets.ingest import image_digest

_END = b"\xff\xd9"
_SCAN, _SEQUENTIAL = b"\xda", (b"\xc0", b"\xc1")
_COMPONENTS_AT = 5  # of a frame header's payload: precision, height and width stand before it
_MAX_BYTES = 64 << 20  # such files come from small devices, and copies of one are decoded
_RESTARTS = [bytes([0xFF, code]) for code in range(0xD0, 0xD8)]


def completed(data: mmap.mmap) -> mmap.mmap | None:
    """The file with the end marker that it lacks; None where pixels are missing, or where that cannot be told.

    Whatever follows the last coded pixel does not matter to a complete picture. So it is decoded twice, with nothing
    and with noise before the marker: where a pixel is missing, the noise shows.

    Args:
        data: a JPEG that ended too early for its decoder.
    """
    if len(data) > _MAX_BYTES:
        return None
    whole = bytes(data) + _END
    segments = image_digest.jpeg_segments(whole)
    frames = [payload for marker, payload in segments if marker in _SEQUENTIAL]
    scans = [payload for marker, payload in segments if marker == _SCAN]
    if len(frames) != 1 or len(scans) != 1 or scans[0][:1] != frames[0][_COMPONENTS_AT : _COMPONENTS_AT + 1]:
        return None  # a whole scan that is missing shows nowhere: the picture is only coarser, or grey
    try:
        if _pixels(whole) != _pixels(bytes(data) + _noise() + _END):
            return None
    except OSError:  # the last bytes are the first half of something
        return None
    made = mmap.mmap(-1, len(whole))
    made.write(whole)
    return made


def _pixels(data: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        size = f"{image.mode} {image.width} {image.height}".encode()
        return hashlib.sha256(size + image.tobytes()).digest()


@cache
def _noise() -> bytes:
    """Coded bytes that mean something wherever they are read: at once, or where a restart is expected."""
    some = hashlib.sha512(b"noise").digest().replace(b"\xff", b"\x5a")
    return some + b"".join(restart + some for restart in _RESTARTS)
