"""The command `export`: pictures of the library as a folder that a person can use.

What belongs here: its options, and what is printed. What does not: exporting (`export`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import Teller, emit, json_option, safe, say
from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.wants import Rule
    from mirror_realm_assets.export.order import Outcome
    from mirror_realm_assets.settings import Settings

_KINDS = {"enhanced": ("enhanced",), "originals": ("original",), "both": ("enhanced", "original")}
_WHY = {"edited": "somebody has changed it", "not_ours": "it was not exported by this command"}
_TOLD = 20  # files that are named for a person; all are in the JSON


@click.command()
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to; made when it is not there.",
)
@click.option("--source", help="Of one source.")
@click.option("--template", help="Names below DIR; {source}/{folder}/{filename} unless given.")
@click.option("--what", type=click.Choice(list(_KINDS)), default="enhanced", show_default=True, help="Which pictures.")
@click.option(
    "--link",
    type=click.Choice(["auto", "copy", "hard"]),
    default="auto",
    show_default=True,
    help="auto shares disk blocks where the file system can; hard makes exported files and the store's one.",
)
@click.option("--into-existing", is_flag=True, help="DIR may hold other files; none of them is changed.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@json_option
def export(
    folder: Path,
    source: str | None,
    template: str | None,
    what: str,
    link: Any,
    into_existing: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Enhanced pictures or originals in a folder, under readable names; again, it changes only what changed."""
    from mirror_realm_assets.export.exporting import export as run
    from mirror_realm_assets.export.order import Order
    from mirror_realm_assets.export.selection import DEFAULT_TEMPLATE

    order = Order(
        folder=folder,
        source=source,
        template=DEFAULT_TEMPLATE if template is None else template,
        kinds=_KINDS[what],
        link=link,
        dry_run=dry_run,
        into_existing=into_existing,
    )
    with opened() as (settings, services), Teller() as teller:
        outcome = run(services, _rule(settings), order, teller.tell)
    if as_json:
        emit(_json(outcome, dry_run))
    _tell(outcome, dry_run)
    if outcome.failures:
        sys.exit(1)


def _rule(settings: Settings) -> Rule:
    from mirror_realm_assets import pipeline

    for stage in pipeline.standard_stages(settings):
        if stage.feature == "enhanced_images":
            return stage.rule
    raise SetupError("internal", "There is no stage that enhances pictures.")


def _json(outcome: Outcome, dry_run: bool) -> dict[str, Any]:
    from mirror_realm_assets.export.manifest import MANIFEST

    return {
        "to": str(outcome.root),
        "manifest": str(outcome.root / MANIFEST),
        "dry_run": dry_run,
        "written": outcome.written,
        "linked": outcome.linked,
        "unchanged": outcome.unchanged,
        "removed": outcome.removed,
        "kept": outcome.kept,
        "kept_files": [{"name": name, "why": why} for name, why in outcome.kept_files],
        "failures": outcome.failures,
        "failed": [
            {
                "name": failure.entry.name or None,
                "kind": failure.entry.kind,
                "source": failure.entry.source,
                "path": failure.entry.path,
                "path_b64": failure.entry.path_b64,
                "digest": failure.entry.digest,
                "code": failure.code,
                "reason": failure.reason,
            }
            for failure in outcome.failed
        ],
    }


def _tell(outcome: Outcome, dry_run: bool) -> None:
    would = "Would be: " if dry_run else ""
    say(
        f"{safe(str(outcome.root))}: {would}{outcome.written} written, {outcome.linked} linked, "
        f"{outcome.unchanged} unchanged, {outcome.removed} removed, {outcome.kept} kept, {outcome.failures} failed."
    )
    for name, why in outcome.kept_files[:_TOLD]:
        say(f"Kept: {safe(name)}: {_WHY[why]}.")
    _tell_more(outcome.kept)
    for failure in outcome.failed[:_TOLD]:
        say(f"[red]Failed:[/red] {safe(failure.entry.source)}: {safe(failure.entry.path)}: {safe(failure.reason)}")
    _tell_more(outcome.failures)


def _tell_more(count: int) -> None:
    if count > _TOLD:
        say(f"... and {count - _TOLD} more; --json names them.")


COMMANDS = [export]
