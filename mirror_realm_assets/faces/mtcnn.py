"""Finding faces with MTCNN (Zhang et al., 2016): three networks, each more careful with what the one before left over.

What belongs here: the way from a picture to boxes and landmarks. What does not: the networks themselves (`networks`),
and turning a face upright (`alignment`).

Coordinates are pixels of the picture, x to the right and y down; pixel (0, 0) has its centre at (0, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.faces.networks import Networks, build
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    choose_device,
    free_memory,
    model_failure,
    release_memory,
)
from mirror_realm_assets.weights.registry import ModelSpec

if TYPE_CHECKING:
    import torch

_WINDOW = 12  # of the first network, in pixels
_STRIDE = 2
_PYRAMID = 0.709  # each step has half the pixels of the one before
_THRESHOLDS = (0.6, 0.7, 0.7)  # probability after each network
_CROPS_AT_ONCE = 512
# A picture is searched at one size after another; the first and largest takes about 60 floats for each of its pixels.
_BYTES_PER_PIXEL = 300
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Face:
    """A face.

    Attributes:
        box: left, top, right, bottom.
        probability: from 0 to 1.
        landmarks: 5x2: the eye on the left of the picture, the one on the right, the nose, both corners of the mouth.
    """

    box: tuple[float, float, float, float]
    probability: float
    landmarks: npt.NDArray[np.float32]

    @property
    def size(self) -> float:
        """The longer side of its box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class FaceDetector:
    """MTCNN in memory, used by one thread at a time. Also a context manager.

    Args:
        spec: the model `mtcnn`; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for a model made for something else.
    """

    def __init__(self, spec: ModelSpec, models_dir: Path, *, device: DeviceSetting = "auto", threads: int = 2) -> None:
        import torch
        from safetensors.torch import load_file

        if spec.purpose != "detect":
            raise SetupError("invalid_argument", f"{spec.name} does not find faces.")
        weights = require(spec, models_dir)
        torch.set_num_threads(threads)
        self.name, self.digest = spec.name, spec.weights_sha256
        self.device: Device = choose_device(device)
        networks = build(load_file(weights))
        self._networks = Networks(*(network.to(self.device) for network in networks))
        self._closed = False

    def detect(
        self, picture: npt.NDArray[np.uint8], *, min_size: int = 20, min_probability: float = 0.95
    ) -> list[Face]:
        """The faces of a picture, the largest first.

        Args:
            picture: `HxWx3 uint8` RGB, upright.
            min_size: the longer side of the smallest face that is looked for, in pixels. Twice the size costs a
                quarter of the time. In a picture so large that its search would not fit into memory, it is raised.
            min_probability: less certain ones are left out; at 0.95 no false one was among 16 pictures without faces.

        Raises:
            Failed: `out_of_memory`, `model_failed`.
        """
        import torch

        if self._closed:
            raise RuntimeError("this network is closed")
        height, width = picture.shape[:2]
        smallest = max(min_size, _WINDOW, _affordable(height, width, self.device))
        try:
            with torch.inference_mode():
                pixels = torch.tensor(np.ascontiguousarray(picture), device=self.device)
                image = pixels.permute(2, 0, 1).unsqueeze(0).float()
                found = self._found(image, smallest)
        except Exception as error:
            raise model_failure(error, f"a search for faces in {width}x{height} pixels") from error
        kept = [face for face in found if face.probability >= min_probability and face.size >= min_size]
        return sorted(kept, key=lambda face: face.size, reverse=True)

    def close(self) -> None:
        """Drop the networks and give their memory back. May be called twice."""
        self._closed = True
        self._networks = Networks(*(None for _ in self._networks))  # type: ignore[arg-type]
        release_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, image: torch.Tensor, smallest: int) -> list[Face]:
        import torch
        from torchvision.ops import nms

        boxes = self._proposed(image, smallest)
        boxes = self._refined(image, boxes)
        if not len(boxes):
            return []
        crops, boxes = _crops(image, boxes, 48)
        corrections, marks, probabilities = (
            torch.cat(parts) for parts in zip(*_in_parts(self._networks.output, crops), strict=True)
        )
        good = probabilities[:, 1] > _THRESHOLDS[2]
        boxes, scores, corrections, marks = boxes[good], probabilities[good, 1], corrections[good], marks[good]
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        points = torch.stack([marks[:, :5], marks[:, 5:]], dim=2) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = _corrected(boxes, corrections)
        faces = []
        for index in _distinct(boxes, scores, nms(boxes, scores, 0.7).tolist()):
            left, top, right, bottom = boxes[index].tolist()
            landmarks = points[index].cpu().numpy().astype(np.float32)
            faces.append(Face((left, top, right, bottom), float(scores[index]), landmarks))
        return faces

    def _proposed(self, image: torch.Tensor, smallest: int) -> torch.Tensor:
        """Boxes in which the first network sees a face, over a pyramid of sizes: `Nx4`, square."""
        import torch
        from torch.nn.functional import interpolate
        from torchvision.ops import nms

        height, width = image.shape[2:]
        kept = []
        for scale in _scales(min(height, width), smallest):
            size = (int(height * scale + 1), int(width * scale + 1))
            small = (interpolate(image, size=size, mode="area") - 127.5) / 128
            corrections, probabilities = self._networks.propose(small)
            rows, columns = torch.nonzero(probabilities[0, 1] >= _THRESHOLDS[0], as_tuple=True)
            begin = torch.stack([columns, rows], dim=1).float() * _STRIDE
            boxes = torch.cat([((begin + 1) / scale).floor(), ((begin + _WINDOW) / scale).floor()], dim=1)
            scores = probabilities[0, 1, rows, columns]
            moved = corrections[0, :, rows, columns].T
            pick = nms(boxes, scores, 0.5)
            kept.append(torch.cat([boxes[pick], scores[pick, None], moved[pick]], dim=1))
        if not kept:
            return image.new_zeros((0, 4))
        together = torch.cat(kept)
        together = together[nms(together[:, :4], together[:, 4], 0.7)]
        boxes, moved = together[:, :4], together[:, 5:]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return _squared(boxes + moved * sides)

    def _refined(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        import torch
        from torchvision.ops import nms

        crops, boxes = _crops(image, boxes, 24)
        if not len(boxes):
            return boxes
        corrections, probabilities = (
            torch.cat(parts) for parts in zip(*_in_parts(self._networks.refine, crops), strict=True)
        )
        good = probabilities[:, 1] > _THRESHOLDS[1]
        boxes, scores, corrections = boxes[good], probabilities[good, 1], corrections[good]
        pick = nms(boxes, scores, 0.7)
        return _squared(_corrected(boxes[pick], corrections[pick]))


def _affordable(height: int, width: int, device: Device) -> int:
    """The smallest face that a picture of that size can be searched for in the memory that is free."""
    pixels = free_memory(device) * _MEMORY_SHARE / _BYTES_PER_PIXEL
    return int(np.ceil(_WINDOW * np.sqrt(height * width / max(1.0, pixels))))


def _scales(side: int, smallest: int) -> Iterator[float]:
    scale = _WINDOW / smallest
    while side * scale >= _WINDOW:
        yield scale
        scale *= _PYRAMID


def _crops(image: torch.Tensor, boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is in the boxes, `NxCxsizexsize`, and the boxes of which any part lies in the picture."""
    import torch
    from torch.nn.functional import interpolate

    height, width = image.shape[2:]
    crops, inside = [], []
    for index, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
        x, y, end_x, end_y = max(left, 1) - 1, max(top, 1) - 1, min(right, width), min(bottom, height)
        if end_x > x and end_y > y:
            part = interpolate(image[:, :, y:end_y, x:end_x], size=(size, size), mode="area")
            crops.append((part - 127.5) / 128)
            inside.append(index)
    if not crops:
        return image.new_zeros((0, 3, size, size)), boxes[:0]
    return torch.cat(crops), boxes[inside]


def _in_parts(network: torch.nn.Module, crops: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    for part in crops.split(_CROPS_AT_ONCE):
        yield network(part)


def _corrected(boxes: torch.Tensor, corrections: torch.Tensor) -> torch.Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    moved: torch.Tensor = boxes + corrections * sides
    return moved


def _squared(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes made square around their middle by their longer side."""
    import torch

    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.max(dim=1, keepdim=True).values
    begin = boxes[:, :2] + sides * 0.5 - longest * 0.5
    return torch.cat([begin, begin + longest], dim=1)


def _distinct(boxes: torch.Tensor, scores: torch.Tensor, picked: list[int]) -> list[int]:
    """Those of the picked boxes, best first, of which none lies mostly inside of a better one."""
    kept: list[int] = []
    for index in picked:
        if all(_shared(boxes[index].tolist(), boxes[better].tolist()) <= 0.7 for better in kept):
            kept.append(index)
    return kept


def _shared(one: list[float], other: list[float]) -> float:
    """The area that two boxes share, of the smaller one's."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0.0, width) * max(0.0, height) / max(1e-6, min(areas))
