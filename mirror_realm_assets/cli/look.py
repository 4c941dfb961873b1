"""Commands that look at the ledger: status, files, file."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import Teller, emit, is_terminal, json_option, live_console, safe, say, show
from mirror_realm_assets.cli.pacing import rest
from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from mirror_realm_assets.catalog.listing import FileRow
    from mirror_realm_assets.catalog.one_file import Found
    from mirror_realm_assets.catalog.sources import Source
    from mirror_realm_assets.cli.status_view import Reading
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

_WATCH_SECONDS = 2.0
_STATUSES = ("ok", "pending", "running", "failed", "refused", "empty", "not_wanted", "blocked")


@click.command()
@click.option("--source", help="Of one source.")
@click.option(
    "--watch",
    is_flag=True,
    help="Go on showing it, every two seconds, until Ctrl-C; where there is no terminal, a line for each change.",
)
@json_option
def status(source: str | None, watch: bool, as_json: bool) -> None:
    """What became of the files of every source, what runs now, how fast, and what went wrong."""
    from mirror_realm_assets.cli import status_view

    with opened() as (settings, services):
        if watch:
            # Asked for, because a shell's background process starts with SIGINT ignored.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            try:
                _watch(settings, services, source, as_json)
            except KeyboardInterrupt:
                return  # that is how a person ends it
        found = status_view.read(settings, services, source)
    if as_json:
        emit(found.as_json())
    else:
        show(status_view.screen(found))


def _watch(settings: Settings, services: Services, source: str | None, as_json: bool) -> None:
    """Show what is so until the process is interrupted."""
    from mirror_realm_assets.cli import status_view

    readings = _readings(settings, services, source)
    if as_json:
        for found in readings:
            emit(found.as_json())
            sys.stdout.flush()  # a pipe would keep it back
    elif is_terminal():
        from rich.live import Live

        # Refreshed by us alone: what is shown changes only when we have read it.
        with Live(console=live_console(), auto_refresh=False, vertical_overflow="crop") as live:
            for found in readings:
                live.update(status_view.screen(found), refresh=True)
    else:
        last: dict[str, str] = {}
        for found in readings:
            for name, counts in found.sources.items():
                line = status_view.line_of(name, counts)
                if line != last.get(name):
                    show(line)
                    sys.stdout.flush()
                last[name] = line


def _readings(settings: Settings, services: Services, source: str | None) -> Iterator[Reading]:
    """A reading every two seconds, with pauses as long as the readings at least.

    A catalog that is locked or restarted for a while is waited for.
    """
    import sqlalchemy as sa

    from mirror_realm_assets.cli import status_view

    read_before = False
    while True:
        began = time.monotonic()
        pause = _WATCH_SECONDS
        try:
            found = status_view.read(settings, services, source)
            pause = rest(time.monotonic() - began, share=0.5, at_least=_WATCH_SECONDS)
            read_before = True
            yield found
        except sa.exc.DBAPIError as error:
            if not read_before:
                raise  # it is not there at all, and saying so helps more than waiting
            say(f"[yellow]The catalog does not answer just now: {safe(str(error.orig))}[/]")
        time.sleep(pause)


@click.command()
@click.option("--source", help="Of one source.")
@click.option("--text", help="Only files with all of these words in path, title, description, keywords or camera.")
@click.option("--feature", help="Only this feature's statuses count for --status.")
@click.option("--status", "wanted", type=click.Choice(_STATUSES), help="Only files with this status.")
@click.option(
    "--export",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write them as a table, .parquet or .csv, with a row for each place.",
)
@json_option
def files(
    source: str | None, text: str | None, feature: str | None, wanted: str | None, export: Path | None, as_json: bool
) -> None:
    """A line for each file."""
    from mirror_realm_assets.catalog import texts

    _require_format(export)
    with opened() as (settings, services):
        if text is not None:
            texts.catch_up(services.catalog, math.inf)
        _files(settings, services, source, text, feature, wanted, export, as_json)


def _files(
    settings: Settings,
    services: Services,
    source: str | None,
    text: str | None,
    feature: str | None,
    wanted: str | None,
    export: Path | None,
    as_json: bool,
) -> None:
    from mirror_realm_assets.cli.file_view import row_json

    _require_feature(settings, feature)
    chosen = (
        (each, row)
        for each, row in _rows(settings, services, source, text)
        if wanted is None or _has_status(row, feature, wanted)
    )
    if export is not None:
        _export(services, settings, export, chosen, as_json)
        return
    for each, row in chosen:
        if as_json:
            emit(row_json(row, each.root))
        else:
            states = " ".join(f"{name}={value['status']}" for name, value in row.features.items())
            path = os.fsdecode(row.paths[0]).encode("utf-8", "backslashreplace").decode()
            show(f"{safe(path)}  {states}" + (f"  ({safe(row.reason)})" if row.reason else ""))


def _rows(
    settings: Settings, services: Services, only: str | None, text: str | None
) -> Iterator[tuple[Source, FileRow]]:
    """Page by page: whoever reads what we print may take his time, and no transaction is open meanwhile."""
    from mirror_realm_assets.catalog import listing, sources
    from mirror_realm_assets.pipeline import standard_stages

    rules = [stage.rule for stage in standard_stages(settings)]
    with services.catalog.read() as conn:
        chosen = [sources.get(conn, only)] if only else sources.all_sources(conn)
    for source in chosen:
        for row in listing.in_pages(services.catalog, source, rules, services.limits(), text):
            yield source, row


def _require_format(export: Path | None) -> None:
    from mirror_realm_assets.file_table import FORMATS

    if export is not None and export.suffix.lower() not in FORMATS:
        raise click.UsageError(f"--export writes {' or '.join(FORMATS)}; {export.name} ends in neither.")


def _require_feature(settings: Settings, name: str | None) -> None:
    """Also when there is no file yet: a misspelled feature is no empty answer."""
    from mirror_realm_assets.pipeline import standard_stages

    known = [stage.feature for stage in standard_stages(settings)]
    if name is not None and name not in known:
        raise SetupError("invalid_argument", f"There is no feature {name!r}.", remedy=f"Features: {', '.join(known)}.")


def _has_status(row: FileRow, feature: str | None, wanted: str) -> bool:
    chosen = [row.features[feature]] if feature else list(row.features.values())
    return any(value["status"] == wanted for value in chosen)


def _export(
    services: Services,
    settings: Settings,
    export: Path,
    chosen: Iterator[tuple[Source, FileRow]],
    as_json: bool,
) -> None:
    from mirror_realm_assets import file_table
    from mirror_realm_assets.pipeline import standard_stages

    target = export.expanduser().absolute()
    with services.catalog.read() as conn:
        _refuse_source_folder(conn, target)
    features = [stage.feature for stage in standard_stages(settings)]
    with Teller() as teller:
        rows = file_table.write(
            target,
            ((source.root, row) for source, row in chosen),
            features,
            lambda count: teller.tell(f"{count} rows written"),
        )
    if as_json:
        emit({"rows": rows, "path": str(target)})
    say(f"{rows} rows are in {safe(str(target))}")


def _refuse_source_folder(conn: sa.Connection, target: Path) -> None:
    """Sources are read-only, and a table in one would be taken for a file of it."""
    from mirror_realm_assets.catalog import sources

    folder = target.parent.resolve()
    if not folder.is_dir():
        raise SetupError("folder_missing", f"There is no folder {folder}.", remedy="Make it, or write somewhere else.")
    for source in sources.all_sources(conn):
        if folder.is_relative_to(Path(os.fsdecode(source.root)).resolve()):
            raise SetupError(
                "invalid_argument",
                f"{target} would be in the folder of the source {source.name}, which is never written to.",
                remedy="Write it somewhere else.",
            )


@click.command()
@click.argument("path_or_digest")
@json_option
def file(path_or_digest: str, as_json: bool) -> None:
    """Everything known about one file, by its path, or by a digest or the first 8 digits of one."""
    from mirror_realm_assets.cli import file_view

    with opened() as (settings, services), services.catalog.read() as conn:
        found = _find(conn, settings, services, path_or_digest)
        if not found:
            raise SetupError(
                "not_found",
                f"Nothing is known of {path_or_digest}.",
                remedy="Is its folder a source (mirror-realm sources list), and was it scanned since the file came?",
            )
        page = file_view.page(settings, conn, found, Path(path_or_digest).name)
    if as_json:
        emit(page.body)
    else:
        page.show()


def _find(conn: sa.Connection, settings: Settings, services: Services, path_or_digest: str) -> list[Found]:
    """The file, then the same bytes in other sources, and further parts."""
    from mirror_realm_assets.catalog import one_file, sources
    from mirror_realm_assets.pipeline import standard_stages

    chosen = sources.all_sources(conn)
    rules, limits = [stage.rule for stage in standard_stages(settings)], services.limits()
    full = _plain(os.fsencode(Path(path_or_digest).expanduser()))
    found = one_file.by_path(conn, chosen, rules, limits, full)
    digest = found[0].row.digest if found else path_or_digest.lower()
    if digest is not None:
        known = {(each.row.media, each.row.part) for each in found}
        same = one_file.by_digest(conn, chosen, rules, limits, digest)
        found += [each for each in same if (each.row.media, each.row.part) not in known]
    return found


def _plain(path: bytes) -> bytes:
    """Absolute and without `..`; a folder may have been registered by any spelling, and links must stay as they are."""
    return os.path.abspath(path)  # noqa: PTH100


COMMANDS = [status, files, file]
