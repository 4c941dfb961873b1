"""Picture embeddings: vectors that lie close together when pictures look alike.

What belongs here: the interface of every embedding model, the default one, and loading one by name. What does not: the
models that a person adds (`open_clip_embedder`), storing vectors, searching them, deciding which pictures need one.

Vectors of different models must never be compared; `digest` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.understand.efficientnet_lite import efficientnet_lite0
from mirror_realm_assets.weights.added import AddedModel, find
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    Precision,
    PrecisionSetting,
    choose_device,
    choose_precision,
    model_failure,
    release_memory,
    torch_dtype,
)
from mirror_realm_assets.weights.registry import Model

if TYPE_CHECKING:
    import torch

Picture = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

# EfficientNet-Lite0 was trained on the central 7/8 of the shorter side, scaled to 224 pixels, with values from -1 to 1.
_SIDE = 224
_CENTRAL = 0.875

# Pictures in one pass. On two cores 8 at a time are the fastest (76 a second; 57 one by one, 37 in batches of 32), and
# a picture's vector differs by 1e-7 between them.
BATCH: dict[Device, int] = {"cpu": 8, "cuda": 32}
# A GPU chooses other kernels for other batch sizes, and its vectors would change with them: there every batch is full.
ALWAYS_FULL: dict[Device, bool] = {"cpu": False, "cuda": True}


class Embedder(Protocol):
    """A model that turns pictures into vectors, used by one thread at a time."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model digest of a recipe."""

    @property
    def precision(self) -> Precision:
        """The number format in use; part of a recipe."""

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """One vector a picture, in order.

        Args:
            images: each `HxWx3 uint8` sRGB, upright, of any size.

        Returns:
            `N x dim float32`, every row of length 1. A row does not depend on the other pictures.

        Raises:
            Failed: `out_of_memory` or `model_failed`.
            ValueError: an array of another shape or type.
        """

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""


class EfficientNetEmbedder:
    """EfficientNet-Lite0's pooled features (ImageNet-1k), an `Embedder`.

    Good at finding the same picture again after flips, crops, greying and re-encoding (105 of 105 first hits on 15
    pictures), fair at finding similar subjects; it knows nothing of text.

    Args:
        spec: an `embed` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; `auto` is fp32 everywhere, because vectors are kept and compared for years and this network
            is never what one waits for.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for settings that this machine or this
            model does not allow.
    """

    def __init__(
        self,
        spec: Model,
        models_dir: Path,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
    ) -> None:
        if spec.purpose != "embed" or spec.dim is None:
            raise SetupError("invalid_argument", f"{spec.name} makes no embeddings.")
        weights = require(spec, models_dir)
        import torch
        from safetensors.torch import load_file

        self._spec = spec
        self._dim = spec.dim
        self._device = choose_device(device)
        wanted: PrecisionSetting = "fp32" if precision == "auto" else precision
        self._precision = choose_precision(wanted, self._device, frozenset())
        torch.set_num_threads(threads)
        network = efficientnet_lite0()
        network.load_state_dict(load_file(weights), strict=True)
        network.eval().to(device=self._device, dtype=torch_dtype(self._precision)).to(memory_format=torch.channels_last)
        self._network: torch.nn.Module | None = network

    @property
    def name(self) -> str:
        """The model's name."""
        return self._spec.name

    @property
    def dim(self) -> int:
        """Length of a vector: 1280."""
        return self._dim

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model digest of a recipe."""
        return self._spec.weights_sha256

    @property
    def precision(self) -> Precision:
        """The number format in use; part of a recipe."""
        return self._precision

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """One vector a picture: see `Embedder.embed`."""
        if self._network is None:
            raise RuntimeError("this embedder is closed")
        vectors = np.empty((len(images), self._dim), np.float32)
        size = BATCH[self._device]
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            rows = size if ALWAYS_FULL[self._device] else len(chunk)
            batch = np.zeros((rows, 3, _SIDE, _SIDE), np.float32)
            for row, image in enumerate(chunk):
                batch[row] = _prepared(image)
            try:
                features = self._features(self._network, batch)
            except Exception as error:  # whatever it is, it is the reason recorded for these pictures
                raise model_failure(error, f"{len(chunk)} pictures for {self.name}") from error
            vectors[start : start + len(chunk)] = normalised(features[: len(chunk)])
        return vectors

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._network = None
        release_memory()

    def _features(self, network: torch.nn.Module, batch: npt.NDArray[np.float32]) -> Vectors:
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(batch).to(device=self._device, dtype=torch_dtype(self._precision))
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            features: Vectors = network(pixels).float().cpu().numpy()
        return features


def load_embedder(
    name: str,
    models_dir: Path,
    *,
    device: DeviceSetting = "auto",
    precision: PrecisionSetting = "auto",
    threads: int = 2,
) -> Embedder:
    """The embedding model of that name, ready to use.

    Args:
        name: a model of the registry, or an added one.
        models_dir: the models folder.
        device: setting.
        precision: setting.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `not_found`, `weights_missing`, `weights_altered` or `invalid_argument`.
    """
    model = find(models_dir, name)
    if isinstance(model, AddedModel):
        from mirror_realm_assets.understand.open_clip_embedder import OpenClipEmbedder

        return OpenClipEmbedder(model, models_dir, device, precision, threads)
    return EfficientNetEmbedder(model, models_dir, device, precision, threads)


def _prepared(image: Picture) -> npt.NDArray[np.float32]:
    """A picture as the network wants it: `3x224x224 float32` from -1 to 1, the central part of the shorter side.

    Cutting and scaling are one step from the source: scaling first would blow a strip of 10,000x1 up to 2.5 million
    pixels in width.
    """
    from PIL import Image

    height, width = checked(image).shape[:2]
    side = min(height, width) * _CENTRAL
    left, top = (width - side) / 2, (height - side) / 2
    scaled = Image.fromarray(image).resize(
        (_SIDE, _SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(scaled, np.float32).transpose(2, 0, 1) / 127.5 - 1.0


def checked(image: Picture) -> Picture:
    """`image`, if it is one.

    Raises:
        ValueError: an array of another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected HxWx3 uint8, got {image.shape} {image.dtype}")
    return image


def normalised(features: Vectors) -> Vectors:
    """Rows at length 1.

    Raises:
        Failed: `model_failed` for a row that has no direction.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise Failed("model_failed", "The network gave an embedding without direction.")
    return features / lengths
