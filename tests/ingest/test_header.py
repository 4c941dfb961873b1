import io
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mirror_realm_assets.ingest.header import HEADER_BYTES, claimed_size


def picture(file_format: str, size: tuple[int, int] = (123, 45), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_size_is_read_from_the_header_of_each_common_format(file_format: str) -> None:
    assert claimed_size(picture(file_format)) == (123, 45)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0MM\0*"})],
)
def test_variants_of_a_format_are_read_as_well(file_format: str, options: dict[str, object]) -> None:
    assert claimed_size(picture(file_format, **options)) == (123, 45)


def test_a_jpeg_is_measured_behind_large_metadata_and_fill_bytes() -> None:
    plain = picture("JPEG")
    metadata = b"\xff\xe1" + struct.pack(">H", 65_535) + bytes(65_533)
    assert claimed_size(plain[:2] + 3 * metadata + b"\xff\xff" + plain[2:]) == (123, 45)
    assert claimed_size(plain[:2] + 5 * metadata + plain[2:]) is None  # further behind than is read


def test_a_bitmap_whose_rows_run_from_the_top_has_a_positive_height() -> None:
    upside_down = bytearray(picture("BMP"))
    upside_down[22:26] = struct.pack("<i", -45)
    assert claimed_size(bytes(upside_down)) == (123, 45)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_is_measured_in_either_byte_order(order: str) -> None:
    entries = [(256, 3, struct.pack(f"{order}H6x", 123)), (257, 4, struct.pack(f"{order}I4x", 45))]
    directory = struct.pack(f"{order}Q", len(entries))
    directory += b"".join(struct.pack(f"{order}HHQ", tag, kind, 1) + value for tag, kind, value in entries)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 16) + directory
    assert claimed_size(head) == (123, 45)


def test_a_tiff_with_its_directory_at_the_end_has_no_size_in_the_first_bytes() -> None:
    assert claimed_size(b"II*\x00" + struct.pack("<I", 10 * HEADER_BYTES) + bytes(1000)) is None


def test_what_is_no_picture_or_claims_no_pixels_has_no_size() -> None:
    png = bytearray(picture("PNG"))
    png[16:20] = bytes(4)
    assert claimed_size(bytes(png)) is None
    assert claimed_size(b"") is None
    assert claimed_size(b"BM, said the text") is None


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_header_cut_anywhere_gives_the_size_or_none(file_format: str) -> None:
    whole = picture(file_format)
    assert {claimed_size(whole[:end]) for end in range(min(len(whole), 1200))} <= {None, (123, 45)}


_BEGINNINGS = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"RIFF\0\0\0\0WEBPVP8L",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"BM" + bytes(12) + b"\x0c\0\0\0",
    b"BM" + bytes(12) + b"\x28\0\0\0",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
    b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10",
]


@given(st.sampled_from(_BEGINNINGS), st.binary(max_size=400))
@example(b"MM\0+", b"\xff" * 100)
def test_no_bytes_whatever_raise(beginning: bytes, rest: bytes) -> None:
    size = claimed_size(beginning + rest)
    assert size is None or min(size) > 0
