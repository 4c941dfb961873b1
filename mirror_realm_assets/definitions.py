"""The code location: everything that Dagster sees.

What belongs here: assembly. What does not: any decision. Building the definitions opens nothing and imports nothing
heavy, so that the code server stays small and a tick is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from mirror_realm_assets import cluster
from mirror_realm_assets.assets.data_sources import data_sources_asset
from mirror_realm_assets.assets.factory import StageList, stage_asset
from mirror_realm_assets.assets.faiss_index import faiss_index_asset
from mirror_realm_assets.checks.gates import embeddings_are_vectors, index_equals_ledger, no_systemic_failure
from mirror_realm_assets.jobs import index_job, lane_job
from mirror_realm_assets.maintenance import maintenance_job, maintenance_schedule
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.sensors.index import index_sensor
from mirror_realm_assets.sensors.lanes import archive_sensor, batch_sensor, enhance_sensor
from mirror_realm_assets.sensors.prune import prune_sensor
from mirror_realm_assets.sensors.reconcile import reconcile_sensor
from mirror_realm_assets.settings import Settings

_SEARCH = (
    "Reads, identifies and embeds the files of one batch, so that they can be searched. One partition is one batch. "
    "Running a batch again does only what is missing."
)
_ENHANCE = (
    "Enhances the pictures of one batch, for up to half an hour a run; what is left is asked for again by itself. One "
    "partition is one batch, which should have been through media_batch_job before."
)

_ARCHIVE = (
    "Copies the originals and enhanced pictures of one batch to the archive of its source, and reads them back. One "
    "partition is one batch of a source that has an archive."
)


def build_defs(
    *, resource_overrides: Mapping[str, Any] | None = None, stages: StageList = standard_stages
) -> dg.Definitions:
    """All definitions.

    Args:
        resource_overrides: replace resources by name, for tests.
        stages: the pipeline, for a process's settings.
    """
    settings = Settings.read()
    pipeline = stages(settings)
    search = lane_job("media_batch_job", pipeline, "search", _SEARCH, settings)
    enhance = lane_job("enhance_job", pipeline, "enhance", _ENHANCE, settings)
    archive = lane_job("archive_job", pipeline, "archive", _ARCHIVE, settings)
    index = index_job(settings)
    gates = [*[no_systemic_failure(stage) for stage in pipeline], embeddings_are_vectors(stages)]
    return dg.Definitions(
        assets=[
            data_sources_asset(stages, settings),
            *[
                stage_asset(stage, stages, settings, gates=[gate for gate in gates if gate.asset == stage.name])
                for stage in pipeline
            ],
            faiss_index_asset(stages, settings),
        ],
        asset_checks=[
            *([] if settings.on_cluster else [gate.definition for gate in gates]),
            index_equals_ledger(stages).definition,
        ],
        jobs=[search, enhance, archive, index, maintenance_job],
        schedules=[maintenance_schedule],
        sensors=[
            batch_sensor(search, stages),
            enhance_sensor(enhance, stages),
            archive_sensor(archive, stages),
            index_sensor(index, stages),
            reconcile_sensor,
            prune_sensor,
        ],
        resources={"library": LibraryResource(), **(resource_overrides or {})},
        executor=cluster.executor(settings),
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of this environment."""
    return build_defs()
