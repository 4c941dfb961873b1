"""A TIFF of ours holds what EXIF says, in its own directory, and the same pixels as without."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mirror_realm_assets.enhance.codec import Style, encode
from mirror_realm_assets.enhance.probing import probe

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PHOTO = np.random.default_rng(5).integers(0, 256, (31, 47, 4), np.uint8)
MAIN = {0x010E: "A cat", 0x010F: "Canon", 0x0110: "EOS R5", 0x0132: "2024:05:01 10:00:00", 0x8298: "© Anna".encode()}
CAMERA = {0x829A: 0.005, 0x8827: 400, 0x9003: "2024:05:01 10:00:00", 0x9286: b"ASCII\0\0\0hello", 0xA434: "RF50mm F1.2"}
PLACE = {1: "N", 2: (48.0, 8.0, 14.5), 3: "E", 4: (11.0, 34.0, 31.0), 6: 519.0}


def block() -> bytes:
    exif = Image.Exif()
    exif.endian = "<"
    exif[0x0112] = 1
    for tag, value in MAIN.items():
        exif[tag] = value
    exif.get_ifd(EXIF_IFD).update(CAMERA)
    exif.get_ifd(GPS_IFD).update(PLACE)
    exif[EXIF_IFD], exif[GPS_IFD] = exif.get_ifd(EXIF_IFD), exif.get_ifd(GPS_IFD)
    return exif.tobytes().removeprefix(b"Exif\x00\x00")


@pytest.fixture(params=["TIFF", "BigTIFF"])
def big(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "BigTIFF":
        monkeypatch.setattr("mirror_realm_assets.enhance.codec._BIG_TIFF", 0)
    return request.param == "BigTIFF"


def pixels(content: bytes) -> npt.NDArray[np.generic]:
    return tifffile.imread(io.BytesIO(content))


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_date_camera_exposure_and_position_are_there(big: bool, channels: int, deep: bool) -> None:
    photo = PHOTO[..., 0] if channels == 1 else PHOTO[..., :channels]
    picture = photo.astype(np.uint16) * 257 if deep else photo
    icc = SRGB if channels > 2 else None
    content, without = (encode(picture, Style("tiff", icc=icc, exif=exif)) for exif in (block(), None))
    assert (content[:4] == b"II+\x00") == big
    assert probe(content) == (47, 31, "tiff")
    assert np.array_equal(pixels(content), pixels(without)) and np.array_equal(pixels(content).squeeze(), picture)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = file.pages[0].tags
        assert len(file.pages) == 1 and (icc is None or tags[34675].value == icc)
        assert list(tags.keys()) == sorted(tags.keys())
        assert tags[0x010F].value == "Canon" and tags[0x0112].value == 1
        assert tags[EXIF_IFD].value["DateTimeOriginal"] == CAMERA[0x9003]
        assert tags[GPS_IFD].value["GPSLatitude"] == (48, 1, 8, 1, 29, 2)


def test_pillow_reads_every_value(big: bool) -> None:
    found = Image.open(io.BytesIO(encode(PHOTO[..., :3], Style("tiff", exif=block())))).getexif()
    assert {tag: found[tag] for tag in MAIN} == MAIN | {0x8298: "© Anna".encode().decode("latin-1")}
    assert dict(found.get_ifd(EXIF_IFD)) == CAMERA
    assert dict(found.get_ifd(GPS_IFD)) == PLACE


@settings(max_examples=60)
@given(cut=st.integers(0, 500), place=st.integers(0, 499), value=st.integers(0, 255))
def test_a_damaged_block_leaves_the_picture_whole(cut: int, place: int, value: int) -> None:
    damaged = bytearray(block())
    damaged[place % len(damaged)] = value
    for exif in (bytes(damaged), block()[:cut]):
        content = encode(PHOTO[..., :3], Style("tiff", exif=exif))
        assert probe(content).format == "tiff"
        assert np.array_equal(pixels(content), PHOTO[..., :3])


def test_a_directory_begins_at_an_even_offset() -> None:
    for width in range(1, 12):
        content = encode(PHOTO[:1, :width, 0], Style("tiff", exif=block()))
        assert struct.unpack_from("<I", content, 4)[0] % 2 == 0
