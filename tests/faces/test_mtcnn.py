"""Faces are found where they are, and nowhere else, with the real weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.faces.mtcnn import FaceDetector
from mirror_realm_assets.weights.registry import MODELS

FACES = Path(os.environ.get("MIRROR_REALM_TEST_MEDIA", "/nowhere")) / "faces"
FACELESS = ("chelsea", "coffee", "rocket", "coins", "hubble_deep_field", "page", "brick", "grass", "gravel", "clock")


@pytest.fixture(scope="module")
def detector(models_dir: Path) -> Iterator[FaceDetector]:
    with FaceDetector(MODELS["mtcnn"], models_dir, device="cpu") as loaded:
        yield loaded


def as_rgb(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture[..., :3]


def test_the_astronaut_is_found_once_with_landmarks_in_her_face(detector: FaceDetector) -> None:
    (face,) = detector.detect(skimage.data.astronaut())
    assert face.probability > 0.999
    assert np.allclose(face.box, (181, 62, 268, 172), atol=8)  # what the reference implementation finds
    left, right, nose, mouth_left, mouth_right = face.landmarks
    assert left[0] < nose[0] < right[0] and mouth_left[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    assert all(face.box[0] < x < face.box[2] and face.box[1] < y < face.box[3] for x, y in face.landmarks)


def test_a_photographer_from_the_side_is_found_in_grey(detector: FaceDetector) -> None:
    assert len(detector.detect(as_rgb(skimage.data.camera()))) == 1


@pytest.mark.parametrize("name", FACELESS)
def test_nothing_is_found_where_no_face_is(detector: FaceDetector, name: str) -> None:
    picture = as_rgb(np.asarray(getattr(skimage.data, name)()))
    assert detector.detect(picture[:600, :600]) == []


def test_where_a_face_lies_moves_with_the_picture(detector: FaceDetector) -> None:
    photo = skimage.data.astronaut()
    (face,) = detector.detect(photo)
    moved = np.full((620, 640, 3), 127, np.uint8)
    moved[60:572, 90:602] = photo
    (found,) = detector.detect(moved)
    assert np.allclose(np.subtract(found.box, face.box), (90, 60, 90, 60), atol=6)
    (mirrored,) = detector.detect(photo[:, ::-1])
    assert np.allclose(mirrored.box[0], 511 - face.box[2], atol=8)


def test_small_faces_are_left_out_and_large_ones_are_found_at_any_size(detector: FaceDetector) -> None:
    photo = Image.fromarray(skimage.data.astronaut())
    small = np.asarray(photo.resize((128, 128)))
    assert len(detector.detect(small)) == 1
    assert detector.detect(small, min_size=60) == []
    assert len(detector.detect(np.asarray(photo.resize((1536, 1536))), min_size=60)) == 1


def test_a_tiny_picture_and_an_empty_wall_have_no_face(detector: FaceDetector) -> None:
    for shape in ((1, 1, 3), (11, 300, 3), (64, 64, 3)):
        assert detector.detect(np.full(shape, 200, np.uint8)) == []


def test_little_memory_means_that_only_larger_faces_are_looked_for(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror_realm_assets.faces.mtcnn.free_memory", lambda device: 60_000_000)
    photo = skimage.data.astronaut()
    assert len(detector.detect(photo)) == 1
    wall = np.full((2000, 2000, 3), 127, np.uint8)
    wall[:128, :128] = np.asarray(Image.fromarray(photo).resize((128, 128)))
    assert detector.detect(wall) == []


def test_a_model_for_another_purpose_is_refused(models_dir: Path) -> None:
    with pytest.raises(SetupError, match="does not find faces"):
        FaceDetector(MODELS["efficientnet-lite0"], models_dir)


def test_a_closed_detector_says_so(models_dir: Path) -> None:
    detector = FaceDetector(MODELS["mtcnn"], models_dir, device="cpu")
    detector.close()
    detector.close()
    with pytest.raises(RuntimeError, match="closed"):
        detector.detect(skimage.data.astronaut())


@pytest.mark.skipif(not FACES.is_dir(), reason="needs MIRROR_REALM_TEST_MEDIA")
def test_real_photos_of_people_have_faces(detector: FaceDetector) -> None:
    names = sorted(path for path in FACES.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    found = 0
    for path in names:
        image = Image.open(path).convert("RGB")
        image.thumbnail((512, 512))
        found += bool(detector.detect(np.asarray(image)))
    assert found == len(names) > 0
