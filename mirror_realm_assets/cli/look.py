"""Commands that look at the ledger: status, files, file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, human_bytes, json_option, paths_json, safe, say, show
from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from mirror_realm_assets.catalog.listing import FileRow
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

_WATCH_SECONDS = 2.0
_COLUMNS = ("ok", "pending", "running", "failed", "refused", "empty", "not_wanted")


@click.command()
@click.option("--source", help="Of one source.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds.")
@json_option
def status(source: str | None, watch: bool, as_json: bool) -> None:
    """Counts of every source."""
    with opened() as (settings, services):
        while True:
            found = _statuses(settings, services, source)
            if as_json:
                emit({"sources": {name: counts.as_json() for name, counts in found.items()}})
            else:
                _show_status(found)
            if not watch:
                return
            time.sleep(_WATCH_SECONDS)


def _statuses(settings: Settings, services: Services, only: str | None) -> dict[str, Any]:
    from mirror_realm_assets.catalog import sources
    from mirror_realm_assets.catalog import status as counting
    from mirror_realm_assets.pipeline import standard_stages

    rules = [stage.rule for stage in standard_stages(settings)]
    with services.catalog.read() as conn:
        chosen = [sources.get(conn, only)] if only else sources.all_sources(conn)
        return {source.name: counting.of_source(conn, source, rules) for source in chosen}


def _show_status(found: dict[str, Any]) -> None:
    from rich.table import Table

    for name, counts in found.items():
        title = f"{name}: {counts.files} files, {human_bytes(counts.bytes)}, {counts.batches} batches"
        if counts.state != "active":
            title += f" - {counts.state}: {safe(counts.state_reason or '')}"
        table = Table("feature", *_COLUMNS, title=title, title_justify="left")
        for feature, values in counts.features.items():
            table.add_row(feature, *[str(values[column]) if values[column] else "-" for column in _COLUMNS])
        show(table)
        index = counts.index
        show(f"index: {index['vectors']} vectors, {index['segments']} segments, model {index['model'] or '-'}")
        odd = {state: n for state, n in counts.locations.items() if state not in ("present",)}
        if odd:
            show("places: " + ", ".join(f"{n} {state}" for state, n in odd.items()))
    if not found:
        say("There are no sources yet: mirror-realm sources add NAME --folder PATH")


@click.command()
@click.option("--source", help="Of one source.")
@click.option("--feature", help="Only this feature's statuses count for --status.")
@click.option("--status", "wanted", type=click.Choice([*_COLUMNS, "blocked"]), help="Only files with this status.")
@json_option
def files(source: str | None, feature: str | None, wanted: str | None, as_json: bool) -> None:
    """A line for each file."""
    with opened() as (settings, services), services.catalog.read() as conn:
        _require_feature(settings, feature)
        for row in _rows(conn, settings, services, source):
            if not _matches(row, feature, wanted):
                continue
            if as_json:
                emit(_file_json(row, _root(conn, row.source)))
            else:
                states = " ".join(f"{name}={value['status']}" for name, value in row.features.items())
                path = os.fsdecode(row.paths[0]).encode("utf-8", "backslashreplace").decode()
                show(f"{safe(path)}  {states}" + (f"  ({safe(row.reason)})" if row.reason else ""))


def _rows(conn: sa.Connection, settings: Settings, services: Services, only: str | None) -> Iterator[FileRow]:
    from mirror_realm_assets.catalog import listing, sources
    from mirror_realm_assets.pipeline import standard_stages

    rules = [stage.rule for stage in standard_stages(settings)]
    chosen = [sources.get(conn, only)] if only else sources.all_sources(conn)
    for source in chosen:
        yield from listing.of_source(conn, source, rules, services.limits())


def _root(conn: sa.Connection, name: str) -> bytes:
    from mirror_realm_assets.catalog import sources

    return sources.get(conn, name).root


def _require_feature(settings: Settings, name: str | None) -> None:
    """Also when there is no file yet: a misspelled feature is no empty answer."""
    from mirror_realm_assets.pipeline import standard_stages

    known = [stage.feature for stage in standard_stages(settings)]
    if name is not None and name not in known:
        raise SetupError("invalid_argument", f"There is no feature {name!r}.", remedy=f"Features: {', '.join(known)}.")


def _matches(row: FileRow, feature: str | None, wanted: str | None) -> bool:
    chosen = [row.features[feature]] if feature else list(row.features.values())
    return wanted is None or any(value["status"] == wanted for value in chosen)


def _file_json(row: FileRow, root: bytes) -> dict[str, Any]:
    return {
        "media": row.media,
        "digest": row.digest,
        "part": row.part,
        "source": row.source,
        **paths_json([os.path.join(root, path) for path in row.paths]),  # noqa: PTH118 - bytes
        "location_state": row.location_state,
        "reason": row.reason,
        "mime": row.mime,
        "bytes": row.bytes,
        "width": row.width,
        "height": row.height,
        "features": row.features,
    }


@click.command()
@click.argument("path_or_digest")
@json_option
def file(path_or_digest: str, as_json: bool) -> None:
    """Everything known about one file, by its path or its digest."""
    from mirror_realm_assets.catalog import listing, sources

    full = _plain(os.fsencode(Path(path_or_digest).expanduser()))
    with opened() as (settings, services), services.catalog.read() as conn:
        for row in _rows(conn, settings, services, None):
            source = sources.get(conn, row.source)
            places = [_plain(os.path.join(source.root, path)) for path in row.paths]  # noqa: PTH118 - bytes
            if row.digest != path_or_digest and full not in places:
                continue
            ids = listing.places_of(conn, source.id, row.paths)
            found = _file_json(row, source.root) | listing.history(conn, row.media, ids)
            if as_json:
                emit(found)
            else:
                from rich.pretty import Pretty

                show(Pretty(found, max_string=200))
            return
    raise SetupError("not_found", f"Nothing is known of {path_or_digest}.", remedy="Is its folder a source?")


def _plain(path: bytes) -> bytes:
    """Absolute and without `..`; a folder may have been registered by any spelling, and links must stay as they are."""
    return os.path.abspath(path)  # noqa: PTH100


COMMANDS = [status, files, file]
