"""The command `search`: asking, and showing what was found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, json_option, paths_json, safe, say, show
from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    from mirror_realm_assets.finding import Answer
    from mirror_realm_assets.search.query import Hit
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

# A page of a thousand pictures has to stay one that a browser opens.
_SIDE, _SMALL_SIDE, _MANY = 360, 200, 100


@click.command()
@click.argument("text", required=False)
@click.option("--like", type=click.Path(path_type=Path), metavar="FILE", help="A picture to find similar ones of.")
@click.option("-k", "count", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option("--source", help="In one source.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with the pictures as well."
)
@json_option
def search(
    text: str | None, like: Path | None, count: int, source: str | None, page: Path | None, as_json: bool
) -> None:
    """Find pictures by words (TEXT) or by a picture (--like)."""
    words = text.strip() if text is not None else None
    question = _Question(_one_of(words, like), like, source, count)
    if like is not None:
        _require_file(like)
    with opened() as (settings, services):
        place = _require_place(settings, services, page) if page is not None else None
        answer = question.ask(settings, services)
        if place is not None:
            _write_page(services, place, question, answer)
    for note in answer.notes:
        say(safe(note))
    if as_json:
        emit([_hit_json(hit, answer.kind) for hit in answer.hits])
    else:
        _show(answer)
    if place is not None:
        say(f"The page is {safe(str(place))}")


def _one_of(words: str | None, like: Path | None) -> str | None:
    """The words, or None when a picture is searched with; a usage error for both and for neither."""
    if words is not None and like is not None:
        raise click.UsageError("Give TEXT or --like FILE, not both. Each of them is a search of its own.")
    if not words and like is None:
        raise click.UsageError(
            'Nothing to search for. Give words: mirror-realm search "a cup of coffee", '
            "or a picture: mirror-realm search --like FILE."
        )
    return words


def _require_file(path: Path) -> None:
    """Said of a path that somebody typed; what may happen to a file later is said by whoever reads it."""
    if not path.expanduser().exists():
        raise SetupError("not_found", f"There is no file {path}.", remedy="Check its path.")
    if path.expanduser().is_dir():
        raise SetupError("invalid_argument", f"{path} is a folder.", remedy="Give one picture.")


@dataclass(frozen=True)
class _Question:
    """What is asked: `words`, or a picture that what is found should be `like`."""

    words: str | None
    like: Path | None
    source: str | None
    count: int

    def ask(self, settings: Settings, services: Services) -> Answer:
        from mirror_realm_assets.finding import find_like, find_text

        if self.like is not None:
            return find_like(settings, services, self.like, count=self.count, source_name=self.source)
        return find_text(settings, services, self.words or "", count=self.count, source_name=self.source)


def _require_place(settings: Settings, services: Services, page: Path) -> Path:
    """Asked before anything is searched: a page that cannot be written costs no time."""
    from mirror_realm_assets.showing import placing
    from mirror_realm_assets.showing.page import MARK

    return placing.require_place(settings, services.catalog, page, mark=MARK)


def _write_page(services: Services, place: Path, question: _Question, answer: Answer) -> None:
    from mirror_realm_assets.showing import placing, thumbnails
    from mirror_realm_assets.showing.page import Question, ResultPage

    side = _SIDE if len(answer.hits) <= _MANY else _SMALL_SIDE
    asked = Question(question.words, source=question.source)
    if question.like is not None:
        path = os.fsencode(question.like.expanduser().absolute())
        picture = thumbnails.of_file(services, question.like, side=_SIDE)
        asked = Question(picture=path, thumbnail=picture, source=question.source)
    page = ResultPage(
        asked,
        answer.kind,
        answer.hits,
        answer.notes,
        datetime.now().astimezone(),
        thumbnails.of_subjects(services, [(hit.digest, hit.part) for hit in answer.hits], side=side),
    )
    placing.put(place, page.render())


def _show(answer: Answer) -> None:
    from rich.table import Column, Table

    from mirror_realm_assets.showing.page import KINDS

    name = KINDS.get(answer.kind, (answer.kind, ""))[0]
    if not answer.hits:
        say(f"{safe(name.capitalize())}: nothing was found; see mirror-realm status.")
        return
    models = ", ".join(sorted({hit.model for hit in answer.hits}))
    title = safe(f"{name.capitalize()}, model {models}")
    # A path that is cut off cannot be copied.
    table = Table("rank", "score", "source", Column("picture", overflow="fold"), title=title, title_justify="left")
    for hit in answer.hits:
        path = paths_json(hit.paths[:1])["paths"][0] if hit.paths else "-"
        table.add_row(
            str(hit.rank), f"{hit.score:.3f}", safe(hit.source), safe(path + (f" ({hit.within})" if hit.within else ""))
        )
    show(table)


def _hit_json(hit: Hit, kind: str) -> dict[str, Any]:
    found = {
        "rank": hit.rank,
        "score": round(hit.score, 6),
        "search": kind,
        "model": hit.model,
        "digest": hit.digest,
        "part": hit.part,
        "media": hit.media,
        "source": hit.source,
        **paths_json(hit.paths),
    }
    if hit.time_s is not None:
        found["time_s"] = hit.time_s
    if hit.page is not None:
        found["page"] = hit.page
    return found


COMMANDS = [search]
