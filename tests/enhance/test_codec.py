"""Encoding results and recognising whole ones."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mirror_realm_assets.enhance.codec import (
    FORMATS,
    PictureFormat,
    Style,
    encode,
    encode_rows,
    small,
)
from mirror_realm_assets.enhance.probing import probe, probe_file
from mirror_realm_assets.errors import Failed

Picture = npt.NDArray[np.uint8]
EXIF = Image.Exif()
EXIF[0x010F], EXIF[0x013B] = "Canon", "安娜".encode()
BLOCK = EXIF.tobytes().removeprefix(b"Exif\x00\x00")


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
    assert np.abs(back - photo).mean() < (1e-9 if file_format in ("png", "tiff") else 5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("file_format", ["png", "tiff"])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_png_and_tiff_lose_nothing(shape: tuple[int, ...], file_format: PictureFormat, kind: type) -> None:
    picture = np.random.default_rng(1).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    content = encode(picture, file_format)
    assert probe(content) == (7, 9, file_format)
    if file_format == "tiff":
        back = tifffile.imread(io.BytesIO(content))
    else:  # Pillow reads 16 bits of colour as eight
        back = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if shape[2:] == (2,):
            assert np.array_equal(back[..., 0], picture[..., 0])
            back = back[..., [0, -1]]
        elif shape[2:]:
            back = back[..., [2, 1, 0, 3][: shape[2]]]
    assert np.array_equal(back, picture)


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_formats_of_eight_bits_round(file_format: PictureFormat) -> None:
    flat = np.full((16, 16, 3), 32_896, np.uint16)
    assert np.abs(np.asarray(decoded(encode(flat, file_format))).astype(int) - 128).max() <= 1


def test_jpeg_shows_white_where_nothing_is_opaque() -> None:
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:8, :, 3] = 255
    shown = np.asarray(decoded(encode(picture, "jpeg"))).astype(int)
    assert shown[:6].max() < 8 and shown[10:].min() > 247
    grey = np.asarray(decoded(encode(picture[..., 2:], "jpeg")))
    assert grey.ndim == 2


def test_webp_keeps_transparency() -> None:
    picture = np.full((8, 8, 4), 200, np.uint8)
    picture[:4, :, 3] = 0
    assert decoded(encode(picture, "webp")).mode == "RGBA"


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_colour_profile_is_embedded(photos: dict[str, Picture], file_format: PictureFormat) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encode(photos["coffee"], Style(file_format, icc=profile))
    assert decoded(content).info["icc_profile"] == profile
    assert probe(content) == (96, 96, file_format)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_cut_file_is_not_whole(photos: dict[str, Picture], file_format: PictureFormat) -> None:
    content = encode(photos["astronaut"], file_format)
    for cut in (0, 1, 4, 11, 20, 40, len(content) // 2, len(content) - 1):
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
    with pytest.raises(Failed, match="Choose png"):
        encode(np.zeros((65_536, 1, 3), np.uint8), "jpeg")


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_array_that_is_no_picture_is_refused(picture: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected"):
        encode(picture, "png")  # type: ignore[arg-type]


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("icc", [None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_exif_is_embedded_as_it_is(
    photos: dict[str, Picture], file_format: PictureFormat, channels: int, icc: bytes | None
) -> None:
    photo = photos["coffee"]
    picture = {1: photo[..., 0], 3: photo, 4: np.dstack([photo, photo[..., :1]])}[channels]
    content = encode(picture, Style(file_format, icc=icc if channels > 1 else None, exif=BLOCK))
    assert probe(content) == (96, 96, file_format)
    found = decoded(content)
    assert found.getexif()[0x010F] == "Canon" and found.getexif()[0x013B].encode("latin-1").decode() == "安娜"
    without = encode(picture, Style(file_format, icc=icc if channels > 1 else None))
    assert np.array_equal(np.asarray(found), np.asarray(decoded(without)))


def test_exif_of_any_length_leaves_a_file_whole(photos: dict[str, Picture]) -> None:
    for length in (1, 2, 65_000, 70_000):
        for file_format in FORMATS:
            content = encode(photos["coffee"], Style(file_format, exif=b"x" * length))
            assert probe(content).format == file_format
            decoded(content)


def test_quality_decides_size(photos: dict[str, Picture]) -> None:
    for file_format in ("jpeg", "webp"):
        sizes = [len(encode(photos["coffee"], Style(file_format, quality))) for quality in (20, 60, None, 100)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_large_picture_waits_in_a_file_and_comes_out_the_same(
    file_format: PictureFormat, channels: tuple[int, ...], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(3).integers(0, np.iinfo(kind).max, (300, 200, *channels), kind)
    whole = encode(picture, file_format)
    monkeypatch.setattr("mirror_realm_assets.enhance.codec._IN_MEMORY", 1000)
    monkeypatch.setattr("mirror_realm_assets.enhance.codec._WAITING_STRIP", 5_000)
    path = tmp_path / "made"
    with path.open("wb") as file:
        rows = (picture[top : top + 7] for top in range(0, 300, 7))
        encode_rows(rows, (300, 200), Style(file_format), file, tmp_path)
    assert path.read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir()] == ["made"]
    assert probe_file(path) == (200, 300, file_format)


def test_a_large_result_is_written_and_checked_in_bounded_memory(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from mirror_realm_assets.enhance.codec import Style, encode_rows
from mirror_realm_assets.enhance.probing import probe_file

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

rows = np.random.default_rng(1).integers(0, 256, (250, 5000, 3), np.uint8)  # a PNG of noise is as large as its pixels
folder = Path(sys.argv[1])
def write(name, count):
    with (folder / name).open("wb") as file:
        encode_rows((rows for _ in range(count)), (250 * count, 5000), Style("png"), file, folder)
    assert probe_file(folder / name).height == 250 * count
write("warm.png", 1)
before = peak()
write("large.png", 32)
print((peak() - before) / (32 * rows.nbytes))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5  # of 120 MB; mapped as a whole it would be more than 1


def test_rows_that_do_not_make_the_picture_are_noticed() -> None:
    rows = [np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)]
    for size in ((9, 8), (7, 8), (8, 9)):
        with pytest.raises(ValueError, match="expected"):
            encode_rows(iter(rows), size, Style("png"), io.BytesIO())
    with pytest.raises(ValueError, match="like the first"):
        encode_rows(iter([rows[0], rows[1][..., 0]]), (8, 8), Style("png"), io.BytesIO())
    with pytest.raises(ValueError, match="none"):
        encode_rows(iter([]), (8, 8), Style("png"), io.BytesIO())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(900, 600), (900, 600, 2), (900, 600, 3), (900, 600, 4)])
def test_a_small_picture_can_be_looked_at(shape: tuple[int, ...], kind: type, tmp_path: Path) -> None:
    picture = np.full(shape, np.iinfo(kind).max // 2, kind)
    if shape[2:] in ((2,), (4,)):
        picture[..., -1] = 0
    path = tmp_path / "made"
    path.write_bytes(encode(picture, "png"))
    for source in (picture, path):
        shown = decoded(small(source))
        assert shown.format == "JPEG" and shown.size == (171, 256)
        assert abs(int(np.asarray(shown).mean()) - (255 if shape[2:] in ((2,), (4,)) else 127)) <= 2
