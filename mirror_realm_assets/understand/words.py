"""From words that a person types to a query vector, in the way that the searched model allows.

What belongs here: refusing what are no words, translating Chinese, choosing between a model's own text tower and label
search, and saying what was understood. What does not: either of those (`open_clip_embedder`, `label_search`), and
searching (`search`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.understand.chinese import has_chinese, translate
from mirror_realm_assets.understand.label_search import CLASSIFIER, label_search
from mirror_realm_assets.understand.labels import labels
from mirror_realm_assets.understand.stage import embedder

Vectors = npt.NDArray[np.float32]

MAX_CHARACTERS = 500
# Text towers were trained on captions, so words are given to them as one too; the mean of both forms is searched with.
_CAPTION = "a photo of {}"
_READABLE = re.compile("[A-Za-z0-9]")


@runtime_checkable
class TextEmbedder(Protocol):
    """An embedder that may have a text tower: words get vectors in the space of its pictures."""

    @property
    def reads_text(self) -> bool:
        """Whether this model has one."""

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, in order: `N x dim float32`, every row of length 1."""


@dataclass(frozen=True)
class WordQuery:
    """A query made of words.

    Attributes:
        vector: `dim float32`, of length 1.
        kind: `text` when the model reads words itself, `label` when its labels stand between.
        notes: what a person should know about how the words were taken.
        labels: the labels used, the weightiest first; empty for `text`.
    """

    vector: Vectors
    kind: Literal["label", "text"]
    notes: tuple[str, ...]
    labels: tuple[str, ...]


class NoWordsError(SetupError):
    """The model of a source can be searched with pictures only."""


def query_of(text: str, *, services: Services, embedder_name: str) -> WordQuery:
    """The query that finds pictures of what a text says, among vectors of one embedder.

    Args:
        text: as a person typed it, in English or Chinese, at most 500 characters.
        services: models and settings.
        embedder_name: the model whose vectors are searched.

    Raises:
        SetupError: `invalid_argument` for a text that holds no words we know; missing weights.
        NoWordsError: the embedder does not go together with words.
        Failed: `out_of_memory` or `model_failed`.
    """
    english, notes = understood(text)
    if embedder_name == CLASSIFIER:
        found = label_search(services).query(english)
        notes = (*notes, _of_labels(found.labels, far=found.far))
        return WordQuery(found.vector, "label", notes, found.labels)
    model = embedder(services, embedder_name)
    if not isinstance(model, TextEmbedder) or not model.reads_text:
        raise NoWordsError(
            "invalid_argument",
            f"The model {embedder_name} knows pictures only, no words.",
            remedy=f"Search with a picture (--like FILE), or give the source the embedder {CLASSIFIER} or a model with "
            "a text tower.",
        )
    both = model.embed_text([english, _CAPTION.format(english)]).mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(both))
    if not np.isfinite(length) or length == 0:
        raise Failed("model_failed", f"The words gave {embedder_name} a query without direction.")
    return WordQuery((both / length).astype(np.float32), "text", notes, ())


def understood(text: str) -> tuple[str, tuple[str, ...]]:
    """The English words of a text, and notes on what became of it.

    Raises:
        SetupError: `invalid_argument`: it is empty, too long, holds control characters, or no word we know.
    """
    words = _cleaned(text)
    notes: tuple[str, ...] = ()
    if has_chinese(words):
        translated = translate(words)
        words = translated.english
        left_out = ", ".join(translated.unknown)
        if not words:
            what = f": {left_out}" if left_out else "; it has none that says what a picture shows"
            raise _refused(f"None of these Chinese words is in our table{what}.", "Use simpler words, or English.")
        notes = (f"Read as: {words}.", *([f"Not understood and left out: {left_out}."] if left_out else []))
    if not _READABLE.search(unicodedata.normalize("NFKD", words)):
        raise _refused("There are no words in it that we can read.", "Describe the picture in English or Chinese.")
    return words, notes


def _cleaned(text: str) -> str:
    """The text in one line, with letters in their plain forms and without invisible signs."""
    if len(text) > MAX_CHARACTERS:
        raise _refused(f"The text has {len(text)} characters.", f"Use at most {MAX_CHARACTERS}.")
    line = " ".join(unicodedata.normalize("NFKC", text).split())
    kinds = {character: unicodedata.category(character) for character in line}
    if any(kind in ("Cc", "Cs") for kind in kinds.values()):
        raise _refused("The text holds control characters or bytes that are no text.", "Type the words anew.")
    line = "".join(character for character in line if kinds[character] != "Cf").strip()
    if not line:
        raise _refused("There is nothing to search for.", "Say what the pictures show, in English or Chinese.")
    return line


def _of_labels(names: tuple[str, ...], *, far: bool) -> str:
    count = len(labels())
    if far:
        return (
            f"These words are far from all of the {count} things that label search knows, so expect little; "
            f"nearest: {', '.join(names)}."
        )
    return f"Nearest of the {count} things that label search knows: {', '.join(names)}."


def _refused(what: str, remedy: str) -> SetupError:
    return SetupError("invalid_argument", what, remedy=remedy)
