"""The pruner: every minute it keeps the live keys of `media_batch` few; see `pruning`.

A minute is often enough: the lanes add at most 25 keys a tick for runs of many seconds each, and the bounds leave room
for a thousand.
"""

import dagster as dg

from mirror_realm_assets.pruning import Pruned, prune
from mirror_realm_assets.resources.library import LibraryResource


@dg.sensor(
    name="pruner",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Retires the partition keys of the oldest finished batches when there are too many. Their runs and "
    "events stay.",
)
def prune_sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SkipReason:
    """One round; it asks for no runs."""
    return dg.SkipReason(_words(prune(context.instance, library.services.catalog, library.settings)))


def _words(found: Pruned) -> str:
    words = [f"{found.live} keys are live"]
    if found.backfill is not None:
        words.append(f"nothing is retired before the backfill {found.backfill} has ended")
    elif found.deleted or found.left:
        words.append(f"{len(found.deleted)} were deleted, {found.left} retired ones are left")
    if found.over and found.backfill is None:
        words.append(f"{found.over} more should go, but their batches are unfinished, fresh, or being run")
    return "; ".join(words) + "."
