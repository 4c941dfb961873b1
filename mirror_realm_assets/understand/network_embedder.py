"""What embedders that run a network of ours have in common: settings, batches, unit vectors.

What belongs here: everything about embedding that no single network decides. What does not: the networks
(`efficientnet_embedder`, `open_clip_embedder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.understand.embedder import Picture, Vectors
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    KeptMemory,
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

M = TypeVar("M", bound=Model)

# Pictures in one pass. On two cores 4, 8 and 16 at a time are equally fast (99, 99 and 96 a second), and few take least
# memory; a picture's vector differs by 1e-7 between them.
_BATCH: dict[Device, int] = {"cpu": 4, "cuda": 32}
# A GPU chooses other kernels for other batch sizes, and its vectors would change with them: there every batch is full.
_ALWAYS_FULL: dict[Device, bool] = {"cpu": False, "cuda": True}


class NetworkEmbedder(ABC, Generic[M]):
    """An `Embedder` that runs a torch network, which its subclass loads.

    Args:
        model: an `embed` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; `auto` is fp32 everywhere, because vectors are kept and compared for years and embedding
            is never what one waits for.
        threads: of a CPU. One batch uses all of them; of several batches each has a thread of its own, which is a
            tenth faster alone, and half as fast again beside another busy process: threads of one batch wait for the
            slowest of them again and again (measured: 58 against 39 pictures a second).

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for settings that this machine or this
            model does not allow.
    """

    def __init__(
        self,
        model: M,
        models_dir: Path,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
    ) -> None:
        if model.purpose != "embed" or model.dim is None:
            raise SetupError("invalid_argument", f"{model.name} makes no embeddings.")
        weights = require(model, models_dir)
        import torch

        self.model = model
        self._dim = model.dim
        self._device = choose_device(device)
        wanted: PrecisionSetting = "fp32" if precision == "auto" else precision
        self._precision = choose_precision(wanted, self._device, frozenset())
        torch.set_num_threads(threads)
        self._streams = threads if self._device == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._network: Any = self._loaded(weights)
        self._kept = KeptMemory() if self._device == "cpu" else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model digest of a recipe."""
        return self.model.weights_sha256

    @property
    def precision(self) -> Precision:
        """The number format in use; part of a recipe."""
        return self._precision

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """One vector a picture: see `Embedder.embed`."""
        for image in images:
            _require_picture(image)

        def encode(network: Any, chunk: Sequence[Picture]) -> torch.Tensor:
            pixels = self._filled([self._prepared(image) for image in chunk])
            return self._encoded(network, pixels.to(device=self._device, dtype=torch_dtype(self._precision)))

        return self._in_batches(images, encode, "pictures")

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._network = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._kept is not None:
            self._kept.give_back()
        release_memory()

    @abstractmethod
    def _loaded(self, weights: Path) -> Any:
        """The network with its weights, on the device and in the precision."""

    @abstractmethod
    def _prepared(self, image: Picture) -> torch.Tensor:
        """A picture as the network wants it: `3xHxW float32`, of one size for all."""

    @abstractmethod
    def _encoded(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Features of a batch of prepared pictures, `N x dim`, of any length."""

    def _in_batches(
        self, things: Sequence[Any], encode: Callable[[Any, Sequence[Any]], torch.Tensor], what: str
    ) -> Vectors:
        """Vectors of length 1 of whatever `encode` makes features of.

        Raises:
            Failed: `out_of_memory` or `model_failed`.
            RuntimeError: this embedder is closed.
        """
        import torch

        network = self._network
        if network is None:
            raise RuntimeError("this embedder is closed")

        def vectors_of(chunk: Sequence[Any]) -> Vectors:
            try:
                with torch.inference_mode():
                    features: Vectors = encode(network, chunk).float().cpu().numpy()
            except Exception as error:  # whatever it is, it is the reason recorded for these pictures
                raise model_failure(error, f"{len(chunk)} {what} for {self.name}") from error
            return _normalised(features[: len(chunk)])

        size = _BATCH[self._device]
        chunks = [things[start : start + size] for start in range(0, len(things), size)]
        several = self._streams > 1 and len(chunks) > 1
        made = self._side_by_side(vectors_of, chunks) if several else map(vectors_of, chunks)
        return np.concatenate([np.empty((0, self._dim), np.float32), *made])

    def _side_by_side(
        self, work: Callable[[Sequence[Any]], Vectors], chunks: Sequence[Sequence[Any]]
    ) -> Iterator[Vectors]:
        import torch

        if self._pool is None:
            # How many threads a pass has is a setting of the thread that calls it.
            self._pool = ThreadPoolExecutor(self._streams, "embed", lambda: torch.set_num_threads(1))
        return self._pool.map(work, chunks)

    def _filled(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Rows as one batch, with empty ones up to the full size where the device needs it."""
        import torch

        if _ALWAYS_FULL[self._device]:
            rows = rows + [torch.zeros_like(rows[0])] * (_BATCH[self._device] - len(rows))
        return torch.stack(rows)


def _require_picture(image: Picture) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected HxWx3 uint8, got {image.shape} {image.dtype}")


def _normalised(features: Vectors) -> Vectors:
    """Rows at length 1.

    Raises:
        Failed: `model_failed` for a row that has no direction.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise Failed("model_failed", "The network gave an embedding without direction.")
    return features / lengths
