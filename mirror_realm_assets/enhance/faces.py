"""Restoring faces: found on the original, restored at 512 pixels, put into the enlarged picture as its rows come.

What belongs here: GFPGAN's network, and putting its faces back. What does not: finding and turning faces
(`mirror_realm_assets.faces`), enlarging (`upscale`).

`GFPGANer` of the package cannot be made without the network, and puts random noise into every face. Here the noise is
the one that comes with the weights, so that the same picture gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.enhance.layers import Pixels, taken_apart
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.faces.alignment import SIDE, Matrix, aligned, enlarged, inverse, reach, to_aligned
from mirror_realm_assets.faces.mtcnn import FaceDetector
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    choose_device,
    model_failure,
    release_memory,
)
from mirror_realm_assets.weights.registry import FACE_DETECTOR, MODELS, Model

MIN_SIZE = 32
"""The smallest face that is restored, in pixels of the original: of a smaller one the network invents a stranger."""

# Pixels of an aligned face's border in which it fades into the picture. What the network changes of brightness or grain
# shows as a box where it ends within 50; a face's own features lie farther inside.
_FADE = 96


@dataclass(frozen=True)
class RestoredFace:
    """A face of 512x512 pixels, and the way from it to the original picture."""

    pixels: npt.NDArray[np.uint8]
    to_picture: Matrix


class FaceRestorer:
    """GFPGAN in memory, with a detector; used by one thread at a time. Also a context manager.

    Args:
        spec: a `restore` model; its weights must be in `models_dir`.
        detector: finds the faces; closed with this.
        models_dir: the models folder.
        device: setting.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for a model made for something else.
    """

    def __init__(
        self,
        spec: Model,
        detector: FaceDetector,
        models_dir: Path,
        *,
        device: DeviceSetting = "auto",
        threads: int = 2,
    ) -> None:
        import torch
        from spandrel import ModelLoader

        if spec.purpose != "restore":
            raise SetupError("invalid_argument", f"{spec.name} does not restore faces.")
        weights = require(spec, models_dir)
        torch.set_num_threads(threads)
        self.name, self.digest = spec.name, spec.weights_sha256
        self.device: Device = choose_device(device)
        self._detector = detector
        self._network: Any = ModelLoader(device="cpu").load_from_file(weights).model.to(self.device).eval()

    def restored(self, picture: Pixels, *, weight: float = 0.5, min_size: int = MIN_SIZE) -> list[RestoredFace]:
        """The faces of a picture, restored.

        Args:
            picture: `HxWx3` RGB, 8 or 16 bits, upright: the original.
            weight: from 0 (the face as it was, only larger) to 1 (as the network sees it).
            min_size: smaller faces are left as they are.

        Raises:
            Failed: `out_of_memory`, `model_failed`.
            ValueError: a weight outside of 0 to 1.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, got {weight}")
        eight = picture.astype(np.uint8) if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)
        found = []
        for face in self._detector.detect(eight, min_size=min_size):
            matrix = to_aligned(face.landmarks)
            if matrix is None:
                continue
            before = aligned(eight, matrix)
            after = self.run(before)
            mixed = np.rint(weight * after.astype(np.float32) + (1 - weight) * before).astype(np.uint8)
            found.append(RestoredFace(mixed, inverse(matrix)))
        return found

    def run(self, face: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Restore one aligned face, `512x512x3 uint8` RGB.

        Raises:
            Failed: `out_of_memory`, `model_failed`.
        """
        import torch

        if self._network is None:
            raise RuntimeError("this network is closed")
        try:
            with torch.inference_mode():
                batch = torch.tensor(face, device=self.device).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1
                output = self._network(batch, return_rgb=False, randomize_noise=False)[0][0]
                if not bool(torch.isfinite(output).all()):
                    raise Failed("model_failed", "The network gave numbers that are not finite.")
                levels = ((output.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
                restored: npt.NDArray[np.uint8] = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        except Exception as error:
            raise model_failure(error, "a face") from error
        return restored

    def close(self) -> None:
        """Drop the networks and give their memory back. May be called twice."""
        self._network = None
        self._detector.close()
        release_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_restorer(name: str, models_dir: Path, *, device: DeviceSetting = "auto", threads: int = 2) -> FaceRestorer:
    """The `restore` model called `name`, with a detector of its own.

    Raises:
        SetupError: `not_found`, `weights_missing`, `weights_altered`, `invalid_argument`.
    """
    spec = find(models_dir, name, "restore")
    require(spec, models_dir)  # before the detector is loaded
    detector = FaceDetector(MODELS[FACE_DETECTOR], models_dir, device=device, threads=threads)
    return FaceRestorer(spec, detector, models_dir, device=device, threads=threads)


def rows_with_faces(
    rows: Iterable[Pixels],
    restorer: FaceRestorer,
    picture: Pixels,
    size: tuple[int, int],
    *,
    weight: float,
    min_size: int = MIN_SIZE,
) -> Iterable[Pixels]:
    """Rows of an enlarged picture with its faces restored; the same rows where it has none.

    Args:
        rows: see `upscale.Upscaler.strips`.
        restorer: finds and restores.
        picture: the original, of any kind.
        size: height and width of the result.
        weight: see `FaceRestorer.restored`.
        min_size: likewise.

    Raises:
        Failed: `out_of_memory`, `model_failed`.
    """
    faces = restorer.restored(taken_apart(picture).colours, weight=weight, min_size=min_size)
    return with_faces(rows, faces, (picture.shape[0], picture.shape[1]), size) if faces else rows


def with_faces(
    strips: Iterable[Pixels], faces: list[RestoredFace], original: tuple[int, int], size: tuple[int, int]
) -> Iterator[Pixels]:
    """Rows of an enlarged picture with restored faces in them.

    Args:
        strips: rows of the result, see `upscale.Upscaler.strips`.
        faces: what to put in.
        original: height and width of the original.
        size: height and width of the result.
    """
    factors = (size[0] / original[0], size[1] / original[1])
    ways = [enlarged(face.to_picture, factors) for face in faces]
    places = [reach(way) for way in ways]
    fade = _fade() if faces else None
    top = 0
    for rows in strips:
        bottom = top + rows.shape[0]
        for face, way, place in zip(faces, ways, places, strict=True):
            first, last = max(top, place[1]), min(bottom, place[3])
            left, right = max(0, place[0]), min(size[1], place[2])
            if first < last and left < right and fade is not None:
                rows = _put(rows, top, face.pixels, fade, way, (left, first, right, last))
        yield rows
        top = bottom


def _put(
    rows: Pixels,
    top: int,
    face: npt.NDArray[np.uint8],
    fade: npt.NDArray[np.float32],
    way: Matrix,
    box: tuple[int, int, int, int],
) -> Pixels:
    """Rows with a face in the part `box` of the picture, which lies within them."""
    import cv2

    left, first, right, last = box
    here = way.copy()
    here[:, 2] -= (left, first)
    size = (right - left, last - first)
    colours = cv2.warpAffine(face, here, size, flags=cv2.INTER_CUBIC).astype(np.float32)
    share = cv2.warpAffine(fade, here, size, flags=cv2.INTER_LINEAR)[..., None]
    if rows.dtype == np.uint16:
        colours *= 257
    grey = rows.ndim == 2 or rows.shape[2] == 2
    if grey:
        colours = colours.mean(axis=2, keepdims=True)
    result: Any = rows.copy()
    part = result[first - top : last - top, left:right]
    shown = part[..., None] if part.ndim == 2 else part[..., : colours.shape[2]]
    mixed = share * colours + (1 - share) * shown
    shown[...] = np.clip(np.rint(mixed), 0, np.iinfo(rows.dtype).max)
    return result


def _fade() -> npt.NDArray[np.float32]:
    """How much of an aligned face counts: all of it inside, nothing at its border, without a bend between."""
    share = np.clip((np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) + 0.5) / _FADE, 0, 1)
    smooth = share**3 * (share * (6 * share - 15) + 10)
    return np.outer(smooth, smooth).astype(np.float32)
