"""Videos, documents and raw files of cameras through the sandboxed decoder: their parts and what they show."""

import io
import os
import struct
import time
from contextlib import contextmanager

import numpy as np
import pytest
import skimage.data
from media_makers import document, raw_photo, scene, sound, turned, video
from PIL import Image

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest.decoded import MAX_PARTS
from mirror_realm_assets.ingest.decoder import Decoder

GIB = 1 << 30


@pytest.fixture(scope="module")
def decoder():
    with Decoder(seconds=60, memory_bytes=6 * GIB, max_pixels=10**8, max_frames=1000) as one:
        yield one


@contextmanager
def memory_file(content: bytes):
    fd = os.memfd_create("test")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def decode(decoder: Decoder, content: bytes, long_side: int = 200):
    with memory_file(content) as fd:
        return decoder.proxy(fd, long_side=long_side)


def reason(decoder: Decoder, content: bytes) -> str:
    with pytest.raises(Refused) as caught:
        decode(decoder, content)
    return caught.value.code


def shown(part) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(part.proxy)), dtype=float)


def differs(part, picture: Image.Image) -> float:
    """Mean difference in grey levels between a proxy and a picture."""
    return np.abs(shown(part) - np.asarray(picture.resize((part.proxy_width, part.proxy_height)), dtype=float)).mean()


# --- videos ---


@pytest.mark.parametrize(
    ("format", "codec", "mime"),
    [
        ("mp4", "libx264", "video/mp4"),
        ("matroska", "libx264", "video/x-matroska"),
        ("webm", "libvpx-vp9", "video/x-matroska"),
        ("mov", "libx264", "video/quicktime"),
        ("avi", "mpeg4", "video/x-msvideo"),
        ("mpegts", "libx264", "video/mp2t"),
        ("mpeg", "mpeg2video", "video/mpeg"),
        ("flv", "libx264", "video/x-flv"),
    ],
)
def test_a_video_has_a_part_for_every_scene_with_its_time(decoder, format, codec, mime):
    scenes = [scene(number) for number in (1, 2, 3)]
    rate = 25 if format == "mpeg" else 10
    found = decode(decoder, video(scenes, seconds=4, rate=rate, key_every=rate, format=format, codec=codec))
    assert found.mime == mime
    assert [part.kind for part in found.parts] == ["frame"] * 3
    assert [part.time_s for part in found.parts] == pytest.approx([0, 4, 8], abs=1.05)
    assert (found.first.width, found.first.height, found.first.proxy_width) == (320, 180, 200)
    for part, picture in zip(found.parts, scenes, strict=True):
        assert differs(part, picture) < 12
    assert found.duration_s == pytest.approx(12, abs=0.6)
    assert len({part.image_digest for part in found.parts}) == 3


def test_a_scene_that_stays_is_one_part_and_a_black_beginning_is_passed_over(decoder):
    black = Image.new("RGB", (320, 180))
    found = decode(decoder, video([black, scene(5), scene(5), scene(5)]))
    assert len(found.parts) == 1
    assert differs(found.first, scene(5)) < 12
    only_black = decode(decoder, video([black]))
    assert len(only_black.parts) == 1


def test_a_long_video_has_no_more_parts_than_are_kept_and_they_are_spread_over_it(decoder):
    scenes = [scene(number) for number in range(80)]
    found = decode(decoder, video(scenes, seconds=1, rate=5, key_every=5))
    times = [part.time_s for part in found.parts]
    assert len(times) == MAX_PARTS
    assert times == sorted(times)
    assert times[0] < 10 and times[-1] > 60


def test_a_phone_held_upright_films_upright_pictures(decoder):
    picture = scene(7)
    found = decode(decoder, turned(video([picture])))
    assert (found.first.width, found.first.height) == (180, 320)
    assert differs(found.first, picture.transpose(Image.Transpose.ROTATE_270)) < 12


def test_a_video_tells_when_it_was_taken(decoder):
    film = video([scene(1)], metadata={"creation_time": "2021-03-04T05:06:07.000000Z", "title": "At sea"})
    found = decode(decoder, film)
    assert found.taken_at == "2021-03-04T05:06:07+00:00"
    assert found.exif["description"] == "At sea"
    never_set = video([scene(1)], metadata={"creation_time": "1904-01-01T00:00:00.000000Z"})
    assert decode(decoder, never_set).taken_at is None


def test_the_same_frames_have_the_same_names(decoder):
    film = video([scene(1), scene(2)])
    again = decode(decoder, film)
    retitled = decode(decoder, video([scene(1), scene(2)], metadata={"title": "other"}))
    assert [p.image_digest for p in again.parts] == [p.image_digest for p in retitled.parts]


def test_of_a_video_whose_end_is_missing_the_beginning_is_shown_and_it_is_said(decoder):
    film = video([scene(1), scene(2), scene(3)], options={"movflags": "frag_keyframe+empty_moov"})
    assert "its end is missing" not in decode(decoder, film).notes
    shown = decode(decoder, film[: len(film) * 2 // 3])
    assert "its end is missing" in shown.notes
    assert 1 <= len(shown.parts) < 3


def test_videos_that_cannot_be_shown_are_refused_with_a_reason(decoder):
    film = video([scene(1), scene(2)])
    assert reason(decoder, sound()) == "unsupported"
    assert reason(decoder, film[:50]) == "truncated"
    assert reason(decoder, film[: len(film) // 2]) == "truncated"  # its index stood at the end
    assert reason(decoder, film[:36] + bytes(len(film) - 36)) == "corrupt"
    with Decoder(seconds=30, memory_bytes=4 * GIB, max_pixels=1000, max_frames=10) as strict:
        assert reason(strict, film) == "too_many_pixels"
    with pytest.raises(Refused) as caught, memory_file(film) as fd:
        decoder.pixels(fd)
    assert caught.value.code == "unsupported"


def test_a_video_whose_end_is_missing_is_shown_as_far_as_it_goes(decoder):
    film = video([scene(1), scene(2), scene(3), scene(4)], format="mpegts")
    found = decode(decoder, film[: len(film) // 3])
    assert 1 <= len(found.parts) < 4
    assert differs(found.first, scene(1)) < 12


def test_damage_in_a_video_never_costs_more_than_the_video(decoder):
    film = video([scene(1), scene(2)])
    rng = np.random.default_rng(0)
    for _ in range(15):
        broken = bytearray(film)
        for at in rng.integers(32, len(film), 20):
            broken[at] = int(rng.integers(0, 256))
        try:
            decode(decoder, bytes(broken))
        except Refused as refused:
            assert refused.code in ("corrupt", "truncated", "unsupported", "decoder_memory", "too_many_pixels")
    assert decode(decoder, film).parts


def test_a_long_film_takes_no_longer_than_it_is_given():
    scenes = [scene(number, 640, 360) for number in range(60)]
    film = video(scenes, seconds=2, rate=5, key_every=5)
    with Decoder(seconds=0.5, memory_bytes=6 * GIB, max_pixels=10**8, max_frames=10) as hurried:
        decode(hurried, video([scene(1)]), 100)  # FFmpeg's libraries are loaded by the first video
        began = time.monotonic()
        try:
            found = decode(hurried, film, 1440)
        except Refused as refused:
            assert refused.code == "decoder_timeout"
        else:
            assert len(found.parts) >= 1
        assert time.monotonic() - began < 2


def test_a_video_larger_than_the_decoder_s_memory_is_read_like_any_other():
    film = video([scene(1), scene(2)])
    size = 3 * GIB
    with Decoder(seconds=30, memory_bytes=2 * GIB, max_pixels=10**8, max_frames=10) as small, memory_file(film) as fd:
        os.pwrite(fd, struct.pack(">I4sQ", 1, b"free", size - len(film)), len(film))  # a box of nothing, not in memory
        os.ftruncate(fd, size)
        assert len(small.proxy(fd, long_side=100).parts) == 2


# --- documents ---


def test_a_document_has_a_part_for_every_page(decoder):
    pages = [scene(number, 300, 400) for number in (1, 2, 3)]
    found = decode(decoder, document(pages, title="Report"))
    assert (found.mime, found.frames) == ("application/pdf", 3)
    assert [(part.kind, part.page) for part in found.parts] == [("page", 1), ("page", 2), ("page", 3)]
    assert (found.first.width, found.first.height) == (625, 833)  # 300 x 400 points at 150 dpi
    assert (found.first.proxy_width, found.first.proxy_height) == (150, 200)
    for part, picture in zip(found.parts, pages, strict=True):
        assert differs(part, picture) < 8
    assert found.exif["description"] == "Report"


def test_of_a_long_document_the_first_pages_are_kept_and_all_are_counted(decoder):
    found = decode(decoder, document([scene(n % 5, 60, 80) for n in range(MAX_PARTS + 8)]), 64)
    assert (len(found.parts), found.frames) == (MAX_PARTS, MAX_PARTS + 8)


def test_documents_that_cannot_be_shown_are_refused_with_a_reason(decoder):
    assert reason(decoder, b"%PDF-1.7\nnothing more") == "corrupt"
    assert reason(decoder, document([scene(1)])[:100]) == "corrupt"


# --- raw files of cameras ---


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:400])


def test_a_raw_file_is_shown_as_its_camera_rendered_it(decoder, photo):
    rendered = Image.fromarray(photo).convert("L").convert("RGB")
    found = decode(decoder, raw_photo(photo, preview=rendered))
    assert found.mime == "image/x-adobe-dng"
    assert (found.first.kind, found.first.width, found.first.height) == ("still", 512, 400)
    assert differs(found.first, rendered) < 4
    assert (found.exif["make"], found.exif["model"]) == ("Mirror", "Realm One")
    assert found.taken_at == "2024-05-06T07:08:09"


def test_without_a_large_preview_the_sensor_s_data_are_developed(decoder, photo):
    for preview in (None, Image.fromarray(photo).convert("L").convert("RGB").resize((64, 50))):
        found = decode(decoder, raw_photo(photo, preview=preview))
        picture = shown(found.first)
        assert np.corrcoef(picture.ravel(), np.asarray(Image.fromarray(photo).resize((200, 156))).ravel())[0, 1] > 0.9
        assert picture.std(axis=2).mean() > 5  # it has colours, which the preview has not


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("with_preview", [True, False])
def test_a_raw_file_stands_upright(decoder, photo, orientation, with_preview):
    turns = {1: 0, 3: 2, 6: 3, 8: 1}  # quarter turns counter-clockwise
    preview = Image.fromarray(photo) if with_preview else None
    found = decode(decoder, raw_photo(photo, preview=preview, orientation=orientation))
    upright = np.rot90(photo, turns[orientation])
    assert (found.first.height, found.first.width) == upright.shape[:2]
    expected = np.asarray(Image.fromarray(upright).resize((found.first.proxy_width, found.first.proxy_height)))
    assert np.corrcoef(shown(found.first).ravel(), expected.ravel())[0, 1] > 0.9


def test_an_edit_of_a_raw_file_s_metadata_does_not_rename_the_picture(decoder, photo):
    plain, rated = decode(decoder, raw_photo(photo)), decode(decoder, raw_photo(photo, rating=5))
    assert plain.first.image_digest == rated.first.image_digest
    assert rated.exif["rating"] == 5
    other = photo.copy()
    other[:100] = 0
    assert decode(decoder, raw_photo(other)).first.image_digest != plain.first.image_digest


def test_a_raw_file_has_pixels_at_full_size(decoder, photo):
    with memory_file(raw_photo(photo, orientation=6)) as fd:
        pixels = decoder.pixels(fd)
    assert pixels.shape == (512, 400, 3)
    assert np.corrcoef(pixels.ravel(), np.rot90(photo, 3).ravel())[0, 1] > 0.9


def test_raw_files_that_cannot_be_developed_are_refused_with_a_reason(decoder, photo):
    good = raw_photo(photo)
    assert reason(decoder, b"FUJIFILMCCD-RAW 0201" + bytes(500)) in ("unsupported", "corrupt")
    assert reason(decoder, good[: len(good) // 2]) in ("unsupported", "corrupt", "truncated")
