"""Embeddings by an open_clip model with weights of a person's own: of pictures, and of words in the same space.

What belongs here: running such a network. What does not: which there are (`weights.added`), building one
(`weights.open_clip_networks`), batches and settings (`network_embedder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.understand.embedder import Picture, Vectors
from mirror_realm_assets.understand.network_embedder import NetworkEmbedder
from mirror_realm_assets.weights import open_clip_networks as networks
from mirror_realm_assets.weights.added import AddedModel

if TYPE_CHECKING:
    import torch
    from PIL import Image

# A strip is cut to its central 8:1. Scaling its shorter side to 224 pixels would blow 1440x1 up to 300,000 pixels in
# width, of which the network sees the central square; scaling its longer side would leave nothing of the other.
_LONGEST = 8


class OpenClipEmbedder(NetworkEmbedder[AddedModel]):
    """An added open_clip model, which may also read words. Arguments and errors: `NetworkEmbedder`."""

    @property
    def reads_text(self) -> bool:
        """Whether `embed_text` works."""
        return self.model.reads_text

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
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise SetupError(
                "invalid_argument",
                f"{self.name} embeds pictures only: open_clip has no tokenizer of its own for its words.",
                remedy="Search with a picture, or give the source another embedder.",
            )

        def encode(network: Any, chunk: Sequence[str]) -> torch.Tensor:
            tokens = self._filled(list(tokenizer(list(chunk))))
            found: torch.Tensor = network.encode_text(tokens.to(self._device))
            return found

        return self._in_batches(texts, encode, "texts")

    def _loaded(self, weights: Path) -> Any:
        model = self.model
        network, self._transform = networks.build(
            model.architecture, weights, model.preparation, device=self._device, precision=self._precision
        )
        self._tokenizer = networks.tokenizer(model.architecture) if model.reads_text else None
        return network

    def _prepared(self, image: Picture) -> torch.Tensor:
        prepared: torch.Tensor = self._transform(self._trimmed(image))
        return prepared

    def _encoded(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network.encode_image(pixels)
        return found

    def _trimmed(self, image: Picture) -> Image.Image:
        from PIL import Image

        if self.model.preparation.resize_mode == "squash":
            return Image.fromarray(image)
        height, width = image.shape[:2]
        wide, high = min(width, _LONGEST * height), min(height, _LONGEST * width)
        left, top = (width - wide) // 2, (height - high) // 2
        return Image.fromarray(image[top : top + high, left : left + wide])
