"""Telling a file's format by its content: the gate in front of every decoder.

What belongs here: magic bytes, the formats we accept, who decodes them and under which name. What does not: decoding
(`ingest.decoding`) and file names, which are never believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirror_realm_assets.errors import Refused

SNIFF_BYTES = 256
"""How many leading bytes `sniff` wants to see."""


Reader = Literal["picture", "video", "document", "camera_raw"]


@dataclass(frozen=True)
class Format:
    """One accepted format.

    Attributes:
        mime: what the ledger records.
        name: the only name under which its decoder may open it: Pillow's `formats`, FFmpeg's demuxer. Decoders that
            look for themselves would also find playlists and the like, which point at other files.
        reader: who decodes it.
    """

    mime: str
    name: str
    reader: Reader = "picture"


JPEG = Format("image/jpeg", "JPEG")  # also MPO: a JPEG followed by more of them
PNG = Format("image/png", "PNG")
GIF = Format("image/gif", "GIF")
WEBP = Format("image/webp", "WEBP")
TIFF = Format("image/tiff", "TIFF")
BMP = Format("image/bmp", "BMP")
JPEG2000 = Format("image/jp2", "JPEG2000")
AVIF = Format("image/avif", "AVIF")
HEIC = Format("image/heic", "HEIF")
HEIF = Format("image/heif", "HEIF")

DNG = Format("image/x-adobe-dng", "raw", "camera_raw")
CAMERA_RAW = Format("image/x-dcraw", "raw", "camera_raw")  # whichever maker's

MP4 = Format("video/mp4", "mov", "video")
QUICKTIME = Format("video/quicktime", "mov", "video")
MATROSKA = Format("video/x-matroska", "matroska", "video")
AVI = Format("video/x-msvideo", "avi", "video")
TRANSPORT_STREAM = Format("video/mp2t", "mpegts", "video")
PROGRAM_STREAM = Format("video/mpeg", "mpeg", "video")
WINDOWS_MEDIA = Format("video/x-ms-wmv", "asf", "video")
FLASH = Format("video/x-flv", "flv", "video")
OGG = Format("video/ogg", "ogg", "video")

PDF = Format("application/pdf", "pdf", "document")

PICTURES: tuple[Format, ...] = (JPEG, PNG, GIF, WEBP, TIFF, BMP, JPEG2000, AVIF, HEIC, HEIF)
VIDEOS: tuple[Format, ...] = (
    MP4,
    QUICKTIME,
    MATROSKA,
    AVI,
    TRANSPORT_STREAM,
    PROGRAM_STREAM,
    WINDOWS_MEDIA,
    FLASH,
    OGG,
)
FORMATS: tuple[Format, ...] = (*PICTURES, DNG, CAMERA_RAW, *VIDEOS, PDF)

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\x00", TIFF),
    (b"MM\x00*", TIFF),
    (b"II+\x00", TIFF),  # BigTIFF
    (b"MM\x00+", TIFF),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", JPEG2000),
    (b"\xff\x4f\xff\x51", JPEG2000),  # a bare code stream
    (b"FUJIFILMCCD-RAW", CAMERA_RAW),
    (b"IIU\x00", CAMERA_RAW),  # Panasonic
    (b"IIRO", CAMERA_RAW),  # Olympus
    (b"IIRS", CAMERA_RAW),
    (b"MMOR", CAMERA_RAW),
    (b"\x00MRM", CAMERA_RAW),  # Minolta
    (b"FOVb", CAMERA_RAW),  # Sigma
    (b"\x1a\x45\xdf\xa3", MATROSKA),  # also WebM
    (b"\x00\x00\x01\xba", PROGRAM_STREAM),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", WINDOWS_MEDIA),
    (b"FLV\x01", FLASH),
    (b"OggS", OGG),
    (b"%PDF-", PDF),
)
# "BM" alone begins a lot of text; the size of the header that follows tells a bitmap from it.
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_GENERIC_BRANDS = frozenset({b"mif1", b"msf1"})
_CANON_BRAND = b"crx "
_AUDIO_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "})
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"pnot"})  # older films have no box that names the format
_TRANSPORT_SYNC = ((0, 188), (4, 192))


def sniff(head: bytes) -> Format | None:
    """The format that the first `SNIFF_BYTES` bytes of a file speak of, or None when it is none of ours.

    A camera's raw file that is a TIFF passes for one here, unless it is Canon's: its tags tell (`ingest.camera_raw`).
    """
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _sniff_brands(head)
    if head[4:8] in _QUICKTIME_ATOMS:
        return QUICKTIME
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return BMP
    if head[:2] in (b"II", b"MM") and head[8:10] == b"CR":
        return CAMERA_RAW  # Canon's CR2: as a TIFF it would show its thumbnail
    if found := next((format_ for magic, format_ in _MAGIC if head.startswith(magic)), None):
        return found
    # Last, as its sign is one letter: every 256th GIF has a "G" where a second packet would begin.
    return TRANSPORT_STREAM if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes that begin alike; in files of camcorders each has four bytes of time before it."""
    return any(head[at : at + 1] == head[at + step : at + step + 1] == b"\x47" for at, step in _TRANSPORT_SYNC)


def _sniff_brands(head: bytes) -> Format | None:
    """AVIF, HEIF, Canon's CR3 and MP4 share a container; the brands of its first box tell them apart."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    if major in _AVIF_BRANDS:
        return AVIF
    if major in _HEIC_BRANDS:
        return HEIC
    if major == _CANON_BRAND:
        return CAMERA_RAW
    if major in _AUDIO_BRANDS:
        return None
    if major == b"qt  ":
        return QUICKTIME
    if major not in _GENERIC_BRANDS:
        return MP4
    compatible = {head[i : i + 4] for i in range(16, end - 3, 4)}
    return AVIF if compatible & _AVIF_BRANDS else HEIF


def require(head: bytes) -> Format:
    """The format of `head`.

    Raises:
        Refused: `unsupported` when it is none of ours.
    """
    found = sniff(head)
    if found is None:
        raise Refused("unsupported", "Its content is no supported format of pictures, videos or documents.")
    return found
