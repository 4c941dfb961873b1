"""The pruner: every minute it keeps the live keys of `media_batch` few and forgets what was long deleted.

See `pruning` and `catalog.purge`.

A minute is often enough: the lanes add at most 25 keys a tick for runs of many seconds each, and the bounds leave room
for a thousand.
"""

import dagster as dg

from mirror_realm_assets.catalog.purge import purge
from mirror_realm_assets.pruning import Pruned, prune
from mirror_realm_assets.resources.library import LibraryResource


@dg.sensor(
    name="pruner",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Retires the partition keys of the oldest finished batches when there are too many (their runs and "
    "events stay), and forgets what was made of files that were deleted long ago.",
)
def prune_sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SkipReason:
    """One round; it asks for no runs."""
    catalog, settings = library.services.catalog, library.settings
    purged = purge(catalog, settings.purge_days, rounds=4, by="pruner")
    words = _words(prune(context.instance, catalog, settings))
    return dg.SkipReason(f"{words} {purged.media} deleted files were purged." if purged.media else words)


def _words(found: Pruned) -> str:
    words = [f"{found.live} keys are live"]
    if found.backfill is not None:
        words.append(f"nothing is retired before the backfill {found.backfill} has ended")
    elif found.deleted or found.left:
        words.append(f"{len(found.deleted)} were deleted, {found.left} retired ones are left")
    if found.over and found.backfill is None:
        words.append(f"{found.over} more should go, but their batches are unfinished, fresh, or being run")
    return "; ".join(words) + "."
