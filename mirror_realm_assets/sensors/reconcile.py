"""The reconciler: every few seconds it ends runs whose process is gone; see `recovery`.

With an interval of 30 s a batch whose code server died was done 65 s later: the first tick meets the code server still
gone and counts, the second comes 30 s after it, and then the run is started again.
"""

import dagster as dg

from mirror_realm_assets.recovery import end_orphaned_tails, reconcile
from mirror_realm_assets.resources.library import LibraryResource


@dg.sensor(
    name="reconciler",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process is provably gone, so that their work goes on in a new run.",
)
def reconcile_sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SkipReason:
    """One round; it asks for no runs itself."""
    settings = library.settings
    lock = settings.home / "up.lock"
    found = reconcile(context.instance, library.services.catalog, lock, runs=not settings.on_cluster)
    end_orphaned_tails(settings.dagster_home / "storage")
    if not found.runs and not found.workers:
        return dg.SkipReason("Every run has its process.")
    return dg.SkipReason(f"{len(found.runs)} runs without a process were ended, {found.workers} dead workers buried.")
