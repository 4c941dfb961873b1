"""Running batches in this process, without a daemon: what `mirror-realm ingest` does.

What belongs here: one source's pending batches through Dagster's own jobs, so that the UI shows these runs like all
others. What does not: forming batches (`ingest.batching`) and deciding what is missing (the ledger). A batch's lease
keeps it from being run twice; pools do not bind runs in a process of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import dagster as dg

from mirror_realm_assets.catalog import lacking, sources
from mirror_realm_assets.catalog.batches import PendingBatch
from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.ingest.batching import Former
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.recovery import RUN_BY_WORKER
from mirror_realm_assets.sensors.index import index_tags
from mirror_realm_assets.sensors.lanes import run_tags
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.lanes import pending_of
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Lane, Stage

_JOBS: dict[Lane, str] = {"search": "media_batch_job", "enhance": "enhance_job", "archive": "archive_job"}
# Dagster's log of a run belongs into its event log, not between the lines of a progress.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_MAX_RUNTIME = 7 * 24 * 3600
# A batch whose run makes no headway is left to the next call.
_MAX_ROUNDS = 100
_RETRY_POLL_SECONDS = 1.0


@dataclass
class Ran:
    """What was run: batches by lane, and errors of runs that failed."""

    batches: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run_source(
    settings: Settings, services: Services, instance: dg.DagsterInstance, name: str, say: Callable[[str], None]
) -> Ran:
    """Run everything pending of a source: the search lane, the index, the enhancement lane, the archive.

    Args:
        settings: of this process.
        services: catalog, store, models.
        instance: where the runs are recorded.
        name: of the source.
        say: told about each step.
    """
    definitions = build_defs()
    stages = standard_stages(settings)
    ran = Ran()
    _run_lane(settings, services, instance, definitions, stages, name, "search", ran, say)
    _run_index(settings, services, instance, definitions, stages, name, ran, say)
    _run_lane(settings, services, instance, definitions, stages, name, "enhance", ran, say)
    _run_lane(settings, services, instance, definitions, stages, name, "archive", ran, say)
    return ran


def make_known(
    settings: Settings, services: Services, instance: dg.DagsterInstance, name: str
) -> dict[str, list[Lane]]:
    """Add the partition keys of a source and of its unfinished batches, so that anybody may run them.

    Returns:
        For each such batch the lanes in which something is pending, those first that come first.
    """
    stages = standard_stages(settings)
    found: dict[str, list[Lane]] = {}
    for lane in _JOBS:
        for batch in _pending(services, stages, name, lane):
            found.setdefault(batch.key, []).append(lane)
    instance.add_dynamic_partitions("media_batch", list(found))
    instance.add_dynamic_partitions("data_source", [name])
    return found


def _run_lane(
    settings: Settings,
    services: Services,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    stages: Sequence[Stage],
    name: str,
    lane: Lane,
    ran: Ran,
    say: Callable[[str], None],
) -> None:
    job = definitions.resolve_job_def(_JOBS[lane])
    failed: set[str] = set()
    for _round in range(_MAX_ROUNDS):
        waiting = [batch for batch in _pending(services, stages, name, lane) if batch.key not in failed]
        todo = [batch for batch in waiting if batch.not_before is None]
        if not waiting or (lane == "enhance" and _is_out_of_space(settings, services, say)):
            return
        if not todo:  # retries are due within a minute: what is pending is done before this ends
            time.sleep(_RETRY_POLL_SECONDS)
            continue
        for batch in todo:
            instance.add_dynamic_partitions("media_batch", [batch.key])
            point("ingest.key_added")
            result = job.execute_in_process(
                partition_key=batch.key,
                instance=instance,
                run_config=_QUIET,
                tags={**run_tags(name, lane, "cli", batch.priority, _MAX_RUNTIME), **_mine(services)},
                raise_on_error=False,
            )
            ran.batches.append(batch.key)
            if not result.success:
                failed.add(batch.key)
                ran.errors.append(_error_of(result))


def _mine(services: Services) -> dict[str, str]:
    """Tells whose run it is from its creation on: killed before the run has said its pid, it is ended all the same."""
    return {RUN_BY_WORKER: services.held("former", lambda: Former(services.catalog)).worker_id}


def _pending(services: Services, stages: Sequence[Stage], name: str, lane: Lane) -> list[PendingBatch]:
    with services.catalog.read() as conn:
        source = sources.get(conn, name)
        found = pending_of(conn, stages, lane, source_id=source.id)
    return [batch for batch in found if not batch.leased]


def _is_out_of_space(settings: Settings, services: Services, say: Callable[[str], None]) -> bool:
    free = services.store.free_bytes()
    if free is None or free >= settings.low_space_bytes:
        return False
    say(f"Enhancement rests: {free / 1e9:.1f} GB are free, below the mark of {settings.low_space_bytes / 1e9:.1f} GB.")
    return True


def _run_index(
    settings: Settings,
    services: Services,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    stages: Sequence[Stage],
    name: str,
    ran: Ran,
    say: Callable[[str], None],
) -> None:
    recipe_of = next(stage for stage in stages if stage.feature == "embeddings").recipe
    with services.catalog.read() as conn:
        source = sources.get(conn, name)
        recipe = recipe_of(source.policy)
        pending = lacking.count_pending(conn, source.id, recipe.digest) if recipe else 0
        stale = lacking.count_stale(conn, source.id, recipe.digest) if recipe else 0
    if not pending and not stale:
        return
    say(f"Indexing {pending} new embeddings.")
    instance.add_dynamic_partitions("data_source", [name])
    result = definitions.resolve_job_def("index_job").execute_in_process(
        partition_key=name,
        instance=instance,
        run_config=_QUIET,
        tags={**index_tags(name, "cli"), **_mine(services)},
        raise_on_error=False,
    )
    if not result.success:
        ran.errors.append(_error_of(result))


def _error_of(result: dg.ExecuteInProcessResult) -> str:
    """The innermost error of a failed run, in one line."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            if error is not None:
                return error.message.strip()
    return "The run failed; its log is in the Dagster UI."
