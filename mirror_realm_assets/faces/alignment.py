"""Turning a face upright, to the size and place that networks were trained on, and back.

What belongs here: the plane geometry of that. What does not: finding faces (`mtcnn`), and what networks do with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]  # 2x3: where a point of one picture lies in another

SIDE = 512
"""Height and width of an aligned face."""

# Where landmarks of FFHQ's faces lie on average, at 512 pixels: both eyes, the nose, the corners of the mouth.
_TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
_BEYOND = (135, 133, 132)  # a middling grey, where a face reaches beyond the picture


def to_aligned(landmarks: npt.NDArray[np.float32]) -> Matrix | None:
    """The turn, scale and shift that bring five landmarks of a picture to their places in an aligned face.

    Returns:
        None when the landmarks allow none, as where they fall together.
    """
    import cv2

    matrix, _used = cv2.estimateAffinePartial2D(landmarks.astype(np.float64), _TEMPLATE, method=cv2.LMEDS)
    if matrix is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-9:
        return None
    found: Matrix = np.asarray(matrix, np.float64)
    return found


def aligned(picture: npt.NDArray[np.uint8], matrix: Matrix) -> npt.NDArray[np.uint8]:
    """The face of a picture, `512x512x3`.

    Args:
        picture: `HxWx3 uint8` RGB.
        matrix: from `to_aligned`.
    """
    import cv2

    source: npt.NDArray[Any] = picture
    # A face larger than that is made smaller by its area: else single pixels would be picked out of it.
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.5:
        corners = _corners(inverse(matrix))
        left, top = (max(0, int(edge)) for edge in np.floor(corners.min(axis=0)))
        right, bottom = (int(edge) + 1 for edge in np.ceil(corners.max(axis=0)))
        part = picture[top:bottom, left:right]
        size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        factors = np.array([size[0] / part.shape[1], size[1] / part.shape[0]])
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ np.array([left, top])
        # A pixel's centre is half a pixel in: that is where both grids agree.
        shifted[:, 2] += shifted[:, :2] @ (0.5 / factors - 0.5)
        shifted[:, :2] /= factors
        source, matrix = small, shifted
    face = cv2.warpAffine(
        source, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_BEYOND
    )
    return np.asarray(face, np.uint8)


def inverse(matrix: Matrix) -> Matrix:
    """The way back: from the aligned face to the picture."""
    turn = np.linalg.inv(matrix[:, :2])
    back: Matrix = np.hstack([turn, -(turn @ matrix[:, 2:])])
    return back


def enlarged(matrix: Matrix, factors: tuple[float, float]) -> Matrix:
    """A way into a picture, as the way into the same picture made larger.

    Args:
        matrix: leads to a pixel of the picture.
        factors: how many times higher and wider that is.
    """
    scale = np.array([factors[1], factors[0]])
    found: Matrix = matrix * scale[:, None]
    found[:, 2] += (scale - 1) / 2  # the centre of pixel 0 is no corner
    return found


def _corners(matrix: Matrix) -> npt.NDArray[np.float64]:
    ends = np.array([[0, 0, 1], [SIDE, 0, 1], [0, SIDE, 1], [SIDE, SIDE, 1]], np.float64)
    found: npt.NDArray[np.float64] = ends @ matrix.T
    return found


def reach(matrix: Matrix) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (excluded) of what a face covers in the picture that `matrix` leads into."""
    corners = _corners(matrix)
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    return int(left), int(top), int(right), int(bottom)
