"""The jobs.

What belongs here: which assets run together, and the tags of runs that a person launches. What does not: when they run
by themselves (`sensors`, whose tags replace these). The lanes are jobs of their own, so that a picture can be searched
before anything is enhanced; one job over both partition sets cannot be resolved anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from mirror_realm_assets import cluster
from mirror_realm_assets.catalog.batches import PRIORITY
from mirror_realm_assets.catalog.forming import KEY
from mirror_realm_assets.partitions import data_source, media_batch
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Lane, Stage

AssetJob = Any  # what `dg.define_asset_job` returns has no public name


def lane_job(name: str, stages: Sequence[Stage], lane: Lane, description: str, settings: Settings) -> AssetJob:
    """The job that runs a lane's assets of one batch."""
    copies = lane == "archive"  # it moves bytes and computes nothing
    keys = [stage.name for stage in stages if stage.lane == lane]
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*keys),
        description=description,
        config=_tagged(media_batch, lambda key: found["source"] if (found := KEY.fullmatch(key)) else None),
        tags=_by_hand(lane) | (cluster.one_pod_tags(settings) if copies else {}),
        **(cluster.one_pod(settings) if copies else {}),
    )


def index_job(settings: Settings) -> AssetJob:
    """The job that brings a source's index and counts up to date."""
    return dg.define_asset_job(
        "index_job",
        selection=dg.AssetSelection.assets("data_sources", "faiss_index"),
        description="Publishes a source's new embeddings in its search index, and records its counts. One partition is "
        "one source. With nothing new it leaves the published index alone.",
        config=_tagged(data_source, lambda key: key),
        tags=_by_hand("index") | cluster.one_pod_tags(settings),
        **cluster.one_pod(settings),
    )


def _by_hand(lane: str) -> dict[str, str]:
    """Tags of a run that somebody launches: a person waits for it, as for a request."""
    return {
        "mirror-realm/lane": lane,
        "mirror-realm/by": "hand",
        "dagster/priority": str(PRIORITY["request"]),
    }


def _tagged(
    partitions: dg.DynamicPartitionsDefinition, source_of: Callable[[str], str | None]
) -> dg.PartitionedConfig[dg.DynamicPartitionsDefinition]:
    """No configuration, and the tag of the source, which every run of a partition gets whoever launches it."""

    def tags(key: str) -> dict[str, str]:
        source = source_of(key)
        return {"mirror-realm/source": source} if source else {}

    return dg.PartitionedConfig(
        partitions_def=partitions, run_config_for_partition_key_fn=lambda _key: {}, tags_for_partition_key_fn=tags
    )
