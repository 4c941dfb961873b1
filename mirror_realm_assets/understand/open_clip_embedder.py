"""Embeddings by an open_clip model with weights of a person's own: of pictures, and of words in the same space.

What belongs here: running such a network. What does not: which there are (`weights.added`), building one
(`weights.open_clip_networks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.understand.embedder import ALWAYS_FULL, BATCH, Picture, Vectors, checked, normalised
from mirror_realm_assets.weights import open_clip_networks as networks
from mirror_realm_assets.weights.added import AddedModel
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    DeviceSetting,
    Precision,
    PrecisionSetting,
    choose_device,
    choose_precision,
    model_failure,
    release_memory,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image

# A strip is cut to its central 8:1. Scaling its shorter side to 224 pixels would blow 1440x1 up to 300,000 pixels in
# width, of which the network sees the central square; scaling its longer side would leave nothing of the other.
_LONGEST = 8


class OpenClipEmbedder:
    """An added open_clip model, an `Embedder` that may also read words.

    Args:
        model: its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; `auto` is fp32 everywhere, as for every embedder.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for settings that this machine does not
            allow.
    """

    def __init__(
        self,
        model: AddedModel,
        models_dir: Path,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
    ) -> None:
        if model.dim is None:
            raise SetupError("invalid_argument", f"{model.name} makes no embeddings.")
        weights = require(model, models_dir)
        import torch

        self._model = model
        self._dim = model.dim
        self._device = choose_device(device)
        wanted: PrecisionSetting = "fp32" if precision == "auto" else precision
        self._precision = choose_precision(wanted, self._device, frozenset())
        torch.set_num_threads(threads)
        network, self._transform = networks.build(
            model.architecture, weights, model.preparation, device=self._device, precision=self._precision
        )
        self._network: Any = network
        self._tokenizer = networks.tokenizer(model.architecture) if model.reads_text else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model digest of a recipe."""
        return self._model.weights_sha256

    @property
    def precision(self) -> Precision:
        """The number format in use; part of a recipe."""
        return self._precision

    @property
    def reads_text(self) -> bool:
        """Whether `embed_text` works."""
        return self._model.reads_text

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """One vector a picture: see `Embedder.embed`."""
        network, dtype = self._opened(), torch_dtype(self._precision)
        for image in images:
            checked(image)

        def encode(chunk: Sequence[Picture]) -> torch.Tensor:
            pixels = self._filled([self._transform(self._trimmed(image)) for image in chunk])
            found: torch.Tensor = network.encode_image(pixels.to(device=self._device, dtype=dtype))
            return found

        return self._in_batches(images, encode, "pictures")

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, in the space of the pictures' vectors.

        Args:
            texts: words people search with; what is longer than the network reads is cut.

        Returns:
            `N x dim float32`, every row of length 1. A row does not depend on the other texts.

        Raises:
            Failed: `out_of_memory` or `model_failed`.
            SetupError: `invalid_argument` when this model embeds pictures only.
        """
        network, tokenizer = self._opened(), self._tokenizer
        if tokenizer is None:
            raise SetupError(
                "invalid_argument",
                f"{self.name} embeds pictures only: open_clip has no tokenizer of its own for its words.",
                remedy="Search with a picture, or give the source another embedder.",
            )

        def encode(chunk: Sequence[str]) -> torch.Tensor:
            tokens = self._filled(list(tokenizer(list(chunk))))
            found: torch.Tensor = network.encode_text(tokens.to(self._device))
            return found

        return self._in_batches(texts, encode, "texts")

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._network = None
        release_memory()

    def _opened(self) -> Any:
        if self._network is None:
            raise RuntimeError("this embedder is closed")
        return self._network

    def _in_batches(self, things: Sequence[Any], encode: Callable[[Sequence[Any]], torch.Tensor], what: str) -> Vectors:
        import torch

        vectors = np.empty((len(things), self._dim), np.float32)
        size = BATCH[self._device]
        for start in range(0, len(things), size):
            chunk = things[start : start + size]
            try:
                with torch.inference_mode():
                    features: Vectors = encode(chunk).float().cpu().numpy()
            except Exception as error:  # whatever it is, it is the reason recorded for these pictures
                raise model_failure(error, f"{len(chunk)} {what} for {self.name}") from error
            vectors[start : start + len(chunk)] = normalised(features[: len(chunk)])
        return vectors

    def _filled(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Rows as one batch, with empty ones up to the full size where the device needs it."""
        import torch

        if ALWAYS_FULL[self._device]:
            rows = rows + [torch.zeros_like(rows[0])] * (BATCH[self._device] - len(rows))
        return torch.stack(rows)

    def _trimmed(self, image: Picture) -> Image.Image:
        from PIL import Image

        if self._model.preparation.resize_mode == "squash":
            return Image.fromarray(image)
        height, width = image.shape[:2]
        wide, high = min(width, _LONGEST * height), min(height, _LONGEST * width)
        left, top = (width - wide) // 2, (height - high) // 2
        return Image.fromarray(image[top : top + high, left : left + wide])
