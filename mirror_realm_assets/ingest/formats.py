"""Telling a picture's format by its content: the gate in front of every decoder.

What belongs here: magic bytes, the formats we accept and what Pillow calls them. What does not: decoding
(`ingest.decoding`) and file names, which are never believed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror_realm_assets.errors import Refused

SNIFF_BYTES = 256
"""How many leading bytes `sniff` wants to see."""


@dataclass(frozen=True)
class Format:
    """One accepted format.

    Attributes:
        mime: what the ledger records.
        pillow: the only name that may be passed to `PIL.Image.open(formats=[...])`.
    """

    mime: str
    pillow: str


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

FORMATS: tuple[Format, ...] = (JPEG, PNG, GIF, WEBP, TIFF, BMP, JPEG2000, AVIF, HEIC, HEIF)

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
)
# "BM" alone begins a lot of text; the size of the header that follows tells a bitmap from it.
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_GENERIC_BRANDS = frozenset({b"mif1", b"msf1"})


def sniff(head: bytes) -> Format | None:
    """The format that the first `SNIFF_BYTES` bytes of a file speak of, or None when it is none of ours."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        return _sniff_brands(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return BMP
    if head[:2] in (b"II", b"MM") and head[8:10] == b"CR":
        return None  # Canon's CR2: as a TIFF it would show its thumbnail
    return next((format_ for magic, format_ in _MAGIC if head.startswith(magic)), None)


def _sniff_brands(head: bytes) -> Format | None:
    """AVIF and HEIF share a container; the brands of its first box tell them (and videos) apart."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    if major in _AVIF_BRANDS:
        return AVIF
    if major in _HEIC_BRANDS:
        return HEIC
    if major not in _GENERIC_BRANDS:
        return None
    compatible = {head[i : i + 4] for i in range(16, end - 3, 4)}
    return AVIF if compatible & _AVIF_BRANDS else HEIF


def require(head: bytes) -> Format:
    """The format of `head`.

    Raises:
        Refused: `unsupported` when it is none of ours.
    """
    found = sniff(head)
    if found is None:
        raise Refused("unsupported", "Its content is none of the supported picture formats.")
    return found
