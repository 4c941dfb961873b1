"""The index sensor: sources with embeddings that their published index does not contain get an index run.

Pending is a set difference asked of the ledger, never a watermark, a count or a generation: those lose an update that
lands while a run is active. Most ticks ask it only of the pictures that the inbox names (`catalog.inbox`). A request
has no run key: a failed run would spend it, and the update would be lost. A storm of failing runs is prevented by
counting each request as a failure until the run publishes.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import dagster as dg
import sqlalchemy as sa

from mirror_realm_assets.assets.factory import StageList
from mirror_realm_assets.assets.faiss_index import IndexConfig
from mirror_realm_assets.catalog import batches, inbox, index, lacking, sources
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.inbox import Note
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.jobs import AssetJob
from mirror_realm_assets.partitions import data_source
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.sensors.lanes import active_partitions
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import lane_features

_RUNTIME_SECONDS = 3600
_BACKLOG_ITEMS = 2 * 500  # a file of the search lane is two items
_OTHERS_A_LOOK = 10_000  # notes that are for no index that is wanted
# A full look costs a second or two on 100,000 vectors, too much for every tick. It finds what is gone from the folders,
# which no search shows and which may lie in an index for a while, and what no note told of.
_LOOK_SECONDS = 300.0
_LOOK_SHARE = 0.05  # of the time: where it takes long it is done less often
# A look at a million vectors takes 5.5 s on PostgreSQL, and Dagster ends a tick after 60 s, with its cursor. An index
# that is larger is looked at by a run, once a day: for it nothing is too long.
_LOOKED_AT_IN_A_TICK = 2_000_000
_RUN_LOOK_SECONDS = 24 * 3600.0


class Due(NamedTuple):
    """A source that gets an index run, and whether that run looks at all its vectors."""

    source: Source
    full_look: bool


class _Cursor(NamedTuple):
    """When the tick looks at everything again, and when runs do, by the name of a source that is too large for a tick.

    It only spaces out: what is found is the ledger's.
    """

    tick: float
    runs: Mapping[str, float]

    @classmethod
    def read(cls, text: str | None) -> "_Cursor":
        found = json.loads(text or "0")
        return cls(float(found), {}) if not isinstance(found, dict) else cls(found["tick"], found["runs"])

    def __str__(self) -> str:
        return json.dumps({"tick": self.tick, "runs": dict(self.runs)})


def index_sensor(job: AssetJob, stages: StageList) -> dg.SensorDefinition:
    """Requests the index runs."""

    @dg.sensor(
        name="index_sensor",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests an index run for every source with embeddings that are not in its index yet.",
    )
    def _sensor(context: dg.SensorEvaluationContext, library: LibraryResource) -> dg.SensorResult | dg.SkipReason:
        services, settings = library.services, library.settings
        began = time.time()
        cursor = _Cursor.read(context.cursor)
        full_look = began >= cursor.tick
        run_looks = {name for name, at in cursor.runs.items() if began < at}
        due, waiting = due_sources(services, settings, stages, full_look=full_look, looked_at=run_looks)
        if due:
            active = active_partitions(context.instance, job.name)
            due = [one for one in due if one.source.name not in active]
        if full_look:
            took = time.time() - began
            cursor = cursor._replace(tick=began + max(_LOOK_SECONDS, took / _LOOK_SHARE))
        looking = {one.source.name: began + _RUN_LOOK_SECONDS for one in due if one.full_look}
        cursor = cursor._replace(runs={name: at for name, at in cursor.runs.items() if began < at} | looking)
        if str(cursor) != context.cursor:
            context.update_cursor(str(cursor))
        if not due:
            return dg.SkipReason("; ".join(waiting) or "No index run is due.")
        with services.catalog.write() as conn:
            for one in due:
                sources.index_failed(conn, one.source.id, sources.NOT_PUBLISHED)
        names = [one.source.name for one in due]
        new = [name for name in names if not context.instance.has_dynamic_partition("data_source", name)]
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    partition_key=one.source.name,
                    run_config=dg.RunConfig(ops={"faiss_index": IndexConfig(full_look=one.full_look)}),
                    tags=index_tags(one.source.name, "sensor"),
                )
                for one in due
            ],
            dynamic_partitions_requests=[data_source.build_add_request(new)] if new else [],
        )

    return _sensor


def index_tags(source: str, by: str) -> dict[str, str]:
    """The tags of an index run."""
    return {
        "mirror-realm/source": source,
        "mirror-realm/lane": "index",
        "mirror-realm/by": by,
        "dagster/priority": "10",  # short, and what people search in
        "dagster/max_runtime": str(_RUNTIME_SECONDS),
    }


def _is_filling(conn: sa.Connection, source: Source, recipe: str, settings: Settings, stages: StageList) -> bool:
    """Whether a large backlog is under way and the index was published a moment ago."""
    published = index.manifest(conn, source.id, recipe)
    if published is None or now(conn) - published.published_at >= timedelta(seconds=settings.index_backlog_seconds):
        return False
    waiting = batches.pending(conn, "search", lane_features(stages(settings), "search"), source_id=source.id)
    return sum(batch.open_items for batch in waiting) > _BACKLOG_ITEMS


def due_sources(
    services: Services,
    settings: Settings,
    stages: StageList,
    *,
    full_look: bool = True,
    looked_at: Collection[str] = (),
) -> tuple[list[Due], list[str]]:
    """Sources whose index lacks something and whose back-off is over; and words about those that wait.

    Args:
        services: catalog and store.
        settings: of this process.
        stages: the pipeline.
        full_look: compare all embeddings and members; else what the inbox names, which is cleared of what is not
            pending.
        looked_at: names of large sources that a run has looked at lately.
    """
    embeddings = next(stage for stage in stages(settings) if stage.feature == "embeddings")
    due: list[Due] = []
    waiting: list[str] = []
    idle: list[Note] = []
    with services.catalog.read() as conn:
        at = now(conn)
        for source in sources.all_sources(conn):
            try:
                recipe = embeddings.recipe(source.policy)
            except SetupError as error:  # an unknown model of one source must not stop the others
                waiting.append(f"{source.name}: {error}")
                continue
            if full_look:  # of an embedder that the source had before, or of none
                idle.extend(inbox.of_others(conn, source.id, recipe.digest if recipe else None, _OTHERS_A_LOOK))
            if recipe is None:
                continue
            found = _look(conn, source, recipe.digest, full_look=full_look, looked_at=looked_at)
            idle.extend(found.not_pending)
            if not found.lacks:
                continue
            if source.index_next_at is not None and source.index_next_at > at:
                seconds = (source.index_next_at - at).total_seconds()
                waiting.append(f"{source.name} waits {seconds:.0f} s after {source.index_attempts} tries")
                continue
            if _is_filling(conn, source, recipe.digest, settings, stages):
                waiting.append(f"{source.name} was published a moment ago, and many of its files are still to come")
                continue
            due.append(Due(source, found.full))
    if idle:
        with services.catalog.write() as conn:
            inbox.forget(conn, [note.id for note in idle])
    return due, waiting


class _Looked(NamedTuple):
    """Whether an index lacks something, whether its run is to look at everything, and notes that say nothing more."""

    lacks: bool
    full: bool
    not_pending: Sequence[Note] = ()


def _look(conn: sa.Connection, source: Source, recipe: str, *, full_look: bool, looked_at: Collection[str]) -> _Looked:
    large = full_look and _is_large(conn, source, recipe)
    if full_look and not large:
        lacks = lacking.count_pending(conn, source.id, recipe) or lacking.count_stale(conn, source.id, recipe)
        return _Looked(bool(lacks), full=True)
    lacks, not_pending = lacking.has_noted(conn, source.id, recipe)
    overdue = large and source.name not in looked_at
    return _Looked(bool(lacks) or overdue, overdue, not_pending)


def _is_large(conn: sa.Connection, source: Source, recipe: str) -> bool:
    published = index.manifest(conn, source.id, recipe)
    return published is not None and published.vectors > _LOOKED_AT_IN_A_TICK
