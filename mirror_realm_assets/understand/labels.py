"""The thousand labels of ImageNet-1k: what the default embedder's classifier was taught to tell apart.

What belongs here: the reviewed table `labels.tsv` and reading it. What does not: comparing words with labels
(`label_search`), cutting Chinese (`chinese`).

A row is: the classifier's row, the name that the weights' publishers use, what the thing is where that name alone
misleads (a "crane" is a bird and a machine, a "kuvasz" is a dog), and its Chinese names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_PACKAGE = "mirror_realm_assets.understand"


@dataclass(frozen=True)
class Label:
    """One thing that the classifier knows.

    Attributes:
        index: row of the classifier.
        name: in English, as published.
        kind: what it is, in English; empty where the name says it.
        chinese: its names in simplified Chinese, the usual one first.
    """

    index: int
    name: str
    kind: str
    chinese: tuple[str, ...]

    @property
    def phrase(self) -> str:
        """The words that stand for it before the text encoder."""
        return f"{self.name}, {self.kind}" if self.kind else self.name


def table(name: str) -> list[list[str]]:
    """The rows of one of this package's tables, tab-separated and without a heading."""
    text = files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


@cache
def labels() -> tuple[Label, ...]:
    """All labels, in the order of the classifier's rows."""
    rows = table("labels.tsv")
    return tuple(Label(int(index), name, kind, tuple(chinese.split(","))) for index, name, kind, chinese in rows)
