"""The batch sensor and the enhance sensor: pending batches of a lane become runs.

Every tick is a pure function of the ledger; the cursor is for display. The interval is 1 s, where
people wait, because the daemon's loop has a floor of 5 s: an interval of 5 often ticks every 10.
"""

import json
import time
from collections.abc import Sequence

import dagster as dg

from mirror_realm_assets.assets.factory import StageList
from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.requests import Decision, Ended, RunWish, decide, run_key
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.ingest.batching import Formed, Former
from mirror_realm_assets.jobs import AssetJob
from mirror_realm_assets.partitions import data_source, media_batch
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.lanes import pending_of
from mirror_realm_assets.stages.stage import Lane, Stage

IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_RUN_KEY = "dagster/run_key"
_WILL_RETRY = "dagster/will_retry"
# Dagster starts the retry within seconds. One that has not come after so long never will: its job is called otherwise
# since an upgrade, or the failure was from before the daemon's very first start, which passes over older ones.
_RETRY_SECONDS = 300.0
_PARTITION = "dagster/partition"
_WAITING_SECONDS = 24 * 3600  # on a cluster a run has begun while its steps wait for a place in their pool


def batch_sensor(job: AssetJob, stages: StageList) -> dg.SensorDefinition:
    """Drains the journal into batches and requests the search lane's runs."""

    @dg.sensor(
        name="batch_sensor",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Forms batches from what the watcher saw and requests a run for every pending one.",
    )
    def _sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SensorResult | dg.SkipReason:
        services = library.services
        pipeline = stages(library.settings)
        former = services.held("former", lambda: Former(services.catalog))
        formed = former.form(library.settings, pipeline)
        decision = _tick(context.instance, services.catalog, job.name, "search", pipeline, library.settings.lane_runs)
        return _result(context.instance, services.catalog, library.settings, "search", decision, formed)

    return _sensor


def enhance_sensor(job: AssetJob, stages: StageList) -> dg.SensorDefinition:
    """Requests the enhancement lane's runs for batches that the search lane is done with."""

    @dg.sensor(
        name="enhance_sensor",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests enhancement of batches whose pictures can be searched, slice by slice.",
    )
    def _sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SensorResult | dg.SkipReason:
        services = library.services
        settings = library.settings
        free = services.store.free_bytes()
        if free is not None and free < settings.low_space_bytes:
            return dg.SkipReason(
                f"Enhancement rests: {free / 1e9:.1f} GB are free for the store, below the mark of "
                f"{settings.low_space_bytes / 1e9:.1f} GB. Ingest goes on."
            )
        decision = _tick(
            context.instance,
            services.catalog,
            job.name,
            "enhance",
            stages(settings),
            settings.lane_runs,
            slice_seconds=settings.slice_seconds,
        )
        return _result(context.instance, services.catalog, settings, "enhance", decision, Formed())

    return _sensor


def archive_sensor(job: AssetJob, stages: StageList) -> dg.SensorDefinition:
    """Requests the archive lane's runs, of sources that have an archive."""

    @dg.sensor(
        name="archive_sensor",
        job=job,
        minimum_interval_seconds=30,  # nobody waits for it, and every tick costs a tenth of a processor second
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests the archiving of batches that were read, and enhanced if that is to be archived too.",
    )
    def _sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SensorResult | dg.SkipReason:
        catalog, settings = library.services.catalog, library.settings
        slice_seconds = settings.slice_seconds
        decision = _tick(
            context.instance,
            catalog,
            job.name,
            "archive",
            stages(settings),
            settings.lane_runs,
            slice_seconds=slice_seconds,
        )
        return _result(context.instance, catalog, settings, "archive", decision, Formed())

    return _sensor


def _tick(
    instance: dg.DagsterInstance,
    catalog: Catalog,
    job_name: str,
    lane: Lane,
    stages: Sequence[Stage],
    most: int,
    slice_seconds: float | None = None,
) -> Decision:
    with catalog.read() as conn:
        pending = pending_of(conn, stages, lane)
    if not pending:
        return Decision()
    active = active_partitions(instance, job_name)
    free = [batch for batch in pending if batch.key not in active and not batch.leased and batch.not_before is None]
    ended, retrying = _ended(instance, job_name, [run_key(batch) for batch in free[:most]])
    decision = decide(
        pending,
        active | {batch.key for batch in free if run_key(batch) in retrying},
        ended,
        room=max(most - len(active), 0),
        slice_seconds=slice_seconds,
    )
    if decision.ended:
        with catalog.write() as conn:
            for batch, failed in decision.ended:
                batches.bump_attempt(conn, batch.id, lane, batch.attempt, failed=failed)
    return decision


def active_partitions(instance: dg.DagsterInstance, job_name: str) -> set[str]:
    """Partition keys that have a run of the job which is queued or running."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job_name, statuses=IN_PROGRESS))
    return {record.dagster_run.tags.get(_PARTITION, "") for record in records}


def _ended(instance: dg.DagsterInstance, job_name: str, run_keys: Sequence[str]) -> tuple[dict[str, Ended], set[str]]:
    """Of these run keys: those whose newest run is over and how, and those that Dagster will retry by itself."""
    if not run_keys:
        return {}, set()
    ended: dict[str, Ended] = {}
    retrying: set[str] = set()
    records = instance.get_run_records(dg.RunsFilter(job_name=job_name, tags={_RUN_KEY: list(run_keys)}))
    for record in records:  # newest first: a retry carries the run key of the run it retries
        run = record.dagster_run
        key = run.tags[_RUN_KEY]
        if key in ended or key in retrying:
            continue
        over = record.end_time or record.create_timestamp.timestamp()
        if run.tags.get(_WILL_RETRY) == "true" and time.time() - over < _RETRY_SECONDS:
            retrying.add(key)
        else:
            ended[key] = "succeeded" if run.status is dg.DagsterRunStatus.SUCCESS else "failed"
    return ended, retrying


def _result(
    instance: dg.DagsterInstance,
    catalog: Catalog,
    settings: Settings,
    lane: Lane,
    decision: Decision,
    formed: Formed,
) -> dg.SensorResult | dg.SkipReason:
    waiting = _WAITING_SECONDS if settings.on_cluster else 0
    with catalog.read() as conn:
        known = sources.all_sources(conn)
    if not decision.wishes:
        return dg.SkipReason(_why(decision, [source for source in known if source.state == "paused"]))
    new_batches = _missing(instance, media_batch, [wish.batch.key for wish in decision.wishes])
    new_sources = _missing(instance, data_source, [source.name for source in known])
    adds = [
        definition.build_add_request(keys)
        for definition, keys in ((media_batch, new_batches), (data_source, new_sources))
        if keys
    ]
    point("sensor.before_requests")
    return dg.SensorResult(
        run_requests=[_request(wish, lane, waiting) for wish in decision.wishes],
        dynamic_partitions_requests=adds,
        cursor=json.dumps({"formed": len(formed.keys), "requested": len(decision.wishes)}),
    )


def _request(wish: RunWish, lane: Lane, waiting: int) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=wish.run_key,
        partition_key=wish.batch.key,
        tags=run_tags(wish.batch.source, lane, "sensor", wish.batch.priority, wish.max_runtime + waiting),
    )


# The other lanes lie below every kind of batch of the search lane; copying is quick, enhancing is not.
_LANE_PRIORITY: dict[Lane, int] = {"search": 0, "enhance": -100, "archive": -50}


def run_tags(source: str, lane: Lane, by: str, priority: int, max_runtime: int) -> dict[str, str]:
    """The tags of a run, to filter by in the UI and to rank it in the queue."""
    return {
        "mirror-realm/source": source,
        "mirror-realm/lane": lane,
        "mirror-realm/by": by,
        "dagster/priority": str(priority + _LANE_PRIORITY[lane]),
        "dagster/max_runtime": str(max_runtime),
    }


def _missing(
    instance: dg.DagsterInstance, definition: dg.DynamicPartitionsDefinition, keys: Sequence[str]
) -> list[str]:
    name = definition.name
    if name is None:
        return []
    return [key for key in keys if not instance.has_dynamic_partition(name, key)]


def _why(decision: Decision, paused: Sequence[sources.Source]) -> str:
    parts = []
    if decision.leased:
        parts.append(f"{decision.leased} batches are being worked on")
    if decision.backing_off:
        parts.append(f"{decision.backing_off} batches wait for their next attempt")
    if decision.ended:
        parts.append(f"{len(decision.ended)} runs ended with work left and are asked for again")
    parts.extend(f"source {source.name} is paused: {source.state_reason or 'by hand'}" for source in paused)
    return "; ".join(parts) or "Nothing to do."
