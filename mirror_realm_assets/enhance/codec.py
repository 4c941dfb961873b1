"""From pixels to picture files, and a check that such files are whole.

What belongs here: encoding our results row by row, and recognising a complete file of ours. What does not: decoding
files from outside, which needs a sandbox and lives in `ingest`; EXIF in a file (`metadata`).

libvips encodes, because it takes a picture in rows: a result of hundreds of megapixels is never whole in memory. Rows
of a large picture wait in an unnamed file. PNG level 2 over Paeth-filtered rows was measured on a noisy photo of 4096 x
4096 pixels: 0.73 s and 23 MB; level 1 takes 0.59 s and 36 MB, zlib's default settings several seconds.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol, get_args

import numpy as np

from mirror_realm_assets.enhance import metadata
from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.ingest import header

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
_DROPPED_TOGETHER = 16 << 20  # bytes, whole pages
_SMALL = 256
_BIG_TIFF = 3 << 30  # bytes of pixels from which a TIFF may outgrow 32-bit offsets

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
        packed = struct.pack(f"={len(values)}{_TIFF_TYPES[kind]}", *values)
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
