"""Formats are told by content, and only ours are let through."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest.formats import SNIFF_BYTES, require, sniff


def encoded(pillow: str, **options) -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(file, pillow, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pillow", "mime"),
    [
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("TIFF", "image/tiff"),
        ("BMP", "image/bmp"),
        ("JPEG2000", "image/jp2"),
        ("AVIF", "image/avif"),
        ("HEIF", "image/heic"),
    ],
)
def test_what_pillow_writes_is_recognised(pillow, mime):
    found = require(encoded(pillow)[:SNIFF_BYTES])
    assert found.mime == mime
    Image.open(io.BytesIO(encoded(pillow)), formats=[found.name]).load()


def test_a_big_tiff_and_a_bare_jpeg_2000_stream_are_recognised():
    assert sniff(encoded("TIFF", big_tiff=True)).mime == "image/tiff"
    assert sniff(encoded("JPEG2000", no_jp2=True)).mime == "image/jp2"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<html><script>alert(1)</script>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\x00\x01",
        b"P6 1 1 255\n...",
        b"\x00\x00\x01\x00\x01\x00",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"BMW is a car maker from Munich, Germany",
        b"RIFF\x10\x00\x00\x00WAVEfmt ",
        b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00M4A mp42",
        b"#EXTM3U\nhttp://example.org/film.ts",
        b"ffconcat version 1.0\nfile secret.mp4",
    ],
)
def test_everything_else_is_unsupported(head):
    assert sniff(head) is None
    with pytest.raises(Refused) as caught:
        require(head)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(
    ("head", "mime", "reader"),
    [
        (b"%PDF-1.7", "application/pdf", "document"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42", "video/mp4", "video"),
        (b"\x00\x00\x00\x18ftypqt  \x00\x00\x00\x00qt  ", "video/quicktime", "video"),
        (b"\x00\x00\x07\x08moov", "video/quicktime", "video"),
        (b"\x1a\x45\xdf\xa3\x01\x00", "video/x-matroska", "video"),
        (b"RIFF\x10\x00\x00\x00AVI LIST", "video/x-msvideo", "video"),
        (b"\x47" + bytes(187) + b"\x47" + bytes(20), "video/mp2t", "video"),
        (bytes(4) + b"\x47" + bytes(191) + b"\x47" + bytes(20), "video/mp2t", "video"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "image/x-dcraw", "camera_raw"),
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", "image/x-dcraw", "camera_raw"),
        (b"FUJIFILMCCD-RAW 0201", "image/x-dcraw", "camera_raw"),
    ],
)
def test_videos_documents_and_raw_files_are_recognised(head, mime, reader):
    assert (require(head).mime, require(head).reader) == (mime, reader)


def test_generic_containers_are_told_apart_by_their_other_brands():
    def box(*brands: bytes) -> bytes:
        body = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
        return (len(body) + 4).to_bytes(4, "big") + body

    assert sniff(box(b"mif1", b"mif1", b"avif", b"miaf")).mime == "image/avif"
    assert sniff(box(b"mif1", b"mif1", b"heic")).mime == "image/heif"
    assert sniff(box(b"mif1", b"heic") + b"avif").mime == "image/heif"  # what follows the box is no brand


@given(st.binary(max_size=SNIFF_BYTES))
def test_any_bytes_have_an_answer(head):
    sniff(head)
