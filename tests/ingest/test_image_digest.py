"""The image digest is blind to metadata and sees everything that changes what is shown."""

import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from mirror_realm_assets.ingest import image_digest
from mirror_realm_assets.ingest.image_digest import of_coded, of_pixels, with_orientation

RATING, DESCRIPTION, ORIENTATION, DATE, GPS = 0x4746, 0x010E, 0x0112, 0x0132, 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(seed: int = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, pillow: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, pillow, **options)
    return file.getvalue()


def exif(**tags) -> bytes:
    found = Image.Exif()
    found[RATING] = tags.get("rating", 3)
    found[DESCRIPTION] = tags.get("title", "a title")
    found[DATE] = tags.get("date", "2024:02:29 23:59:59")
    found.get_ifd(GPS).update({1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 40.0)})
    return found.tobytes()


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def after_soi(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def after_ihdr(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]


JPEG = encoded(picture(), "JPEG")
PNG = encoded(picture(), "PNG")
GIF = encoded(picture(), "GIF")
WEBP = encoded(picture(), "WEBP")
jpeg = partial(of_coded, mime="image/jpeg")
png = partial(of_coded, mime="image/png")
webp = partial(of_coded, mime="image/webp")
gif = partial(of_coded, mime="image/gif")


@pytest.mark.parametrize(
    "edited",
    [
        after_soi(JPEG, jpeg_segment(0xE1, exif())),
        after_soi(JPEG, jpeg_segment(0xE1, exif(rating=5, title="other", date="1999:01:01 00:00:00"))),
        after_soi(JPEG, jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmp:Rating='5'/>")),
        after_soi(JPEG, jpeg_segment(0xED, b"Photoshop 3.0\0IPTC"), jpeg_segment(0xFE, b"a comment")),
        JPEG[:2] + b"\xff\xff\xff" + JPEG[2:],  # fill bytes
        JPEG + b"PK\x03\x04 a ZIP behind the picture",
    ],
    ids=["EXIF", "other EXIF", "XMP", "IPTC and comment", "fill bytes", "garbage behind"],
)
def test_metadata_of_a_jpeg_does_not_count(edited):
    assert edited != JPEG
    assert jpeg(edited) == jpeg(JPEG) is not None


@pytest.mark.parametrize(
    "other",
    [
        encoded(picture(1), "JPEG"),
        encoded(picture(), "JPEG", quality=80),
        encoded(picture(), "JPEG", progressive=True),
        encoded(picture(), "JPEG", icc_profile=SRGB),
        after_soi(JPEG, jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")),  # changes the colour transform
    ],
    ids=["pixels", "quality", "coding", "profile", "colour transform"],
)
def test_what_a_jpeg_shows_counts(other):
    assert jpeg(other) not in (None, jpeg(JPEG))


def test_every_byte_of_a_scan_counts():
    start = JPEG.index(b"\xff\xda") + 14
    for position in range(start, len(JPEG) - 2, 37):
        changed = bytearray(JPEG)
        changed[position] ^= 1
        if 0xFF not in (JPEG[position], JPEG[position - 1], changed[position]):
            assert jpeg(bytes(changed)) != jpeg(JPEG)


def test_the_place_of_a_profile_among_other_segments_does_not_count():
    with_icc = encoded(picture(), "JPEG", icc_profile=SRGB)
    at = with_icc.index(b"\xff\xe2")
    length = 2 + struct.unpack(">H", with_icc[at + 2 : at + 4])[0]
    moved = after_soi(with_icc[:at] + with_icc[at + length :], with_icc[at : at + length])
    assert moved != with_icc
    assert jpeg(moved) == jpeg(with_icc)


def test_metadata_of_a_png_does_not_count():
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmp:Rating='5'/>")
    assert png(encoded(picture(), "PNG", pnginfo=text, exif=exif(), dpi=(300, 300))) == png(PNG) is not None
    assert png(after_ihdr(PNG, png_chunk(b"tIME", bytes(7)))) == png(PNG)
    assert png(PNG + b"garbage behind") == png(PNG)


def test_how_a_png_cuts_its_data_does_not_count():
    at = PNG.index(b"IDAT") - 4
    (length,) = struct.unpack(">I", PNG[at : at + 4])
    data, rest = PNG[at + 8 : at + 8 + length], PNG[at + 12 + length :]
    cut = PNG[:at] + png_chunk(b"IDAT", data[:100]) + png_chunk(b"IDAT", data[100:]) + rest
    assert png(cut) == png(PNG)


@pytest.mark.parametrize(
    "other",
    [
        encoded(picture(1), "PNG"),
        encoded(picture(), "PNG", icc_profile=SRGB),
        after_ihdr(PNG, png_chunk(b"gAMA", struct.pack(">I", 100000))),
        after_ihdr(PNG, png_chunk(b"sRGB", b"\0")),
        after_ihdr(PNG, png_chunk(b"tRNS", bytes(6))),
        encoded(picture(), "PNG", save_all=True, append_images=[picture(1)]),
    ],
    ids=["pixels", "profile", "gamma", "sRGB", "transparency", "animation"],
)
def test_what_a_png_shows_counts(other):
    assert png(other) not in (None, png(PNG))


def test_frames_of_animations_count():
    for pillow, read in (("PNG", png), ("WEBP", webp), ("GIF", gif)):
        one, other = (
            read(encoded(picture(), pillow, save_all=True, append_images=[picture(seed)], duration=100))
            for seed in (1, 2)
        )
        assert one is not None
        assert one != other, pillow


def test_metadata_of_a_webp_does_not_count():
    edited = encoded(picture(), "WEBP", exif=exif(), xmp=b"<x:xmpmeta/>")
    assert b"VP8X" in edited
    assert b"VP8X" not in WEBP
    assert webp(edited) == webp(WEBP) is not None


def test_what_a_webp_shows_counts():
    others = [
        encoded(picture(1), "WEBP"),
        encoded(picture(), "WEBP", lossless=True),
        encoded(picture(), "WEBP", icc_profile=SRGB),
    ]
    assert len({webp(other) for other in [*others, WEBP]}) == 4


def test_comments_and_xmp_of_a_gif_do_not_count():
    at = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    comment = b"\x21\xfe\x05hello\x00"
    xmp = b"\x21\xff\x0bXMP DataXMP\x04<x/>\x00"
    assert gif(GIF[:at] + comment + xmp + GIF[at:]) == gif(GIF) is not None
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
    assert gif(GIF[:at] + loop + GIF[at:]) != gif(GIF)


@pytest.mark.parametrize(
    ("read", "data"), [(jpeg, JPEG), (png, PNG), (webp, WEBP), (gif, GIF)], ids=["jpeg", "png", "webp", "gif"]
)
def test_a_structure_that_ends_too_soon_is_left_to_the_pixels(read, data):
    for length in range(0, len(data) - 1, 7):
        assert read(data[:length]) is None


def test_formats_without_a_structure_we_know_are_left_to_the_pixels():
    assert of_coded(encoded(picture(), "TIFF"), "image/tiff") is None
    assert of_coded(b"", "image/heic") is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_makes_reading_the_structure_fail_or_hang(data):
    read, seed = data.draw(st.sampled_from([(jpeg, JPEG), (png, PNG), (webp, WEBP), (gif, GIF)]))
    damaged = bytearray(seed)
    for position in data.draw(st.lists(st.integers(0, len(seed) - 1), max_size=5)):
        damaged[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(seed)))
    found = read(bytes(damaged[:cut]))
    assert found is None or len(found) == 32


def test_pixels_mode_size_profile_and_further_pages_count():
    plain = of_pixels(picture(), None)
    assert of_pixels(picture(), None) == plain
    others = {
        plain,
        of_pixels(picture(1), None),
        of_pixels(picture(mode="L"), None),
        of_pixels(picture(size=(48, 64)), None),
        of_pixels(picture(), SRGB),
        of_pixels(picture(), None, extra=b"pages"),
    }
    assert len(others) == 6


def test_strips_cover_the_whole_picture(monkeypatch):
    whole = of_pixels(picture(), None)
    monkeypatch.setattr(image_digest, "_STRIP_PIXELS", 64 * 5)  # 48 rows are no multiple of 5
    changed = picture()
    changed.putpixel((63, 47), (1, 2, 3))
    assert of_pixels(changed, None) != of_pixels(picture(), None)
    monkeypatch.undo()
    assert of_pixels(picture(), None) == whole


def test_the_order_of_a_palette_does_not_count():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    swapped = Image.fromarray(np.array([1, 0, 2], dtype=np.uint8)[np.asarray(image)]).convert("P")
    swapped.putpalette([0, 255, 0, 255, 0, 0, 0, 0, 255])
    assert of_pixels(image, None) == of_pixels(swapped, None)
    swapped.putpalette([0, 255, 0, 255, 0, 0, 0, 0, 254])
    assert of_pixels(image, None) != of_pixels(swapped, None)


def test_the_same_pixels_in_tiffs_of_different_metadata_are_the_same_picture():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[DESCRIPTION] = "a title"
    plain, titled = encoded(picture(), "TIFF"), encoded(picture(), "TIFF", tiffinfo=tags, compression="tiff_lzw")
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(titled)) as other:
        assert of_pixels(one, None) == of_pixels(other, None)


def test_orientations_differ_and_schemes_never_meet():
    core = jpeg(JPEG)
    assert len({with_orientation(core, orientation) for orientation in range(1, 9)}) == 8
    assert len(with_orientation(core, 1)) == 64
    assert jpeg(JPEG) != of_pixels(picture(), None) != png(PNG)
