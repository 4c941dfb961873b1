"""Picture embeddings: vectors that lie close together when pictures look alike.

What belongs here: the interface of every embedding model, and loading one by name. What does not: the models
(`efficientnet_embedder`, `open_clip_embedder`), storing vectors, searching them, deciding which pictures need one.

Vectors of different models must never be compared; `digest` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.weights.added import AddedModel, find
from mirror_realm_assets.weights.hardware import DeviceSetting, Precision, PrecisionSetting

Picture = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


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
    from mirror_realm_assets.understand.efficientnet_embedder import EfficientNetEmbedder

    return EfficientNetEmbedder(model, models_dir, device, precision, threads)
