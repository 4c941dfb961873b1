"""A code location in which a picture of a certain width ends the process that embeds it, as running out of memory does.

Only its own tests load it: `dagster-daemon run -m killer_location`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import dagster as dg

from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.stage import Result, Stage

KILLER_WIDTH = 77


def deadly_stages(settings: Settings) -> tuple[Stage, ...]:
    """The standard pipeline, whose embeddings die of one picture."""
    return tuple(_deadly(stage) if stage.name == "embeddings" else stage for stage in standard_stages(settings))


def _deadly(stage: Stage) -> Stage:
    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        yield from stage.run(_until_killed(works), context)

    return replace(stage, run=run)


def _until_killed(works: Iterable[Work]) -> Iterator[Work]:
    for work in works:
        if work.subject.width == KILLER_WIDTH:
            os._exit(137)
        yield work


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs(stages=deadly_stages)
