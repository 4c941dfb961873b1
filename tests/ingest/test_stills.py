"""A still is given on as its file holds it: depth, colours, transparency, profile, EXIF, upright."""

from __future__ import annotations

import csv
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage import data as photos
from test_decoder import memory_file

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.still import Still, StillFacts

pytestmark = pytest.mark.timeout(120)

ORIENTATION, MAKER_NOTE, EXIF_IFD, GPS_IFD = 0x0112, 0x927C, 0x8769, 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PHOTO = photos.chelsea()[:60, :80]
HARD = Path(os.environ.get("MIRROR_REALM_TEST_MEDIA", "/nowhere")) / "hard"
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(seconds=30, memory_bytes=3 << 30, max_pixels=50_000_000, max_frames=100) as found:
        yield found


def still(decoder: Decoder, content: bytes) -> Still:
    with memory_file(content) as fd:
        return decoder.still(fd)


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def deep(array: np.ndarray) -> np.ndarray:
    """16 bits a sample whose low bytes matter."""
    noise = np.random.default_rng(3).integers(0, 256, array.shape)
    return (array.astype(np.uint16) * 256 + noise).astype(np.uint16)


def as_png16(array: np.ndarray) -> bytes:
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(array.shape[2] if array.ndim == 3 else 1)
    done, buffer = cv2.imencode(".png", array if order is None else cv2.cvtColor(array, order))
    assert done
    return buffer.tobytes()


ALPHA = np.dstack([PHOTO, np.linspace(0, 255, 60 * 80).reshape(60, 80).astype(np.uint8)])


@pytest.mark.parametrize(
    "array",
    [PHOTO[..., 0], ALPHA[..., [0, 3]], PHOTO, ALPHA],
    ids=["grey", "grey with alpha", "rgb", "rgb with alpha"],
)
def test_eight_bits_stay_what_they_are(decoder: Decoder, array: np.ndarray) -> None:
    found = still(decoder, saved(Image.fromarray(array), "PNG"))
    assert found.pixels.dtype == np.uint8 and np.array_equal(found.pixels, array)
    assert (found.icc, found.exif, found.animated) == (None, None, False)


@pytest.mark.parametrize("array", [deep(PHOTO[..., 0]), deep(PHOTO), deep(ALPHA)], ids=["grey", "rgb", "rgba"])
def test_sixteen_bits_stay_sixteen(decoder: Decoder, array: np.ndarray) -> None:
    found = still(decoder, as_png16(array))
    assert found.pixels.dtype == np.uint16 and np.array_equal(found.pixels, array)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="minisblack" if array.ndim == 2 else "rgb")
    assert np.array_equal(still(decoder, buffer.getvalue()).pixels, array)


def test_a_twelve_bit_scan_uses_the_whole_range(decoder: Decoder) -> None:
    content = saved(Image.fromarray(np.array([[0, 4095], [2048, 1]], np.uint16)), "TIFF")
    said, twelve = (struct.pack("<HHIH", 258, 3, 1, bits) for bits in (16, 12))
    pixels, packed = bytes.fromhex("0000ff0f00080100"), bytes.fromhex("000fff8000010000")
    assert said in content and pixels in content
    content = content.replace(said, twelve).replace(pixels, packed)
    found = still(decoder, content).pixels
    assert found[0, 1] == 65535 and found[1, 0] == round(2048 * 65535 / 4095)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("array", [PHOTO, deep(PHOTO)], ids=["8 bits", "16 bits"])
def test_orientation_is_baked_once(decoder: Decoder, orientation: int, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    files = [buffer.getvalue()]
    if array.dtype == np.uint8:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        exif[0x010F] = "camera"
        files.append(saved(Image.fromarray(array), "PNG", exif=exif))
    for content in files:
        found = still(decoder, content)
        assert np.array_equal(found.pixels, TURNS[orientation](array))
        if found.exif is not None:
            assert read_exif(found.exif)[ORIENTATION] == 1


def read_exif(block: bytes) -> Image.Exif:
    found = Image.Exif()
    found.load(b"Exif\x00\x00" + block)
    return found


def test_what_camera_and_people_wrote_stays_and_what_only_fits_the_old_file_goes(decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[ORIENTATION] = "Canon", "安娜".encode(), 6
    exif[0x0100] = 99999  # ImageWidth
    exif.get_ifd(EXIF_IFD).update({0x829A: 0.01, 0x9003: "2019:07:04 10:11:12", MAKER_NOTE: b"private", 0xA002: 5})
    exif.get_ifd(GPS_IFD).update({1: "N", 2: (48.0, 8.0, 14.0)})
    block = still(decoder, saved(Image.fromarray(PHOTO), "JPEG", exif=exif)).exif
    assert block is not None
    found = read_exif(block)
    assert (
        dict(found)[0x010F] == "Canon"
        and found[0x013B].encode("latin-1").decode() == "安娜"
        and found[ORIENTATION] == 1
    )
    assert 0x0100 not in found
    assert found.get_ifd(EXIF_IFD)[0x9003] == "2019:07:04 10:11:12"
    assert float(found.get_ifd(EXIF_IFD)[0x829A]) == 0.01
    assert not {MAKER_NOTE, 0xA002} & set(found.get_ifd(EXIF_IFD))
    assert tuple(map(float, found.get_ifd(GPS_IFD)[2])) == (48.0, 8.0, 14.0)


def test_a_profile_of_colours_stays_and_its_pixels_are_untouched(decoder: Decoder) -> None:
    found = still(decoder, saved(Image.fromarray(PHOTO), "PNG", icc_profile=SRGB))
    assert found.icc == SRGB and np.array_equal(found.pixels, PHOTO)
    assert still(decoder, saved(Image.fromarray(PHOTO), "PNG", icc_profile=b"garbage")).icc is None
    grey = still(decoder, saved(Image.fromarray(PHOTO[..., 0]), "PNG", icc_profile=SRGB))
    assert grey.icc is None and grey.pixels.ndim == 2
    assert np.abs(grey.pixels.astype(int) - PHOTO[..., 0]).max() <= 1


def test_cmyk_becomes_srgb(decoder: Decoder) -> None:
    content = saved(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)
    found = still(decoder, content)
    assert found.pixels.shape == (60, 80, 3) and found.icc is None
    assert np.abs(found.pixels.astype(int) - PHOTO).mean() < 6


def test_a_palette_with_a_transparent_colour_has_alpha(decoder: Decoder) -> None:
    image = Image.fromarray(PHOTO).quantize(16)
    content = saved(image, "PNG", transparency=image.getpixel((0, 0)))
    found = still(decoder, content)
    assert found.pixels.shape == (60, 80, 4) and found.pixels[0, 0, 3] == 0


def test_only_the_first_frame_is_given_and_an_animation_is_told_of(decoder: Decoder) -> None:
    frames = [Image.fromarray(np.full((20, 20, 3), level, np.uint8)) for level in (10, 200, 90)]
    found = still(decoder, saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert found.animated and found.pixels[..., :3].max() <= 11
    pages = still(decoder, saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert not pages.animated


def test_what_is_no_still_is_refused(decoder: Decoder) -> None:
    with pytest.raises(Refused):
        still(decoder, b"%PDF-1.4 nothing")


@pytest.mark.parametrize(
    ("change", "blob"),
    [
        ({"width": 0}, b""),
        ({"width": 2**40}, b""),
        ({"channels": 5}, b""),
        ({"depth": 12}, b""),
        ({"animated": 0}, b""),
        ({"height": True}, b""),
        ({"icc": 3}, b"xx"),
        ({}, b"x"),
        ({"exif": -1}, b""),
    ],
)
def test_nonsense_from_the_child_is_noticed(change: dict[str, object], blob: bytes) -> None:
    reply = StillFacts(4, 5, 3, 8, False, None, None).as_reply()[0]
    assert StillFacts.from_reply(reply, b"", 20).shape == (4, 5, 3)
    with pytest.raises(ValueError, match=r"impossible|belong"):
        StillFacts.from_reply(reply | change, blob, 20)


@pytest.mark.skipif(not HARD.is_dir(), reason="needs MIRROR_REALM_TEST_MEDIA")
def test_hard_pictures_look_the_same_as_on_the_screen(decoder: Decoder) -> None:
    """Where the file is RGB in sRGB or grey, the still is what `pixels` shows; every good file gives one."""
    with (HARD.parent / "index.csv").open(encoding="utf-8", newline="") as file:
        names = [r["file"] for r in csv.DictReader(file) if r["file"].startswith("hard/") and r["pillow13"][:2] == "ok"]
    checked = 0
    for name in names:
        content = (HARD.parent / name).read_bytes()
        with memory_file(content) as fd:
            try:
                shown = decoder.pixels(fd)
            except Refused:
                continue
            found = decoder.still(fd)
        assert found.pixels.shape[:2] == shown.shape[:2], name
        if (
            found.icc is None
            and found.pixels.ndim == 3
            and found.pixels.shape[2] == 3
            and found.pixels.dtype == np.uint8
        ):
            assert np.array_equal(found.pixels, shown), name
        checked += 1
    assert checked > 20


def ten_or_twelve(bits: int, channels: int) -> np.ndarray:
    """Every level of so many bits, and whole-range numbers of the same."""
    levels = np.arange(60 * 80).reshape(60, 80) * 7 % 2**bits
    return np.dstack([(levels * (1 + 2 * n)) % 2**bits for n in range(channels)]).astype(np.uint16)


def as_heif(array: np.ndarray, bits: int, **options: object) -> bytes:
    """Without loss; pillow-heif takes 16 bits and keeps the upper ones."""
    mode = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}[array.shape[2]]
    file = pillow_heif.from_bytes(mode, (80, 60), (array << (16 - bits)).tobytes())
    lossless = {"quality": -1, "chroma": 444} | ({} if mode == "I;16" else {"matrix_coefficients": 0})
    buffer = io.BytesIO()
    file.save(buffer, bit_depth=bits, **(lossless | options))
    return buffer.getvalue()


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ten_and_twelve_bits_use_the_whole_range_of_sixteen(decoder: Decoder, channels: int, bits: int) -> None:
    array = ten_or_twelve(bits, channels)
    found = still(decoder, as_heif(array, bits)).pixels
    assert found.dtype == np.uint16 and found.min() == 0 and found.max() == 65535
    assert np.array_equal(found.reshape(array.shape), np.rint(array * (65535 / (2**bits - 1))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_heif_is_turned_once_and_keeps_its_profile(decoder: Decoder, orientation: int) -> None:
    array = ten_or_twelve(10, 3)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = orientation, "camera"
    content = as_heif(array, 10, exif=exif.tobytes(), icc_profile=SRGB)
    found = still(decoder, content)
    assert np.array_equal(found.pixels, TURNS[orientation](np.rint(array * (65535 / 1023))))
    assert found.icc == SRGB
    assert found.exif is not None and read_exif(found.exif)[ORIENTATION] == 1
    with memory_file(content) as fd:
        assert np.abs(found.pixels / 257 - decoder.pixels(fd)).max() < 3  # as on the screen
