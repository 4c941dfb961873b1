"""Short texts as vectors: all-MiniLM-L6-v2, a small BERT that was trained to put sentences of one meaning together.

What belongs here: its network and its tokenizer. What does not: what the vectors are compared with (`label_search`).

It is written out because the libraries that hold it (transformers, sentence-transformers) are far larger than it, and
fetch models from a hub by themselves. It reads English; of other languages it has seen little.

Source: Devlin et al., "BERT" (2018); Wang et al., "MiniLM" (2020); mean pooling as in Reimers and Gurevych,
"Sentence-BERT" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import model_failure, release_memory
from mirror_realm_assets.weights.registry import ModelSpec

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

Vectors = npt.NDArray[np.float32]

_LAYERS, _HEADS, _WIDTH = 6, 12, 384
_EPSILON = 1e-12  # BERT's layer normalisation
_MAX_TOKENS = 128  # what it was trained on; the rest of a longer text is not read
_BATCH = 64
_TOKENIZER = "tokenizer"  # of the weights' file: the tokenizer's JSON as bytes


class SentenceEncoder:
    """The encoder, used by one thread at a time. It runs on the CPU: a query takes 10 ms there.

    Args:
        spec: a `text` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        threads: CPU threads of torch, for the whole process.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, or `invalid_argument` for a model of another kind.
    """

    def __init__(self, spec: ModelSpec, models_dir: Path, threads: int = 2) -> None:
        if spec.purpose != "text":
            raise SetupError("invalid_argument", f"{spec.name} reads no text.")
        weights = require(spec, models_dir)
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(threads)
        tensors = load_file(weights)
        self._tokenizer = Tokenizer.from_str(tensors.pop(_TOKENIZER).numpy().tobytes().decode("utf-8"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tensors: Tensors = tensors

    @property
    def dim(self) -> int:
        """Length of a vector: 384."""
        return _WIDTH

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, in order: `N x 384 float32`, every row of length 1.

        Raises:
            Failed: `out_of_memory` or `model_failed`.
        """
        if not self._tensors:
            raise RuntimeError("this encoder is closed")
        vectors = np.empty((len(texts), _WIDTH), np.float32)
        # Texts of one length together: padding is computed like words.
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            tokens = self._tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([one.ids for one in tokens], np.int64)
            mask = np.array([one.attention_mask for one in tokens], np.bool_)
            try:
                vectors[rows] = _forward(self._tensors, ids, mask)
            except Exception as error:  # whatever it is, it is the reason that words cannot be searched
                raise model_failure(error, "the words") from error
        return vectors

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._tensors = {}
        release_memory()


def _forward(tensors: Tensors, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Vectors:
    """`NxT` token ids, and which of them are no padding, to `Nx384` vectors of length 1."""
    import torch
    from torch.nn import functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (_WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], _EPSILON)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], _HEADS, _WIDTH // _HEADS).transpose(1, 2)

    with torch.inference_mode():
        real = torch.from_numpy(mask)
        x = functional.embedding(torch.from_numpy(ids), tensors["embeddings.word_embeddings.weight"])
        x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = normalised(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for n in range(_LAYERS):
            layer = f"encoder.layer.{n}"
            query, key, value = (heads(linear(x, f"{layer}.attention.self.{of}")) for of in ("query", "key", "value"))
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
            seen = linear(seen.transpose(1, 2).reshape(x.shape), f"{layer}.attention.output.dense")
            x = normalised(x + seen, f"{layer}.attention.output.LayerNorm")
            inner = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
            x = normalised(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        weight = real[..., None].float()
        pooled = (x * weight).sum(1) / weight.sum(1)
        vectors: Vectors = functional.normalize(pooled, dim=-1).numpy()
    return vectors
