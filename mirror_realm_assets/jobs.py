"""The three jobs.

What belongs here: which assets run together. What does not: when (`sensors`). The two lanes are two jobs, so that a
picture can be searched before anything is enhanced; one job over both partition sets cannot be resolved anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from mirror_realm_assets.stages.stage import Lane, Stage

AssetJob = Any  # what `dg.define_asset_job` returns has no public name


def lane_job(name: str, stages: Sequence[Stage], lane: Lane, description: str) -> AssetJob:
    """The job that runs a lane's assets of one batch."""
    keys = [stage.name for stage in stages if stage.lane == lane]
    return dg.define_asset_job(name, selection=dg.AssetSelection.assets(*keys), description=description)


def index_job() -> AssetJob:
    """The job that brings a source's index and counts up to date."""
    return dg.define_asset_job(
        "index_job",
        selection=dg.AssetSelection.assets("data_sources", "faiss_index"),
        description="Publishes a source's new embeddings in its search index, and records its counts.",
    )
