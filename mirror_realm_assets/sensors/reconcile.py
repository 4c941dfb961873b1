"""The reconciler: every 30 s it ends runs whose process is gone; see `recovery`."""

import dagster as dg

from mirror_realm_assets.recovery import reconcile
from mirror_realm_assets.resources.library import LibraryResource


@dg.sensor(
    name="reconciler",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process is provably gone, so that their work goes on in a new run.",
)
def reconcile_sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SkipReason:
    """One round; it asks for no runs itself."""
    found = reconcile(context.instance, library.services.catalog)
    if not found.runs and not found.workers:
        return dg.SkipReason("Every run has its process.")
    return dg.SkipReason(f"{len(found.runs)} runs without a process were ended, {found.workers} dead workers buried.")
