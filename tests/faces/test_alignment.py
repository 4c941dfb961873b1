"""A face is turned to its place, and back to where it was."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.faces.alignment import _TEMPLATE, SIDE, aligned, enlarged, inverse, reach, to_aligned


def way(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.deg2rad(degrees)
    return np.array(
        [
            [scale * np.cos(turn), -scale * np.sin(turn), shift[0]],
            [scale * np.sin(turn), scale * np.cos(turn), shift[1]],
        ]
    )


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@given(
    degrees=st.floats(-80, 80),
    scale=st.floats(0.05, 5),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_landmarks_come_to_their_places_however_the_face_lies(
    degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    landmarks = moved(_TEMPLATE, way(degrees, scale, shift)).astype(np.float32)
    matrix = to_aligned(landmarks)
    assert matrix is not None
    assert np.abs(moved(landmarks, matrix) - _TEMPLATE).max() < 0.5
    assert np.abs(moved(_TEMPLATE, inverse(matrix)) - landmarks).max() < 0.5 * max(1, scale)


def test_landmarks_in_one_point_are_no_face() -> None:
    assert to_aligned(np.zeros((5, 2), np.float32)) is None


@pytest.mark.parametrize("scale", [0.11, 0.3, 0.9, 2.0])
def test_an_aligned_face_is_the_picture_there(scale: float) -> None:
    """Looked up by hand at the middle of a smooth picture, also where it is made much smaller."""
    ys, xs = np.mgrid[0:3000, 0:3000]
    smooth = np.stack([xs * 255 / 3000, ys * 255 / 3000, (xs + ys) * 255 / 6000], axis=2).astype(np.uint8)
    matrix = way(20, scale, (SIDE / 2, SIDE / 2)) @ np.vstack([np.eye(2, 3) - [[0, 0, 1500], [0, 0, 1500]], [0, 0, 1]])
    face = aligned(smooth, matrix)
    for x, y in ((256, 256), (200, 300), (310, 240)):
        there = moved(np.array([[x, y]], float), inverse(matrix))[0]
        expected = smooth[round(there[1]), round(there[0])]
        assert np.abs(face[y, x].astype(int) - expected).max() <= 2


def test_a_way_into_a_larger_picture_keeps_centres() -> None:
    matrix = way(10, 0.5, (30, 40))
    larger = enlarged(matrix, (4, 4))
    point = np.array([[100.0, 120.0]])
    assert np.allclose(moved(point, larger), (moved(point, matrix) + 0.5) * 4 - 0.5)


def test_reach_holds_every_corner() -> None:
    left, top, right, bottom = reach(way(45, 1, (300, 10)))
    assert right - left == pytest.approx(SIDE * np.sqrt(2), abs=3) and bottom - top == pytest.approx(
        right - left, abs=3
    )


def test_the_astronaut_looks_at_us() -> None:
    """Her eyes, as a person marked them, come to one height."""
    landmarks = np.array([[209, 111], [246, 110], [231, 130], [213, 146], [243, 146]], np.float32)
    matrix = to_aligned(landmarks)
    assert matrix is not None
    face = aligned(skimage.data.astronaut(), matrix)
    assert face.shape == (SIDE, SIDE, 3)
    eyes = moved(landmarks[:2].astype(float), matrix)
    assert abs(eyes[0, 1] - eyes[1, 1]) < 12 and np.abs(eyes - _TEMPLATE[:2]).max() < 30
