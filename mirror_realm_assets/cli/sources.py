"""Commands about sources: the registry of watched folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import Teller, emit, human_bytes, human_seconds, json_option, safe, say, show
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.policy import SourcePolicy
    from mirror_realm_assets.catalog.sources import Source
    from mirror_realm_assets.estimate import Estimate
    from mirror_realm_assets.registry.changes import Changes
    from mirror_realm_assets.stages.services import Services

# From a file that rests to the work on it: a sensor's tick, and the start of a process that imports Dagster and torch.
_START_SECONDS = 15.0


@click.group("sources")
def sources_group() -> None:
    """Watched folders."""


@sources_group.command("add")
@click.argument("name")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="The folder; it is never written to.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the source; repeatable.")
@json_option
def add(name: str, folder: Path, options: tuple[str, ...], as_json: bool) -> None:
    """Register a folder under NAME and say what it will take."""
    from mirror_realm_assets.catalog import sources
    from mirror_realm_assets.catalog.policy import parse_options, parse_policy
    from mirror_realm_assets.pipeline import check_policy

    root = folder.expanduser().absolute()
    if not root.is_dir():
        raise SetupError("folder_missing", f"There is no folder {root}.")
    with opened() as (settings, services):
        _refuse_ours(settings, root)
        chosen = parse_options(options)
        policy = parse_policy(chosen)
        check_policy(settings, policy)
        _check_archives(settings, services, root, policy.archive)
        with services.catalog.write() as conn:
            source = sources.add(conn, name, os.fsencode(root), chosen)
        estimate = _estimate(settings, services, source)
    if as_json:
        emit({"source": name, "estimate": estimate.as_json()})
        return
    say(f"Source [bold]{safe(name)}[/bold] watches {safe(str(root))}.")
    say(_verdict(estimate))
    _say_unused(chosen)


@sources_group.command("set")
@click.argument("name")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option; repeatable.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the source's folder lies now, when it was moved as a whole.",
)
def set_(name: str, options: tuple[str, ...], folder: Path | None) -> None:
    """Change options of a source; what they make wanted is done for all its files."""
    from mirror_realm_assets.catalog import sources
    from mirror_realm_assets.catalog.policy import parse_options
    from mirror_realm_assets.ingest.relocation import relocate
    from mirror_realm_assets.pipeline import check_policy

    if not options and folder is None:
        raise click.UsageError("Give --option or --folder.")
    with opened() as (settings, services):
        chosen = parse_options(options)
        if folder is not None:
            root = folder.expanduser().absolute()
            _refuse_ours(settings, root)
            with services.catalog.read() as conn:
                source = sources.get(conn, name)
            relocate(services.catalog, source, os.fsencode(root))
        with services.catalog.read() as conn:
            source = sources.get(conn, name)
        policy = source.policy.merged(chosen)
        check_policy(settings, policy)
        if "archive" in chosen or folder is not None:
            _check_archives(settings, services, Path(os.fsdecode(source.root)), policy.archive)
        with services.catalog.write() as conn:
            sources.set_policy(conn, name, chosen)
    say(f"Source {safe(name)} is changed.")
    _say_unused(chosen)


def _refuse_ours(settings: Settings, root: Path) -> None:
    """What we make is never an input."""
    real = root.resolve()
    ours = [settings.dagster_home, settings.models_dir, settings.store_folder]
    inside = [folder for folder in ours if folder and real.is_relative_to(folder.resolve())]
    if inside or real == settings.home.resolve():
        raise SetupError(
            "invalid_argument", f"{root} belongs to Mirror Realm itself.", remedy="Choose a folder of your own files."
        )


def _check_archives(
    settings: Settings,
    services: Services,
    root: Path,
    archive: str | None,
    *,
    beside: Mapping[Path, str | None] | None = None,
    prepare: bool = True,
) -> None:
    """What is archived must not come in again as new files; an archive must be there before it is written to.

    Args:
        settings: of this process.
        services: catalog and stores.
        root: folder of the source.
        archive: its archive.
        beside: folders and archives of sources that are declared with it.
        prepare: whether the archive is made and tried.
    """
    from mirror_realm_assets.archive.places import FolderArchive
    from mirror_realm_assets.archive.stage import open_archive
    from mirror_realm_assets.catalog import sources

    with services.catalog.read() as conn:
        known = sources.all_sources(conn)
    declared = beside or {}
    archives = {source.policy.archive for source in known} | {archive, *declared.values()}
    for place in [Path(each) for each in archives if each and "://" not in each]:
        for folder in [root, *declared, *(Path(os.fsdecode(source.root)) for source in known)]:
            if place.resolve().is_relative_to(folder.resolve()):
                raise SetupError(
                    "invalid_argument",
                    f"The archive {place} lies in the watched folder {folder}: what is archived would come in again.",
                    remedy="Choose a folder outside.",
                )
    if archive is None or not prepare:
        return
    opened_archive = open_archive(services, archive)
    if isinstance(opened_archive, FolderArchive):
        _refuse_ours(settings, opened_archive.root)
        opened_archive.prepare()
    opened_archive.check()


@sources_group.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All sources."""
    from rich.table import Table

    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.read() as conn:
        found = sources.all_sources(conn)
    if as_json:
        for source in found:
            emit(_source_json(source))
        return
    table = Table("name", "state", "folder", "options")
    for source in found:
        options = " ".join(f"{key}={value}" for key, value in source.policy.as_options().items())
        table.add_row(source.name, _state(source), safe(source.root_display), safe(options))
    show(table)


@sources_group.command("show")
@click.argument("name")
@json_option
def show_(name: str, as_json: bool) -> None:
    """One source with all its options."""
    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.read() as conn:
        source = sources.get(conn, name)
    found = _source_json(source) | {"options": source.policy.model_dump(mode="json", by_alias=True)}
    if as_json:
        emit(found)
        return
    for key, value in found.items():
        show(f"{key}: {safe(str(value))}")


@sources_group.command("apply")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--remove", is_flag=True, help="Remove the sources that the file does not name; their files stay.")
@json_option
def apply_(file: Path, dry_run: bool, remove: bool, as_json: bool) -> None:
    """Make the sources as FILE declares them, all or nothing, and show what that changes."""
    from mirror_realm_assets.pipeline import check_policy
    from mirror_realm_assets.registry import changes, declared

    try:
        wanted = declared.read(file)
    except declared.DeclarationError as error:
        for fault in error.faults[1:]:
            say(f"{safe(str(file))}:{safe(fault)}")  # the first is in the error's own sentence
        raise
    beside = {one.folder: one.options.get("archive") for one in wanted}
    with opened() as (settings, services):

        def check(folder: Path, policy: SourcePolicy) -> None:
            _refuse_ours(settings, folder)
            check_policy(settings, policy)
            _check_archives(settings, services, folder, policy.archive, beside=beside, prepare=not dry_run)

        do = changes.plan if dry_run else changes.apply
        found = do(services.catalog, wanted, check, remove=remove)
    if as_json:
        emit({"dry_run": dry_run, **found.as_json()})
        return
    for line in _changes(found):
        show(line)
    if not found:
        show("Everything is as declared.")
    elif dry_run:
        say("Nothing was changed.")


def _changes(found: Changes) -> Iterator[str]:
    for new in found.added:
        options = "".join(f", {key}={value}" for key, value in new.options.items())
        state = "" if new.state == "active" else f", {new.state}"
        yield f"[green]+[/] {safe(new.name)}: {safe(str(new.folder))}{state}{safe(options)}"
    for change in found.changed:
        yield f"[yellow]~[/] {safe(change.name)}"
        for name, (before, after) in change.fields.items():
            yield f"    {safe(name)}: {safe(str(before))} -> {safe(str(after))}"
    for name in found.removed:
        yield f"[red]-[/] {safe(name)}: removed; its files stay"
    if found.others:
        yield f"not in the file, and left as they are: {safe(', '.join(found.others))}"


@sources_group.command("estimate")
@click.argument("name")
@json_option
def estimate_(name: str, as_json: bool) -> None:
    """Files, hours and bytes that a source will take here."""
    from mirror_realm_assets.catalog import sources

    with opened() as (settings, services):
        with services.catalog.read() as conn:
            source = sources.get(conn, name)
        found = _estimate(settings, services, source)
    if as_json:
        emit(found.as_json())
    else:
        _show_estimate(source, found)


@sources_group.command("check")
@click.argument("name")
@json_option
def check(name: str, as_json: bool) -> None:
    """Whether the folder can be listed and read."""
    from mirror_realm_assets.catalog import sources
    from mirror_realm_assets.ingest.folder_watch import own_folders
    from mirror_realm_assets.ingest.scan import Walk

    with opened() as (settings, services):
        with services.catalog.read() as conn:
            source = sources.get(conn, name)
        walked = Walk(source.root, source.policy.ignore, own_folders(settings))
        for _file in walked:
            pass
    found = {
        "source": name,
        "ok": walked.complete,
        "files": walked.files,
        "ignored": walked.ignored,
        "not_read": len(walked.odd),
        "errors": walked.errors[:20],
    }
    if as_json:
        emit(found)
    else:
        show(f"{walked.files} files, {walked.ignored} ignored, {len(walked.odd)} not read")
    if not walked.complete:
        raise SetupError("io_error", f"{len(walked.errors)} folders of {name} could not be read: {walked.errors[0]}.")


@sources_group.command("pause")
@click.argument("name")
def pause(name: str) -> None:
    """Begin nothing new of this source."""
    _set_state(name, "paused", "by hand")
    say(f"Source {safe(name)} is paused; what runs now goes on.")


@sources_group.command("resume")
@click.argument("name")
def resume(name: str) -> None:
    """Go on with this source."""
    _set_state(name, "active", None)
    say(f"Source {safe(name)} goes on.")


@click.command("pause")
@click.option("--reason", help="Why, for who looks at the status.")
@json_option
def pause_all(reason: str | None, as_json: bool) -> None:
    """Begin nothing new of any source; what runs now goes on."""
    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.write() as conn:
        names = sources.pause_all(conn, reason)
    if as_json:
        emit({"paused": names})
    else:
        say(f"{len(names)} sources are paused; what runs now goes on." if names else "No source was active.")


@click.command("resume")
@json_option
def resume_all(as_json: bool) -> None:
    """Go on with all sources that `mirror-realm pause` paused; those paused one by one stay so."""
    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.write() as conn:
        names = sources.resume_all(conn)
    if as_json:
        emit({"resumed": names})
    else:
        say(f"{len(names)} sources go on." if names else "No source was paused with all.")


@sources_group.command("confirm-deletions")
@click.argument("name")
@json_option
def confirm_deletions(name: str, as_json: bool) -> None:
    """Say that the folder is the right one, and that what is not there is really gone."""
    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.write() as conn:
        held = sources.confirm_deletions(conn, name)
    if as_json:
        emit({"source": name, "held": held})
    else:
        say(f"The next complete scans of {safe(name)} take what is not there for gone ({held} files were held back).")


@sources_group.command("remove")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Forget what was computed as well.")
def remove(name: str, purge: bool) -> None:
    """Forget the source; files in its folder are never touched."""
    if purge:
        raise SetupError(
            "invalid_argument",
            "--purge is not there yet.",
            remedy="Without it the source is removed and its derivatives stay in the store.",
        )
    _set_state(name, "removed", None)
    say(f"Source {safe(name)} is removed. Its files were not touched.")


def _set_state(name: str, state: str, reason: str | None) -> None:
    from mirror_realm_assets.catalog import sources

    with opened() as (_settings, services), services.catalog.write() as conn:
        sources.set_state(conn, name, state, reason)


def _source_json(source: Any) -> dict[str, Any]:
    return {
        "name": source.name,
        "uuid": source.uuid,
        "kind": source.kind,
        "folder": source.root_display,
        "state": source.state,
        "state_reason": source.state_reason,
        "options": source.policy.as_options(),
        "scanned_at": source.scanned_at,
        "created_at": source.created_at,
    }


def _state(source: Any) -> str:
    return f"{source.state} ({safe(source.state_reason)})" if source.state_reason else source.state


# Accepted, because the contract names them, and without effect until the stages that read them are there.
_UNUSED = ("faces", "budget.device_seconds_day", "budget.bytes_day")


def _say_unused(options: dict[str, Any]) -> None:
    for name in options:
        if name in _UNUSED:
            say(f"[yellow]The option {safe(name)} is kept, and has no effect yet.[/yellow]")


def _estimate(settings: Settings, services: Services, source: Source) -> Estimate:
    from mirror_realm_assets.estimate import of_folder

    with Teller() as teller:
        return of_folder(
            settings,
            source,
            catalog=services.catalog,
            on_progress=lambda walk: teller.tell(f"{walk.files} files seen"),
        )


def _show_estimate(source: Source, found: Estimate) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    for name, words in _rows(source, found):
        table.add_row(name, words)
    show(table)
    show(_verdict(found))


def _rows(source: Source, found: Estimate) -> Iterator[tuple[str, str]]:
    yield "folder", safe(source.root_display)
    yield "files", f"{found.files}, {human_bytes(found.bytes)}"
    if found.kinds:
        yield "kinds", safe(", ".join(f"{count} {kind}" for kind, count in found.kinds.items()))
    if found.too_large:
        yield "refused", f"{found.too_large} are larger than MIRROR_REALM_MAX_FILE_BYTES"
    yield "search", f"about {human_seconds(found.search_seconds)}, {human_bytes(found.search_bytes)}"
    if source.policy.enhance:
        took = f"about {human_seconds(found.enhance_seconds)}, {human_bytes(found.enhance_bytes)}"
        yield "enhancement", f"{found.enhance_files} pictures, {took}"
        yield "left out", f"{found.not_wanted} are larger than enhance.max_pixels={source.policy.enhance_max_pixels}"
        where = "measured here" if found.rate_from == "measured" else "as on other machines, none measured here yet"
        yield "speed", f"{found.seconds_per_megapixel:g} s a megapixel, {where}; {found.device}, {found.precision}"
    else:
        yield "enhancement", "not wanted by the source's policy"
    if found.free_bytes is not None:
        yield "disk", f"{human_bytes(found.free_bytes)} free"


def _verdict(found: Estimate) -> str:
    """The estimate in a sentence."""
    if not found.files:
        return "The folder is empty."
    took = human_seconds(found.search_seconds + _START_SECONDS)
    words = f"{found.files} files, {human_bytes(found.bytes)}: searchable after about {took}"
    if found.enhance_files:
        words += f", {found.enhance_files} pictures enhanced after {human_seconds(found.enhance_seconds)} more"
    needed = human_bytes(found.search_bytes + found.enhance_bytes)
    if found.fits is False:
        free = human_bytes(found.free_bytes or 0)
        return f"{words}; [red]the {needed} it makes do not fit[/] on a disk with {free} free."
    return f"{words}; it makes about {needed}" + (", which fits the disk." if found.fits else ".")


COMMANDS = [sources_group, pause_all, resume_all]
