"""A page of search results: one HTML file that needs nothing else, from a disk or a mail as well as from a server.

What belongs here: the page. What does not: finding (`finding`), thumbnails (`thumbnails`), writing it (`placing`).

Everything that is not a constant of this module goes through `markup.text`. Should that ever fail, the page's own
Content-Security-Policy lets nothing run and nothing be loaded. Pictures are no links to their originals: a file that is
a picture to us and a page to a browser would run there.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.sources import display_path
from mirror_realm_assets.showing.markup import data_uri, text
from mirror_realm_assets.showing.style import STYLE
from mirror_realm_assets.showing.thumbnails import MIME, Subject, Thumbnail

if TYPE_CHECKING:
    from mirror_realm_assets.search.query import Hit

MARK = b'<meta name="generator" content="Mirror Realm">'
"""What says that a file is a page of ours, within its first 1024 bytes."""

KINDS = {
    "like": ("search by picture", "Ordered by how alike the model finds the pictures."),
    "label": (
        "search by label",
        "The words were compared with the names of what the model can recognise, and the pictures ordered by those.",
    ),
    "text": ("search by words", "Words and pictures were compared by one model that was made for both."),
}
"""What each kind of search is called, and what its order means."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SHOWN_PATHS = 3


@dataclass(frozen=True)
class Question:
    """What was asked: words, or a picture by its path and thumbnail; in one source or in all."""

    words: str | None = None
    picture: bytes | None = None
    thumbnail: Thumbnail | None = None
    source: str | None = None


@dataclass(frozen=True)
class ResultPage:
    """What a page shows.

    Attributes:
        question: what was asked.
        kind: which kind of search answered; a key of `KINDS`.
        hits: best first, with absolute paths.
        notes: for people.
        thumbnails: of the hits, by content digest and part.
        made_at: aware.
    """

    question: Question
    kind: str
    hits: list[Hit]
    notes: tuple[str, ...]
    made_at: datetime
    thumbnails: Mapping[Subject, Thumbnail] = field(default_factory=dict)

    def render(self) -> bytes:
        """The page as UTF-8."""
        title = _title(self.question)
        parts = [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            MARK.decode(),
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{text(title)} - Mirror Realm</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>",
            _header(self),
            _results(self),
            _footer(self),
            "</body>\n</html>\n",
        ]
        return "\n".join(parts).encode("utf-8")


def _title(question: Question) -> str:
    if question.picture is not None:
        return f"Pictures like {_name(question.picture)}"
    return f"“{question.words or ''}”"


def _header(page: ResultPage) -> str:
    name, meaning = KINDS.get(page.kind, (page.kind, ""))
    asked = page.question
    shown = ""
    if asked.picture is not None:
        shown = _picture(asked.thumbnail, "The picture that was searched for", "asked")
    where = "" if asked.picture is None else f'<p class="path"><bdi>{_path(asked.picture)}</bdi></p>'
    notes = "".join(f"<li>{text(note)}</li>" for note in page.notes)
    return (
        '<header>\n<p class="brand">Mirror Realm <span lang="zh">镜界</span></p>\n'
        f'<div class="question">{shown}<div>\n<h1><bdi>{text(_title(asked))}</bdi></h1>\n{where}'
        f'<p class="kind"><span class="chip">{text(name)}</span> {text(meaning)}</p>\n'
        f"</div></div>\n{_facts(page)}\n" + (f'<ul class="notes">{notes}</ul>\n' if notes else "") + "</header>"
    )


def _facts(page: ResultPage) -> str:
    count = len(page.hits)
    models = sorted({hit.model for hit in page.hits})
    facts = [
        ("found", f"{count} picture" if count == 1 else f"{count} pictures"),
        ("model", ", ".join(models) or "-"),
        ("in", f"the source {page.question.source}" if page.question.source else "all sources"),
        ("asked", f"{page.made_at:%Y-%m-%d %H:%M:%S %Z}"),
    ]
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{rows}</dl>'


def _results(page: ResultPage) -> str:
    if not page.hits:
        return (
            '<main><p class="nothing">Nothing was found. <code>mirror-realm status</code> '
            "shows what is searchable.</p></main>"
        )
    several = len({hit.model for hit in page.hits}) > 1
    cards = "\n".join(
        _card(hit, page.thumbnails.get((hit.digest, hit.part)), model=several, bar=page.kind == "like")
        for hit in page.hits
    )
    return f'<main>\n<ol class="hits">\n{cards}\n</ol>\n</main>'


def _card(hit: Hit, thumbnail: Thumbnail | None, *, model: bool, bar: bool) -> str:
    """One hit; `bar` where scores are cosines of pictures, which fill the scale: those of words hardly leave zero."""
    name = _name(hit.paths[0]) if hit.paths else hit.digest[:12]
    where = "".join(f'<span class="tag">{text(words)}</span>' for words in _position(hit, model))
    length = f'<span class="bar" aria-hidden="true"><i style="width:{_percent(hit.score)}%"></i></span>' if bar else ""
    return (
        f'<li class="hit">\n{_picture(thumbnail, name, "thumb")}\n'
        f'<p class="line"><span class="rank">{hit.rank:d}</span>{length}'
        f'<span class="score">{hit.score:.3f}</span></p>\n'
        f'<p class="name"><bdi>{text(name)}</bdi></p>\n{_places(hit)}\n'
        f'<p class="tags"><span class="tag">{text(hit.source)}</span>{where}</p>\n'
        f'<p class="digest"><span class="label">sha256</span> {text(hit.digest)}</p>\n</li>'
    )


def _position(hit: Hit, model: bool) -> list[str]:
    found = [hit.model] if model else []
    return [*found, hit.within] if hit.within else found


def _places(hit: Hit) -> str:
    lines = [f'<li class="path"><bdi>{_path(path)}</bdi></li>' for path in hit.paths]
    first, more = "".join(lines[:_SHOWN_PATHS]), lines[_SHOWN_PATHS:]
    rest = f"<details><summary>{len(more)} more places</summary><ul>{''.join(more)}</ul></details>" if more else ""
    return f'<ul class="places">{first}</ul>{rest}'


def _name(path: bytes) -> str:
    return display_path(path).rpartition("/")[2]


def _path(path: bytes) -> str:
    """The whole path; where lines may break is marked, and nothing is added that would be copied along."""
    shown = text(display_path(path)).replace("/", "/<wbr>")
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:  # what is shown has escapes in it; these are the bytes that the disk has
        return f'{shown} <span class="bytes">(base64 {text(base64.b64encode(path).decode("ascii"))})</span>'
    return shown


def _picture(thumbnail: Thumbnail | None, words: str, style: str) -> str:
    if thumbnail is None or not thumbnail.data:
        why = thumbnail.missing if thumbnail else "There is no preview."
        return f'<div class="{style} none" role="img" aria-label="{text(words)}"><span>{text(why)}</span></div>'
    return (
        f'<div class="{style}"><img src="{data_uri(thumbnail.data, MIME)}" alt="{text(words)}" '
        f'width="{thumbnail.width:d}" height="{thumbnail.height:d}" decoding="async"></div>'
    )


def _percent(score: float) -> int:
    """A score as the length of a bar: cosines below 0 and rounding above 1 stay within it."""
    return round(100 * min(max(score, 0.0), 1.0)) if math.isfinite(score) else 0


def _footer(page: ResultPage) -> str:
    return (
        "<footer><p>Made by <code>mirror-realm search</code>"
        f' on <time datetime="{text(page.made_at.isoformat(timespec="seconds"))}">{page.made_at:%d %B %Y}</time>. '
        "This file holds everything it shows and loads nothing.</p></footer>"
    )
