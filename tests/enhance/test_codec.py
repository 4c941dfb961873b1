"""Encoding results and recognising whole ones."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mirror_realm_assets.enhance.codec import PictureFormat, encode, probe
from mirror_realm_assets.errors import Failed

Picture = npt.NDArray[np.uint8]
FORMATS: tuple[PictureFormat, ...] = ("png", "jpeg", "webp")


def decoded(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_survives_encoding(photos: dict[str, Picture], file_format: PictureFormat) -> None:
    photo = photos["coffee"][:50, :70]
    content = encode(photo, file_format)
    assert probe(content) == (70, 50, file_format)
    back = np.asarray(decoded(content)).astype(int)
    assert np.abs(back - photo).mean() < (1e-9 if file_format == "png" else 5)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 7, 4)])
def test_png_is_lossless_for_grey_colour_and_transparency(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(decoded(encode(picture, "png"))), picture)


def test_webp_keeps_transparency() -> None:
    picture = np.full((8, 8, 4), 200, np.uint8)
    picture[:4, :, 3] = 0
    assert decoded(encode(picture, "webp")).mode == "RGBA"


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_colour_profile_is_embedded(photos: dict[str, Picture], file_format: PictureFormat) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encode(photos["coffee"], file_format, profile)
    assert decoded(content).info["icc_profile"] == profile
    assert probe(content) == (96, 96, file_format)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_cut_file_is_not_whole(photos: dict[str, Picture], file_format: PictureFormat) -> None:
    content = encode(photos["astronaut"], file_format)
    for cut in (0, 1, 11, 20, 40, len(content) // 2, len(content) - 1):
        with pytest.raises(Failed) as caught:
            probe(content[:cut])
        assert caught.value.code == "not_verified"


def test_a_flipped_bit_in_a_png_is_found(photos: dict[str, Picture]) -> None:
    content = bytearray(encode(photos["astronaut"], "png"))
    content[len(content) // 2] ^= 1
    with pytest.raises(Failed, match="checksum"):
        probe(bytes(content))


@given(
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF\x10\x00\x00\x00WEBPVP8 "]),
    rest=st.binary(max_size=200),
    end=st.sampled_from([b"", b"\xff\xd9"]),
)
def test_arbitrary_bytes_end_in_an_answer_or_not_verified(start: bytes, rest: bytes, end: bytes) -> None:
    try:
        probe(start + rest + end)
    except Failed as failure:
        assert failure.code == "not_verified"


def test_what_a_format_cannot_hold_is_refused_with_a_remedy() -> None:
    with pytest.raises(Failed, match="Choose png"):
        encode(np.zeros((1, 16_384, 3), np.uint8), "webp")
    with pytest.raises(Failed, match="transparency"):
        encode(np.zeros((4, 4, 4), np.uint8), "jpeg")


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_array_that_is_no_picture_is_refused(picture: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected"):
        encode(picture, "png")  # type: ignore[arg-type]
