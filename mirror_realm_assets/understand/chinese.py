"""Chinese words into English ones, by tables: enough for a search, and no translation of sentences.

What belongs here: cutting a text into words that the tables hold. What does not: the tables (`labels.tsv`,
`chinese_words.tsv`, `chinese_traditional.tsv`), and what the English words are used for (`words`).

Chinese is written without spaces, so a text is cut: of all ways to cut it, into the one with the fewest characters that
no table knows, of those into the one with the fewest words, and of those into the one whose last words are longest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from mirror_realm_assets.understand.labels import labels, table

# CJK ideographs, their extensions and compatibility forms.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(f"[{_HAN}]")
_OTHER_WORD = re.compile(rf"[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*")


@dataclass(frozen=True)
class Translation:
    """What became of a text.

    Attributes:
        english: the words that are known, in English and in their order; words of other scripts stand as they were.
        unknown: the Chinese pieces that no table holds.
    """

    english: str
    unknown: tuple[str, ...]


def has_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return _CHINESE.search(text) is not None


def translate(text: str) -> Translation:
    """The words of a text that the tables know, in English. Traditional characters are read as simplified ones."""
    english: list[str] = []
    unknown: list[str] = []
    end = -1
    for piece in _cut(text.translate(_simplified())):
        if piece.english is not None:
            english.append(piece.english)
            continue
        strange = text[piece.start : piece.end]  # as it was written
        if piece.start == end:
            unknown[-1] += strange
        else:
            unknown.append(strange)
        end = piece.end
    said = [words for words in english if words]
    chosen = [_among(words, alone=len(said) == 1) for words in said]
    return Translation(" ".join(chosen), tuple(dict.fromkeys(unknown)))


def _among(words: str, *, alone: bool) -> str:
    """English of a table's row: what stands before a semicolon is for a word among others, what follows for one alone.

    "Woman" has no label, so alone it has to be led to what women wear; in "a woman with a hat" that would hide the hat.
    """
    among, semicolon, by_itself = words.partition(";")
    return by_itself if semicolon and alone else among


@dataclass(frozen=True)
class _Piece:
    """A piece of a text; its `english` is None when nobody knows it, and empty when it means nothing by itself."""

    start: int
    end: int
    english: str | None


def _cut(text: str) -> list[_Piece]:
    """The text in pieces; what stands between words is left out."""
    others = {found.end(): found.start() for found in _OTHER_WORD.finditer(text)}
    ways: list[tuple[int, int]] = [(0, 0)]  # unknown characters and words of the best way to each place
    last: list[_Piece | None] = [None]
    for end in range(1, len(text) + 1):
        found = []
        for piece in _pieces_to(text, end, others.get(end)):
            unknown, words = ways[piece.start]
            found.append(((unknown + (piece.english is None), words + 1), piece))
        way, best = min(found, key=lambda pair: (pair[0], pair[1].start))
        ways.append(way)
        last.append(best)
    pieces: list[_Piece] = []
    while ending := last[pieces[-1].start if pieces else len(text)]:
        pieces.append(ending)
    return pieces[::-1]


def _pieces_to(text: str, end: int, other: int | None) -> list[_Piece]:
    """Every piece that ends at a place: table words, one character, or the word of another script from `other`."""
    words = _words()
    starts = range(max(0, end - _longest()), end)
    pieces = [_Piece(at, end, words[text[at:end]]) for at in starts if text[at:end] in words]
    character = text[end - 1]
    pieces.append(_Piece(end - 1, end, None if character.isalnum() else ""))
    if other is not None:
        pieces.append(_Piece(other, end, text[other:end]))
    return pieces


@cache
def _words() -> dict[str, str]:
    """Every Chinese word with its English; an empty one for those that say nothing about a picture ("in", "a")."""
    named = {name: label.phrase for label in labels() for name in label.chinese}
    return {**named, **dict(table("chinese_words.tsv"))}


@cache
def _longest() -> int:
    return max(map(len, _words()))


@cache
def _simplified() -> dict[int, str]:
    return {ord(traditional): simplified for traditional, simplified in table("chinese_traditional.tsv")}
