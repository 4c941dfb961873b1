"""Any bytes become a picture that is upright, sRGB and described, or a reason, and never cost more than themselves."""

import csv
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, TiffImagePlugin
from skimage import data as photos

from mirror_realm_assets.errors import Failed, MirrorRealmError, Refused
from mirror_realm_assets.ingest import upright
from mirror_realm_assets.ingest.decoded import EXIF_KEYS, Decoded
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.originals import read_original

pytestmark = pytest.mark.timeout(120)

GIB = 1 << 30
ORIENTATION = 0x0112
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(seconds=30, memory_bytes=3 * GIB, max_pixels=200_000_000, max_frames=100) as found:
        yield found


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def decode(decoder: Decoder, content: bytes, long_side: int = 1440) -> Decoded:
    with memory_file(content) as fd:
        return decoder.proxy(fd, long_side=long_side)


def pixels(decoder: Decoder, content: bytes) -> np.ndarray:
    with memory_file(content) as fd:
        return decoder.pixels(fd)


def reason(decoder: Decoder, content: bytes) -> str:
    with pytest.raises(Refused) as caught:
        decode(decoder, content)
    return caught.value.code


def proxy_pixels(decoded: Decoded) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decoded.first.proxy)).convert("RGB"))


def photo(width: int = 320, height: int = 240) -> Image.Image:
    """A photograph with a mark in its upper left corner, so that no turn of it looks like another."""
    image = Image.fromarray(photos.astronaut()).resize((width, height), Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).rectangle((0, 0, width // 5, height // 9), fill=(230, 20, 20))
    return image


def encoded(image: Image.Image, pillow: str, **options) -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, pillow, **options)
    return file.getvalue()


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def black_png(width: int, height: int, *, rows: int | None = None) -> bytes:
    """A grey picture of any declared size in a few kilobytes."""
    data = zlib.compress(bytes((width + 1) * (height if rows is None else rows)), 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_whoever_asks_imports_no_decoder():
    code = (
        "import sys, mirror_realm_assets.ingest.decoder, mirror_realm_assets.ingest.originals;"
        "print({'PIL', 'numpy', 'cv2', 'pillow_heif', 'dagster', 'sqlalchemy'} & set(sys.modules))"
    )
    root = str(Path(upright.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# What a picture becomes


def test_a_photo_is_described_and_gets_a_proxy(decoder):
    image = photo(2000, 1500)
    found = decode(decoder, encoded(image, "JPEG", quality=95), 640)
    assert (found.mime, found.first.width, found.first.height, found.frames) == ("image/jpeg", 2000, 1500, 1)
    assert (found.has_alpha, found.icc, found.notes, found.exif, found.taken_at) == (False, None, (), {}, None)
    proxy = Image.open(io.BytesIO(found.first.proxy))
    assert (found.first.proxy_width, found.first.proxy_height) == proxy.size == (640, 480)
    assert proxy.format == "JPEG"
    assert {part[1:3] for part in proxy.layer} == {(1, 1)}  # 4:4:4
    assert difference(proxy_pixels(found), np.asarray(image.resize((640, 480), Image.Resampling.LANCZOS))) < 1.5


def test_a_small_picture_is_not_enlarged(decoder):
    found = decode(decoder, encoded(photo(100, 75), "PNG"), 1440)
    assert (found.first.proxy_width, found.first.proxy_height) == (100, 75)


def test_extreme_shapes_keep_at_least_one_pixel(decoder):
    found = decode(decoder, encoded(Image.new("RGB", (9000, 2), "red"), "PNG"), 100)
    assert (found.first.width, found.first.height, found.first.proxy_width, found.first.proxy_height) == (
        9000,
        2,
        100,
        1,
    )


def test_pixels_are_the_callers_own_writable_rgb_array_at_full_size(decoder):
    image = photo(301, 203)
    found = pixels(decoder, encoded(image, "PNG"))
    assert found.shape == (203, 301, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image))
    found[:] = 0


def test_pixels_of_a_picture_larger_than_a_strip_are_whole(decoder):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 4001, 3), dtype=np.uint8))
    assert np.array_equal(pixels(decoder, encoded(image, "PNG", compress_level=1)), np.asarray(image))


def test_the_offset_of_the_file_does_not_matter_and_is_left_alone(decoder):
    with memory_file(encoded(photo(), "JPEG")) as fd:
        os.lseek(fd, 77, os.SEEK_SET)
        decoder.proxy(fd, long_side=100)
        decoder.pixels(fd)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 77


def test_the_bytes_that_were_hashed_are_the_bytes_that_are_decoded(decoder, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "PNG"))
    with read_original(os.fsencode(tmp_path), b"a.jpg", max_bytes=1 << 24) as original:
        (tmp_path / "a.jpg").write_bytes(b"something else")
        assert np.array_equal(decoder.pixels(original.fd), np.asarray(photo()))


# Formats, depths, colours


@pytest.mark.parametrize("pillow", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "HEIF", "MPO"])
def test_every_supported_format_shows_the_same_picture(decoder, pillow):
    content = encoded(photo(), pillow)
    found = decode(decoder, content)
    assert (found.first.width, found.first.height) == (320, 240)
    limit = 10 if pillow == "GIF" else 6
    assert difference(proxy_pixels(found), np.asarray(photo())) < limit
    assert difference(pixels(decoder, content), np.asarray(photo())) < limit


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "LAB", "I;16", "F", "I"])
def test_every_mode_shows_the_picture(decoder, mode):
    image, pillow = photo(), "TIFF"
    grey = np.asarray(image.convert("L"))
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    elif mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image, pillow = image.convert(mode), "PNG" if mode in ("P", "LA") else "TIFF"
    shown = pixels(decoder, encoded(image, pillow))
    expected = np.asarray(photo()) if mode in ("P", "RGBA", "CMYK", "LAB") else np.dstack([grey] * 3)
    if mode == "1":
        assert set(np.unique(shown)) == {0, 255}
        assert abs(shown.mean() - expected.mean()) < 3
    else:
        assert difference(shown, expected) < (15 if mode == "P" else 3)
    decode(decoder, encoded(image, pillow))


def test_sixteen_bit_grey_keeps_its_whole_range(decoder):
    ramp = np.linspace(0, 65535, 256 * 16).astype(np.uint16).reshape(16, 256)
    shown = pixels(decoder, encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(shown[..., 0], np.rint(ramp / 257).astype(np.uint8))


def test_transparency_is_composed_over_white(decoder):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 128), (0, 0, 32, 64))
    content = encoded(image, "PNG")
    shown = pixels(decoder, content)
    assert tuple(shown[5, 60]) == (255, 255, 255)
    assert np.allclose(shown[5, 5], (127, 127, 255), atol=1)
    found = decode(decoder, content, 32)
    assert found.has_alpha
    assert np.allclose(proxy_pixels(found)[5, 28], 255, atol=2)  # no red shines through what is transparent


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_a_transparent_colour_is_composed_over_white(decoder, mode):
    image = Image.fromarray(np.zeros((8, 8), np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8))
    key = (0, 0, 0) if mode == "RGB" else 0
    content = encoded(image, "PNG", transparency=key)
    if mode == "I;16":
        content = content[:33] + png_chunk(b"tRNS", b"\0\0") + encoded(image, "PNG")[33:]
    found = decode(decoder, content)
    assert found.has_alpha
    assert proxy_pixels(found).min() > 250


@pytest.mark.parametrize("pillow", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_colour_profile_is_applied_and_named(decoder, pillow):
    # A profile whose red is blue, on a picture stored that way: used it shows the photo, unused it is plainly wrong.
    icc = SRGB.replace(b"rXYZ", b"xXYZ").replace(b"bXYZ", b"rXYZ").replace(b"xXYZ", b"bXYZ")
    swapped = Image.merge("RGB", photo().split()[::-1])
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(pillow, {})
    content = encoded(swapped, pillow, icc_profile=icc, **options)
    found = decode(decoder, content)
    assert found.icc == "sRGB built-in"
    assert difference(proxy_pixels(found), np.asarray(photo())) < 3
    assert difference(pixels(decoder, content), np.asarray(photo())) < 3
    assert difference(np.asarray(swapped), np.asarray(photo())) > 10


def test_twelve_bits_in_sixteen_have_their_own_white():
    image = Image.new("I;16", (4, 4))
    assert upright.white_level(image, bits=12) == 4095
    assert upright.white_level(image, bits=16) == upright.white_level(image) == 65535


@pytest.mark.parametrize(("mode", "note"), [("RGB", "garbage"), ("CMYK", "another kind")])
def test_a_profile_that_cannot_be_used_is_noted_and_ignored(decoder, mode, note):
    icc = b"garbage" if note == "garbage" else SRGB
    image = photo().convert(mode)
    found = decode(decoder, encoded(image, "JPEG", icc_profile=icc, quality=95))
    assert len(found.notes) == 1
    assert note in found.notes[0]
    assert difference(proxy_pixels(found), np.asarray(photo())) < 4
    assert (found.icc is None) == (note == "garbage")


# Orientation


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as a camera held in that way stores it."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    return image if undo is None else image.transpose(Image.Transpose(undo))


@pytest.mark.parametrize("pillow", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright_exactly_once(decoder, pillow, orientation):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}.get(pillow, {})
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(turned(photo(), orientation), pillow, exif=exif, **options)
    found = decode(decoder, content)
    assert (found.first.width, found.first.height) == (found.first.proxy_width, found.first.proxy_height) == (320, 240)
    assert difference(proxy_pixels(found), np.asarray(photo())) < 4
    assert difference(pixels(decoder, content), np.asarray(photo())) < 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_invalid_orientation_is_ignored(decoder, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decode(decoder, encoded(photo(), "JPEG", exif=exif))
    assert (found.first.width, found.first.height) == (320, 240)
    assert "orientation" not in found.exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" xmp:Rating="4"/></x:xmpmeta>'


@pytest.mark.parametrize("place", ["JPEG", "WEBP", "AVIF", "TIFF", "before the data of a PNG", "behind it"])
def test_an_orientation_in_xmp_alone_is_no_orientation(decoder, place):
    """As browsers have it: programs that turn a picture often leave the old value there."""
    if place in ("before the data of a PNG", "behind it"):
        png = encoded(photo(), "PNG")
        at = 33 if place.startswith("before") else len(png) - 12
        content = png[:at] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + png[at:]
    elif place == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700] = XMP
        tags.tagtype[700] = 1
        content = encoded(photo(), "TIFF", tiffinfo=tags)
        assert Image.open(io.BytesIO(content)).info["xmp"] == XMP
    else:
        content = encoded(photo(), place, xmp=XMP)
    found = decode(decoder, content)
    assert (found.first.width, found.first.height) == (320, 240)
    assert found.exif["rating"] == 4
    assert difference(proxy_pixels(found), np.asarray(photo())) < 6


# Metadata


def full_exif(**changes) -> Image.Exif:
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0110: "Model", 0x0131: "Program", 0x010E: "A <b>title</b>", 0x4746: 5})
    exif.get_ifd(0x8769).update(
        {0x9003: "2024:02:29 23:59:59", 0x9011: "+02:00", 0x829A: 0.004, 0x829D: 1.8, 0x8827: 100, 0x920A: 50.0}
        | {0xA434: "50 mm"}
    )
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 40.0)})
    exif.update(changes.get("main", {}))
    return exif


def test_a_short_list_of_metadata_is_read(decoder):
    found = decode(decoder, encoded(photo(), "JPEG", exif=full_exif()))
    assert found.exif == {
        "make": "Maker",
        "model": "Model",
        "software": "Program",
        "description": "A <b>title</b>",
        "rating": 5,
        "lens": "50 mm",
        "taken_at": "2024:02:29 23:59:59",
        "exposure": 0.004,
        "f_number": 1.8,
        "iso": 100,
        "focal_length": 50.0,
        "latitude": -33.86,
        "longitude": 151.2111111,
    }
    assert found.taken_at == "2024-02-29T23:59:59+02:00"


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "a\nb\rc", "evil\u202egpj.exe", "x" * 100_000])
def test_hostile_text_in_metadata_is_one_short_harmless_line(decoder, text):
    found = decode(
        decoder, encoded(photo(), "JPEG" if len(text) < 9999 else "PNG", exif=full_exif(main={0x0110: text}))
    )
    model = found.exif["model"]
    assert len(model) <= 200
    assert not set(model) & set("\x1b\n\r\u202e")


def test_broken_exif_never_fails_a_picture(decoder):
    jpeg = encoded(photo(), "JPEG")
    rng = np.random.default_rng(0)
    for size in (0, 1, 8, 60, 500):
        payload = b"Exif\0\0MM\0*\0\0\0\x08" + rng.bytes(size)
        found = decode(decoder, jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:])
        assert set(found.exif) <= EXIF_KEYS


def test_edits_of_metadata_keep_the_image_digest_and_edits_of_the_picture_do_not(decoder):
    for pillow in ("JPEG", "PNG", "WEBP", "TIFF"):
        plain = decode(decoder, encoded(photo(), pillow))
        edited = decode(decoder, encoded(photo(), pillow, exif=full_exif()))
        assert edited.exif.get("rating") == 5
        assert plain.first.image_digest == edited.first.image_digest, pillow
        others = [
            encoded(photo(), pillow, exif=full_exif(main={ORIENTATION: 6})),
            encoded(photo(), pillow, icc_profile=SRGB),
            encoded(photo().rotate(180), pillow),
        ]
        digests = {decode(decoder, other).first.image_digest for other in others} | {plain.first.image_digest}
        assert len(digests) == 4, pillow


def test_pages_after_the_first_count_where_they_are_not_decoded(decoder):
    one, other = (
        decode(decoder, encoded(photo(), "TIFF", save_all=True, append_images=[photo().rotate(angle)]))
        for angle in (90, 180)
    )
    assert (one.frames, other.frames) == (2, 2)
    assert np.array_equal(proxy_pixels(one), proxy_pixels(other))
    assert one.first.image_digest != other.first.image_digest


@pytest.mark.parametrize("pillow", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_shown(decoder, pillow):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    found = decode(decoder, encoded(frames[0], pillow, save_all=True, append_images=frames[1:], duration=50))
    assert found.frames == 3
    assert np.allclose(proxy_pixels(found)[16, 16], (255, 0, 0), atol=6)


def test_the_perceptual_hash_is_imagehashs_own(decoder):
    for image in (photo(), Image.fromarray(photos.coffee()), Image.fromarray(photos.chelsea())):
        found = decode(decoder, encoded(image, "PNG"), 4000)
        assert found.phash == str(imagehash.phash(image))


@pytest.mark.parametrize("colour", ["white", "black", (17, 99, 203)])
def test_a_flat_picture_has_no_perceptual_hash(decoder, colour):
    assert decode(decoder, encoded(Image.new("RGB", (200, 100), colour), "PNG")).phash is None


# What is refused


def test_truncated_files_are_refused_as_such(decoder):
    for pillow in ("JPEG", "PNG"):
        content = encoded(photo(1200, 900), pillow)
        for kept in (0.3, 0.6, 0.95):
            assert reason(decoder, content[: int(len(content) * kept)]) == "truncated"
            with pytest.raises(Refused), memory_file(content[: int(len(content) * kept)]) as fd:
                decoder.pixels(fd)


JPEGS = {
    "colour": (photo(), {}),
    "without subsampling": (photo(), {"subsampling": 0}),
    "grey": (photo().convert("L"), {}),
    "restarts": (photo(), {"restart_marker_blocks": 3}),
    "a restart a row": (photo(), {"restart_marker_rows": 1}),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_a_whole_picture(decoder, kind):
    image, options = JPEGS[kind]
    content = encoded(image, "JPEG", **options)
    whole, unended = decode(decoder, content), decode(decoder, content.removesuffix(b"\xff\xd9"))
    assert (unended.first.width, unended.first.height) == (whole.first.width, whole.first.height)
    assert difference(proxy_pixels(unended), proxy_pixels(whole)) < 1
    assert np.array_equal(pixels(decoder, content[:-2]), pixels(decoder, content))


@pytest.mark.parametrize("kind", JPEGS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(3, 4000))
def test_a_jpeg_whose_pixels_are_missing_is_truncated_or_shows_them_all_nevertheless(decoder, kind, missing):
    image, options = JPEGS[kind]
    content = encoded(image, "JPEG", **options)
    try:
        found = pixels(decoder, content[:-missing])
    except Refused as refused:
        assert refused.code == "truncated"
    else:
        assert missing <= 4
        assert np.array_equal(found, pixels(decoder, content))


def test_of_a_progressive_jpeg_nobody_knows_whether_the_last_scan_is_there(decoder):
    assert reason(decoder, encoded(photo(), "JPEG", progressive=True)[:-2]) == "truncated"


@pytest.mark.parametrize(("size", "fate"), [(4 << 20, "ok"), (17 << 20, "corrupt")])
def test_a_png_with_much_text_is_a_picture(decoder, size, fate):
    content = encoded(photo(), "PNG")
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * size))
    content = content[:33] + text + content[33:]
    assert (reason(decoder, content) if fate != "ok" else fate) == fate
    if fate == "ok":
        assert decode(decoder, content).mime == "image/png"


def test_damage_inside_is_corruption(decoder):
    png = bytearray(encoded(photo(), "PNG"))
    png[len(png) // 2] ^= 0xFF
    assert reason(decoder, bytes(png)) == "corrupt"
    assert reason(decoder, b"\x89PNG\r\n\x1a\n" + bytes(100)) == "corrupt"


def test_a_proxy_carries_none_of_the_original_s_metadata(decoder):
    for pillow in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x010E] = "secret words"
        found = decode(decoder, encoded(photo(64, 64), pillow, exif=exif, comment=b"secret words"))
        assert b"secret words" not in found.first.proxy
        assert not Image.open(io.BytesIO(found.first.proxy)).getexif()


def test_what_is_no_picture_is_unsupported(decoder):
    for content in (b"<html></html>", b"MZ", encoded(photo(), "PPM"), encoded(photo(64, 64), "ICO")):
        assert reason(decoder, content) == "unsupported"


def test_a_raw_file_is_not_mistaken_for_its_thumbnail(decoder):
    for tag, value in ((50706, b"\x01\x04\x00\x00"), (254, 1)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[tag] = value
        if tag == 50706:
            tags.tagtype[tag] = 1
        assert reason(decoder, encoded(photo(), "TIFF", tiffinfo=tags)) == "unsupported"


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (100_000, 100_000)])
def test_too_many_declared_pixels_are_refused_before_they_are_decoded(decoder, width, height):
    content = black_png(width, height, rows=1)
    assert reason(decoder, content) == "too_many_pixels"
    with pytest.raises(Refused) as caught, memory_file(content) as fd:
        decoder.pixels(fd)
    assert caught.value.code == "too_many_pixels"


def test_too_many_frames_are_refused():
    frames = [Image.new("L", (8, 8), level) for level in range(0, 120, 10)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Decoder(seconds=30, memory_bytes=GIB, max_pixels=10**6, max_frames=5) as strict:
        assert reason(strict, content) == "too_many_frames"


def test_messages_name_no_object_and_no_file(decoder, tmp_path):
    (tmp_path / "secret name.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with (
        read_original(os.fsencode(tmp_path), b"secret name.png", max_bytes=1 << 20) as original,
        pytest.raises(Refused) as caught,
    ):
        decoder.proxy(original.fd, long_side=100)
    assert "0x" not in str(caught.value)
    assert "secret" not in str(caught.value)


# What a file may cost


def test_a_child_killed_in_the_middle_costs_just_that_file():
    content = encoded(photo(), "JPEG")
    with Decoder(seconds=30, memory_bytes=GIB, max_pixels=10**7, max_frames=10) as decoder:
        decode(decoder, content)
        pid = decoder.pid
        os.kill(pid, signal.SIGSTOP)  # as if it were busy for long
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        assert reason(decoder, content) == "decoder_crashed"
        assert decode(decoder, content).first.width == 320
        assert decoder.pid != pid


def test_a_picture_that_takes_too_long_costs_just_that_file(monkeypatch):
    slow = encoded(Image.effect_noise((2000, 2000), 90), "JPEG", quality=100)
    with Decoder(seconds=30, memory_bytes=2 * GIB, max_pixels=10**8, max_frames=10) as decoder:
        content = encoded(photo(32, 32), "JPEG")
        assert decode(decoder, content).first.width == 32
        pid = decoder.pid
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_seconds", 0.005)
            assert reason(decoder, slow) == "decoder_timeout"
        assert decode(decoder, content).first.width == 32
        assert decoder.pid != pid


def test_a_picture_that_takes_too_much_memory_costs_just_that_file():
    with Decoder(seconds=60, memory_bytes=600 << 20, max_pixels=10**9, max_frames=10) as decoder:
        content = encoded(photo(), "JPEG")
        assert decode(decoder, content).first.width == 320
        assert reason(decoder, black_png(30_000, 20_000, rows=1)) == "decoder_memory"
        assert decoder.pid is None  # what is left of a failed allocation is not gone on with
        assert decode(decoder, content).first.width == 320


def test_a_large_but_honest_picture_is_decoded_in_bounded_memory():
    """60 megapixels in 640 MB of address space, of which 180 are the result: no full-size copy is made on the way."""
    with Decoder(seconds=60, memory_bytes=640 << 20, max_pixels=10**9, max_frames=10) as decoder:
        content = black_png(10_000, 6_000)
        found = decode(decoder, content)
        assert (found.first.width, found.first.proxy_width) == (10_000, 1440)
        assert pixels(decoder, content).shape == (6_000, 10_000, 3)


def test_threads_may_share_a_decoder(decoder):
    contents = [encoded(Image.new("RGB", (40 + i, 30), (i * 20, 0, 0)), "PNG") for i in range(8)]
    found: dict[int, int] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = decode(decoder, contents[i]).first.width

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: 40 + i for i in range(8)}


def test_a_child_is_replaced_after_many_files(monkeypatch):
    monkeypatch.setattr("mirror_realm_assets.ingest.decoder._FILES_PER_CHILD", 2)
    content = encoded(photo(32, 32), "PNG")
    with Decoder(seconds=30, memory_bytes=GIB, max_pixels=10**6, max_frames=1) as decoder:
        pids = []
        for _ in range(4):
            decode(decoder, content)
            pids.append(decoder.pid)
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert decoder.pid is None


@pytest.mark.parametrize(
    "change",
    [
        {"mime": "text/html"},
        {"parts": []},
        {"parts": {}},
        {"parts": [{"width": -1}]},
        {"parts": [{"kind": "hologram"}]},
        {"parts": [{"proxy": 10**9}]},
        {"parts": [{"time_s": "now"}]},
        {"parts": [{"page": 0}]},
        {"duration_s": -1},
        {"phash": "<script>"},
        {"exif": {"evil": 1}},
        {"exif": {"model": "\x1b"}},
        {"notes": 1},
        {"notes": ["\n"]},
        {"parts": [{"image_digest": None}]},
        {"extra": 1},
        {"mime": []},
        {"icc": 5},
        {"frames": 2.5},
    ],
)
def test_a_child_that_was_taken_over_cannot_pass_on_what_it_likes(decoder, change):
    found = decode(decoder, encoded(photo(32, 32), "PNG"))
    reply, blob = found.as_reply()
    assert Decoded.from_reply(reply, blob) == found
    if change.get("parts"):
        change = {"parts": [part | changed for part, changed in zip(reply["parts"], change["parts"], strict=False)]}
    with pytest.raises(ValueError):
        Decoded.from_reply(reply | change, blob)
    with pytest.raises(ValueError):
        Decoded.from_reply(reply, b"no JPEG")
    with pytest.raises(ValueError):
        Decoded.from_reply(reply, blob + b"more")


@pytest.mark.parametrize("reply", [{"refused": "no_such_code"}, {"refused": "internal"}, {"refused": []}, {}])
def test_an_impossible_answer_counts_as_a_crash_of_the_decoder(monkeypatch, reply):
    with Decoder(seconds=30, memory_bytes=GIB, max_pixels=10**6, max_frames=1) as decoder:
        monkeypatch.setattr(decoder._child, "ask", lambda *_, **__: (reply, b""))
        assert reason(decoder, b"x") == "decoder_crashed"
        with pytest.raises(Refused), memory_file(b"x") as fd:
            decoder.pixels(fd)


def test_a_decoder_that_cannot_start_is_not_the_files_fault():
    with (
        Decoder(seconds=1, memory_bytes=10 << 20, max_pixels=10**6, max_frames=1) as decoder,
        pytest.raises(Failed),
        memory_file(b"x") as fd,
    ):
        decoder.proxy(fd, long_side=10)


SEEDS = [
    encoded(photo(64, 48), pillow)
    for pillow in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "HEIF", "MPO")
] + [
    encoded(photo(64, 48), "JPEG", exif=full_exif(), icc_profile=SRGB, progressive=True),
    encoded(photo(64, 48), "TIFF", compression="tiff_lzw"),
    encoded(photo(64, 48), "WEBP", save_all=True, append_images=[photo(64, 48).rotate(90)], exif=full_exif()),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        # Headers decide most, so half of the hits go there.
        last = len(content) - 1 if draw(st.booleans()) else min(len(content) - 1, 300)
        content[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(1, len(content)))]) if draw(st.booleans()) else bytes(content)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=damaged() | st.binary(min_size=1, max_size=300))
@example(content=b"\xff\xd8\xff")
def test_any_bytes_give_a_picture_or_a_reason_in_time(content):
    began = time.monotonic()
    try:
        found = decode(_shared(), content, 64)
        assert found.first.proxy_width <= 64
    except Refused as error:
        assert error.reason.refusal
    assert time.monotonic() - began < 10


_SHARED: list[Decoder] = []


def _shared() -> Decoder:
    if not _SHARED:
        _SHARED.append(Decoder(seconds=5, memory_bytes=2 * GIB, max_pixels=10**7, max_frames=50))
    return _SHARED[0]


@pytest.fixture(scope="module", autouse=True)
def _close_shared():
    yield
    while _SHARED:
        _SHARED.pop().close()


# Test media, where there are any

MEDIA = os.environ.get("MIRROR_REALM_TEST_MEDIA")
needs_media = pytest.mark.skipif(not MEDIA, reason="MIRROR_REALM_TEST_MEDIA is not set")


def hard_files() -> list[dict[str, str]]:
    if not MEDIA:
        return []
    with (Path(MEDIA) / "index.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["file"].startswith("hard/")]


def from_media(decoder: Decoder, name: str) -> Decoded:
    with read_original(os.fsencode(MEDIA), os.fsencode(name), max_bytes=1 << 29) as original:
        return decoder.proxy(original.fd, long_side=1440)


@needs_media
def test_every_hard_file_gives_what_pillow_says_of_it():
    """The exceptions: formats that Pillow opens and we do not take, as each is one more parser for hostile bytes."""
    not_taken = {"ICO", "PSD", "PPM"}
    # Programs keep their workflow in a text of megabytes; Pillow alone gives up at one.
    taken = {"hard/bomb/ztxt_4MB_comment.png", "hard/broken/pillow_png_decompression_dos.png"}
    wrong = []
    with Decoder(seconds=60, memory_bytes=6 * GIB, max_pixels=500_000_000, max_frames=10_000) as decoder:
        for row in hard_files():
            verdict = row["pillow13"].split()
            good = verdict[0] == "ok" and verdict[1] not in not_taken
            expected = "picture" if good or row["file"] in taken else "refused"
            try:
                found = from_media(decoder, row["file"])
                outcome = "picture"
                if row["width"]:
                    stored = (int(row["width"]), int(row["height"]))
                    assert (found.first.width, found.first.height) in (stored, stored[::-1])
            except MirrorRealmError as error:
                outcome = "refused" if isinstance(error, Refused) else error.code
            if outcome != expected:
                wrong.append((row["file"], row["pillow13"], outcome))
    assert not wrong
    assert len(hard_files()) > 100


@needs_media
@pytest.mark.parametrize("name", ["adobe_rgb.png", "adobe_rgb.jpg", "display_p3.png", "display_p3.jpg"])
def test_colour_profiles_lead_back_to_the_reference(decoder, name):
    folder = Path(MEDIA) / "hard" / "icc"
    reference = pixels(decoder, (folder / "ref_srgb.png").read_bytes())
    found = pixels(decoder, (folder / name).read_bytes())
    assert difference(found, reference) < 3
    assert difference(np.asarray(Image.open(folder / name).convert("RGB")), reference) > difference(found, reference)


@needs_media
def test_all_orientations_show_the_upright_picture(decoder):
    folder = Path(MEDIA) / "hard" / "orientation"
    upright = pixels(decoder, (folder / "gen_upright.png").read_bytes())
    for orientation in range(1, 9):
        found = pixels(decoder, (folder / f"gen_orient_{orientation}.jpg").read_bytes())
        assert difference(found, upright) < 4
