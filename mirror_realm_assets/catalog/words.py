"""Words of a text, cut the same way for what is kept and for what is asked: full-text search without a database's own.

What belongs here: cutting and folding. What does not: storing and searching (`texts`). PostgreSQL and SQLite cut texts
differently, and neither finds Chinese, which has no blanks; so the words are cut here, and both only look them up.

Letters of scripts without blanks are cut into pairs, of which neighbours share a letter: 照片目录 is 照片 片目 目录 录,
the last letter alone, so that each single letter begins a word too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Kana, Han, Hangul, Thai, Lao.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003134f"
_RUNS = re.compile(rf"([{_UNSPACED}]+)|(\d+)|([^\W\d_{_UNSPACED}]+)")
_MARKS = re.compile("[\u0300-\u036f]")  # accents; those of kana make other letters
_MAX_WORD = 40
_MAX_WORDS = 2000


@dataclass(frozen=True)
class Term:
    """One word that is asked for: whole, or as the beginning of one."""

    word: str
    begins: bool


def words_of(text: str) -> list[str]:
    """The words of a text under which it is found, each once."""
    found: dict[str, None] = {}
    for unspaced, number, word in _RUNS.findall(_folded(text)):
        if unspaced:
            found.update(dict.fromkeys([*_pairs(unspaced), unspaced[-1]]))
        elif number:
            found[number[:_MAX_WORD]] = None
            found[(number.lstrip("0") or "0")[:_MAX_WORD]] = None  # DSC00123 is found by 123
        else:
            found[word[:_MAX_WORD]] = None
        if len(found) >= _MAX_WORDS:
            break
    return list(found)


def terms_of(text: str) -> list[Term]:
    """What a text that is asked for asks: all of these; nothing when there is no letter and no digit in it."""
    found: dict[Term, None] = {}
    for unspaced, number, word in _RUNS.findall(_folded(text)):
        if len(unspaced) == 1:
            found[Term(unspaced, begins=True)] = None
        elif unspaced:
            found.update(dict.fromkeys(Term(pair, begins=False) for pair in _pairs(unspaced)))
        else:
            found[Term((number or word)[:_MAX_WORD], begins=True)] = None
    return list(found)


def _pairs(run: str) -> Iterator[str]:
    return (run[at : at + 2] for at in range(len(run) - 1))


def _folded(text: str) -> str:
    """In one case, without accents, wide and narrow forms the same."""
    apart = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKC", _MARKS.sub("", apart))
