"""The command `search`: asking, and showing what was found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, json_option, paths_json, safe, say, show
from mirror_realm_assets.errors import SetupError


@click.command()
@click.argument("text", required=False)
@click.option("--like", type=click.Path(path_type=Path), help="A picture to find similar ones of.")
@click.option("-k", "count", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option("--source", help="In one source.")
@json_option
def search(text: str | None, like: Path | None, count: int, source: str | None, as_json: bool) -> None:
    """Find pictures that look like one."""
    if like is None:
        raise SetupError(
            "invalid_argument",
            "Search by words is not there yet." if text else "Nothing to search for.",
            remedy="Give a picture: mirror-realm search --like FILE.",
        )
    from mirror_realm_assets.finding import find_like

    with opened() as (settings, services):
        hits = find_like(settings, services, like, count=count, source_name=source)
    if as_json:
        emit([_hit_json(hit) for hit in hits])
        return
    from rich.table import Table

    table = Table("rank", "score", "source", "picture")
    for hit in hits:
        path = os.fsdecode(hit.paths[0]).encode("utf-8", "backslashreplace").decode() if hit.paths else "-"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.source, safe(path))
    show(table)
    if not hits:
        say("Nothing was found: see mirror-realm status.")


def _hit_json(hit: Any) -> dict[str, Any]:
    found = {
        "rank": hit.rank,
        "score": round(hit.score, 6),
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
