"""The command prune: fewer partition keys in Dagster's choice of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import dagster_instance, opened
from mirror_realm_assets.cli.output import emit, json_option, safe, say, show

if TYPE_CHECKING:
    import dagster as dg

    from mirror_realm_assets.catalog.engine import Catalog
    from mirror_realm_assets.pruning import Pruned
    from mirror_realm_assets.settings import Settings

_NAMED = 1000


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be retired and retire nothing.")
@json_option
def prune(dry_run: bool, as_json: bool) -> None:
    """Retire the partition keys of the oldest finished batches; their runs, events and results stay."""
    with opened() as (settings, services), dagster_instance(settings) as instance:
        found = _rounds(instance, services.catalog, settings, dry_run)
    if as_json:
        emit(
            {
                "dry_run": dry_run,
                "live": found.live,
                "retired": len(found.retired),
                "retired_keys": found.retired[:_NAMED],
                "deleted": len(found.deleted),
                "left": found.left,
                "over": found.over,
                "backfill": found.backfill,
            }
        )
        return
    for key in found.retired[:_NAMED]:
        show(safe(key))
    if len(found.retired) > _NAMED:
        show(f"... and {len(found.retired) - _NAMED} more")
    would = "would be retired" if dry_run else "were retired"
    show(f"{found.live} keys were live; {len(found.retired)} batches {would}, {len(found.deleted)} keys deleted.")
    _explain(found, settings)


def _explain(found: Pruned, settings: Settings) -> None:
    """Why not more went."""
    if found.backfill is not None:
        say(f"Nothing is retired before the backfill {safe(found.backfill)} has ended: it would fail without its keys.")
    elif found.over:
        say(f"{found.over} more should go, but their batches are unfinished, fresh, or being run.")
    elif not found.retired and not found.deleted:
        say(f"Keys are retired from {settings.prune_above + 1} on, down to {settings.prune_to}.")
    if found.left:
        say(f"{found.left} retired keys are left; the next round goes on with them.")


def _rounds(instance: dg.DagsterInstance, catalog: Catalog, settings: Settings, dry_run: bool) -> Pruned:
    """Rounds until one finds nothing to do, as one."""
    from mirror_realm_assets.pruning import prune as one_round

    total = one_round(instance, catalog, settings, dry_run=dry_run)
    last = total
    while last.deleted:
        last = one_round(instance, catalog, settings)
        total.retired += last.retired
        total.deleted += last.deleted
        total.left, total.backfill = last.left, last.backfill
        total.over = last.over or total.over
    return total


COMMANDS: list[Any] = [prune]
