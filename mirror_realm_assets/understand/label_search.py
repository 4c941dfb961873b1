"""Label search: words to a vector in the space of the default embedder, which never saw a word.

What belongs here: how near words are to the classifier's labels, and the direction in which pictures of those labels
lie. What does not: the labels (`labels`), the text encoder (`minilm`), cleaning and translating words (`words`).

The default embedder is the body of a classifier: the inner product of a picture's features with row *i* of its last
layer says how much the picture looks like label *i*. So words become weights over labels (by the text encoder), weights
become a sum of rows, and that sum is a query like any picture's vector. Nothing is stored for a picture, and exact
scores, deletions and filters hold as they do for every search. It knows a thousand things and nothing else.

Figures and what was tried besides: docs/explanation/search-by-words.md.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.understand.labels import labels
from mirror_realm_assets.understand.minilm import SentenceEncoder
from mirror_realm_assets.weights.fetch import require, write_atomically
from mirror_realm_assets.weights.registry import spec

Vectors = npt.NDArray[np.float32]

CLASSIFIER = "efficientnet-lite0"
ENCODER = "all-minilm-l6-v2"

# Of the softmax over labels. From 0.02 to 0.05 first hits are equal within two of 73 queries; at 0.005, where only the
# nearest label counts, four are lost, and at 0.1, where everything blurs, three.
_TEMPERATURE = 0.03
# Likeness to the nearest label: of 20 words that no label stands for (love, tax return) 18 are below, of 31 everyday
# things 25 are above; the other six have no label either (giraffe, sunset, grandmother).
_FAR = 0.5
# A label counts as used from this share on; not more than so many are named.
_SHARE, _NAMED = 0.05, 5


@dataclass(frozen=True)
class LabelQuery:
    """What words came to.

    Attributes:
        vector: `1280 float32`, of length 1.
        labels: names of the labels that make it, the weightiest first.
        far: whether the words are far from everything the model knows.
    """

    vector: Vectors
    labels: tuple[str, ...]
    far: bool


class Encoder(Protocol):
    """What puts short English texts of one meaning close together."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, in order: `N x dim float32`, every row of length 1."""

    def close(self) -> None:
        """Give its memory back."""


class LabelSearch:
    """Makes queries; used by one thread at a time.

    Args:
        encoder: of words.
        names: `1000x384`, the labels' phrases by that encoder.
        rows: `1000x1280`, the classifier's last layer.
    """

    def __init__(self, encoder: Encoder, names: Vectors, rows: Vectors) -> None:
        self._encoder = encoder
        self._names = names
        # What all rows share says nothing about a label: the softmax they were trained under does not see it.
        self._rows = rows - rows.mean(axis=0)

    def query(self, words: str) -> LabelQuery:
        """The query for some English words.

        Raises:
            Failed: `out_of_memory` or `model_failed`.
        """
        likeness = self._names @ self._encoder.encode([words])[0]
        weights = np.exp((likeness - likeness.max()) / _TEMPERATURE)
        weights /= weights.sum()
        vector = weights @ self._rows
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise Failed("model_failed", "The words gave a query without direction.")
        order = np.argsort(-weights, kind="stable")[:_NAMED]
        used = tuple(labels()[n].name for n in order if n == order[0] or weights[n] >= _SHARE)
        return LabelQuery((vector / length).astype(np.float32), used, bool(likeness.max() < _FAR))

    def close(self) -> None:
        """Drop the encoder and give its memory back."""
        self._encoder.close()


def label_search(services: Services) -> LabelSearch:
    """The label search of this home, loaded once a process.

    Raises:
        SetupError: `weights_missing` or `weights_altered`.
    """
    return services.held("label_search", lambda: _load(services))


def _load(services: Services) -> LabelSearch:
    from safetensors import safe_open

    s = services.settings
    with safe_open(require(spec(CLASSIFIER), s.models_dir), framework="numpy") as weights:
        rows = weights.get_tensor("classifier.weight").astype(np.float32)
    encoder = SentenceEncoder(spec(ENCODER, "text"), s.models_dir, s.threads)
    return LabelSearch(encoder, label_vectors(encoder, s.home / "cache"), rows)


def label_vectors(encoder: Encoder, folder: Path) -> Vectors:
    """The vectors of the labels' phrases, `1000 x dim`, from a folder or made now (5 s of one core) and kept there.

    They are named after all that they depend on, so there is nothing to expire; what cannot be read is made again, and
    a home that cannot be written to costs only time.
    """
    phrases = [label.phrase for label in labels()]
    inputs = "\n".join([spec(ENCODER).weights_sha256, *phrases])
    path = folder / f"label-vectors-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.shape == (len(phrases), encoder.dim) and np.allclose(np.linalg.norm(kept, axis=1), 1.0, atol=1e-4):
            return np.ascontiguousarray(kept, np.float32)
    except (OSError, ValueError, EOFError):
        pass
    made = encoder.encode(phrases)
    content = io.BytesIO()
    np.save(content, made, allow_pickle=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError:
        pass
    return made
