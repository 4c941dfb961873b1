"""From pixels to picture files.

What belongs here: encoding our results row by row. What does not: recognising a complete file of ours (`probing`),
decoding files from outside, which needs a sandbox and lives in `ingest`; EXIF in a file (`metadata`).

libvips encodes, because it takes a picture in rows: a result of hundreds of megapixels is never whole in memory. Rows
of a large picture wait in an unnamed file. PNG level 2 over Paeth-filtered rows was measured on a noisy photo of 4096 x
4096 pixels: 0.73 s and 23 MB; level 1 takes 0.59 s and 36 MB, zlib's default settings several seconds.
"""

from __future__ import annotations

import io
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, get_args

import numpy as np

from mirror_realm_assets.enhance import metadata
from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.errors import Failed

if TYPE_CHECKING:
    import pyvips

PictureFormat = Literal["png", "jpeg", "webp", "tiff"]
FORMATS: tuple[PictureFormat, ...] = get_args(PictureFormat)
SUFFIXES: dict[PictureFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif"}
"""How the name of a file of each format ends."""

_LONGEST_SIDE: dict[PictureFormat, int] = {"png": 2**31 - 1, "jpeg": 65_535, "webp": 16_383, "tiff": 2**31 - 1}
_QUALITY: dict[PictureFormat, int] = {"jpeg": 95, "webp": 90}
_WEBP_EFFORT = 2  # 0.14 s and 253 kB; 0 gives 0.10 s and 293 kB, the default 4 0.31 s and 247 kB
_IN_MEMORY = 64 << 20  # bytes of pixels; more wait in a file
_WAITING_STRIP = 1 << 20  # bytes of pixels that are read together
_SMALL = 256
_BIG_TIFF = 3 << 30  # bytes of pixels from which a TIFF may outgrow 32-bit offsets


@dataclass(frozen=True)
class Style:
    """How a picture is written.

    Attributes:
        format: PNG and TIFF are lossless and keep 16 bits; JPEG, without colour subsampling, and WebP are lossy.
        quality: of JPEG (95 by default) and WebP (90), 1 to 100.
        icc: colour profile to embed; without one the picture counts as sRGB.
        exif: EXIF block to embed, without its `Exif` marker.
    """

    format: PictureFormat
    quality: int | None = None
    icc: bytes | None = None
    exif: bytes | None = None


def encode(image: Pixels, style: Style | PictureFormat) -> bytes:
    """A picture file in memory; see `encode_rows`."""
    chosen = Style(style) if isinstance(style, str) else style
    target = io.BytesIO()
    encode_rows(iter([image]), image.shape[:2], chosen, target)
    return target.getvalue()


def encode_rows(
    rows: Iterable[Pixels], size: tuple[int, int], style: Style, target: BinaryIO, folder: Path | None = None
) -> None:
    """Write a picture file from rows as they come.

    Args:
        rows: from top to bottom, all of one type: `hxW` grey, `hxWx2` grey with alpha, `hxWx3` RGB, `hxWx4` RGBA;
            `uint8` or `uint16`. JPEG and WebP get 8 bits, JPEG gets white where nothing is opaque.
        size: height and width of the whole.
        style: how.
        target: where to; written from its position on.
        folder: where rows of a large picture may wait, in a file without name; the system's folder for temporary
            files by default.

    Raises:
        Failed: `invalid_argument` when the format cannot hold a picture of this size; `internal` when the encoder
            fails; `disk_full` when there is no space for the waiting rows.
        ValueError: an array of another shape or type, or too few rows.
    """
    if min(size) < 1:
        raise ValueError(f"expected a picture, got {size}")
    require_size(size, style.format)
    with _gathered(rows, size, style.format, folder) as image, _encoded(image, style, folder) as encoded:
        metadata.copy_with_exif(encoded, target, style.format, style.exif)


def require_size(size: tuple[int, int], file_format: PictureFormat) -> None:
    """Make sure that a format can hold a picture of that height and width.

    Raises:
        Failed: `invalid_argument`.
    """
    if max(size) > _LONGEST_SIDE[file_format]:
        raise Failed(
            "invalid_argument",
            f"A picture of {size[1]}x{size[0]} pixels is too large for {file_format}.",
            remedy="Choose png or tiff.",
        )


def fitted(pixels: Pixels, file_format: PictureFormat) -> Pixels:
    """Pixels as a format can hold them.

    Raises:
        ValueError: an array of another shape or type.
    """
    channels = pixels.shape[2:]
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"expected rows of a picture, got {pixels.shape} {pixels.dtype}")
    if channels not in ((), (2,), (3,), (4,)):
        raise ValueError(f"expected 1 to 4 channels, got {pixels.shape}")
    if file_format in ("jpeg", "webp") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
    if file_format == "jpeg" and channels in ((2,), (4,)):
        return _on_white(pixels)
    return pixels


def _on_white(pixels: Pixels) -> Pixels:
    alpha = pixels[..., -1:].astype(np.uint32)
    colours = pixels[..., :-1].astype(np.uint32)
    shown = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return shown[..., 0] if shown.shape[2] == 1 else shown


@contextmanager
def _gathered(
    rows: Iterable[Pixels], size: tuple[int, int], file_format: PictureFormat, folder: Path | None
) -> Iterator[pyvips.Image]:
    """The picture that rows make, for libvips to read."""
    strips = (fitted(strip, file_format) for strip in rows)
    first = next(strips, None)
    if first is None:
        raise ValueError("expected rows, got none")
    checked = _checked(chain([first], strips), size, first)
    if size[0] * size[1] * first.itemsize * (first.shape[2] if first.ndim == 3 else 1) <= _IN_MEMORY:
        whole = np.concatenate(list(checked))
        yield _image(whole.data, size, first)
        return
    with tempfile.TemporaryFile(dir=folder) as waiting:
        # Without a name it goes with us, however we end.
        waiting.write(_tiff_head(size, first))
        for strip in checked:
            waiting.write(np.ascontiguousarray(strip).data)
        waiting.flush()
        yield _waiting_image(waiting, first)


def _checked(strips: Iterable[Pixels], size: tuple[int, int], first: Pixels) -> Iterator[Pixels]:
    count = 0
    for strip in strips:
        if strip.shape[1:] != first.shape[1:] or strip.shape[1] != size[1] or strip.dtype != first.dtype:
            raise ValueError(f"expected rows like the first, got {strip.shape} {strip.dtype}")
        count += strip.shape[0]
        yield strip
    if count != size[0]:
        raise ValueError(f"expected {size[0]} rows, got {count}")


def _bands(like: Pixels) -> int:
    return like.shape[2] if like.ndim == 3 else 1


def _tiff_head(size: tuple[int, int], like: Pixels) -> bytes:
    """Of a BigTIFF, up to its pixels, which follow uncompressed, row by row.

    Raw pixels would need no head, but libvips maps such a file as a whole, and its pages would count as ours; a TIFF
    it reads a strip at a time.
    """
    height, width = size
    bands, bits = _bands(like), 8 * like.itemsize
    row = width * bands * like.itemsize
    rows = max(1, _WAITING_STRIP // row)
    count = -(-height // rows)
    colour = 2 if bands >= 3 else 1
    short, long, long8 = 3, 4, 16
    letters = {short: "H", long: "I", long8: "Q"}
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [bits] * bands),
        (259, short, [1]),  # no compression
        (262, short, [colour]),
        (273, long8, [0] * count),
        (277, short, [bands]),
        (278, long, [rows]),
        (279, long8, [row * min(rows, height - strip * rows) for strip in range(count)]),
    ]
    if bands in (2, 4):
        tags.append((338, short, [2]))  # alpha that colours are not multiplied with
    begin = 16 + 8 + 20 * len(tags) + 8
    pixels = begin + 2 * 8 * count
    tags[5] = (273, long8, [pixels + strip * rows * row for strip in range(count)])
    head = struct.pack("=2sHHHQQ", b"II" if sys.byteorder == "little" else b"MM", 43, 8, 0, 16, len(tags))
    tail = b""
    for tag, kind, values in tags:
        packed = struct.pack(f"={len(values)}{letters[kind]}", *values)
        if len(packed) > 8:
            packed, tail = struct.pack("=Q", begin + len(tail)), tail + packed
        head += struct.pack("=HHQ", tag, kind, len(values)) + packed.ljust(8, b"\0")
    return (head + bytes(8) + tail).ljust(pixels, b"\0")


def _waiting_image(waiting: IO[bytes], like: Pixels) -> pyvips.Image:
    import pyvips

    image = pyvips.Image.tiffload(f"/proc/self/fd/{waiting.fileno()}", access="sequential")
    return _of_kind(image, like)


def _image(source: memoryview, size: tuple[int, int], like: Pixels) -> pyvips.Image:
    import pyvips

    kind = "uchar" if like.dtype == np.uint8 else "ushort"
    return _of_kind(pyvips.Image.new_from_memory(source, size[1], size[0], _bands(like), kind), like)


def _of_kind(image: pyvips.Image, like: Pixels) -> pyvips.Image:
    grey, colour = ("b-w", "srgb") if like.dtype == np.uint8 else ("grey16", "rgb16")
    return image.copy(interpretation=colour if image.bands >= 3 else grey)


@contextmanager
def _encoded(image: pyvips.Image, style: Style, folder: Path | None) -> Iterator[BinaryIO]:
    """The file that libvips makes, from its beginning."""
    import pyvips

    if style.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", style.icc)
    with tempfile.TemporaryFile(dir=folder) as made:
        try:
            target = pyvips.Target.new_to_descriptor(made.fileno())
            _save(image, target, style)
        except pyvips.Error as error:
            raise Failed("internal", f"The {style.format} encoder failed: {error}") from error
        made.seek(0)
        yield made


def _save(image: pyvips.Image, target: pyvips.Target, style: Style) -> None:
    quality = style.quality or _QUALITY.get(style.format)
    # Nothing but the profile: libvips would write resolution and EXIF of its own.
    if style.format == "png":
        image.pngsave_target(target, compression=2, filter="paeth", keep="icc")
    elif style.format == "jpeg":
        image.jpegsave_target(target, Q=quality, subsample_mode="off", keep="icc")
    elif style.format == "webp":
        image.webpsave_target(target, Q=quality, effort=_WEBP_EFFORT, keep="icc")
    else:
        big = image.width * image.height * image.bands * (2 if image.format == "ushort" else 1) > _BIG_TIFF
        image.tiffsave_target(target, compression="deflate", predictor="horizontal", bigtiff=big, keep="icc")


def small(source: Pixels | Path) -> bytes:
    """A JPEG of at most 256 pixels a side, in sRGB on white, of pixels or of a picture file of ours."""
    import pyvips

    if isinstance(source, Path):
        image = pyvips.Image.thumbnail(str(source), _SMALL, height=_SMALL, size="down", export_profile="srgb")
    else:
        whole = _image(np.ascontiguousarray(source).data, source.shape[:2], source)
        image = whole.thumbnail_image(_SMALL, height=_SMALL, size="down").colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    content: bytes = image.jpegsave_buffer(Q=90, keep="none")
    return content
