"""The toy stages of `cheap_stages`, which tell what they compute; for programs and tests of `cheap_programs`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cheap_stages import cheap_stages

from mirror_realm_assets import op_tags
from mirror_realm_assets.catalog.items import RAW, Work
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.stage import Result, Stage

COMPUTED = "computed.log"


def counted_stages(settings: Settings) -> tuple[Stage, ...]:
    """The toy stages; what they compute is told."""
    return tuple(_counted(stage, settings.home / COMPUTED) for stage in cheap_stages(settings))


def _counted(stage: Stage, log: Path) -> Stage:
    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for result in stage.run(works, context):
            if not result.known:
                _tell(log, result)
            yield result

    # As in the standard pipeline: two runs at once would do the pictures that are in both of their batches twice.
    return replace(stage, run=run, pool=op_tags.POOL_ENHANCE if stage.lane == "enhance" else op_tags.POOL_EMBED)


def _tell(log: Path, result: Result) -> None:
    work, me = result.work, identity()
    digest = work.subject.image_digest
    if work.feature == RAW:
        digest = result.identified.digest if result.identified else None
    recipe = work.recipe.digest if work.recipe else None
    line = f"{me.pid} {me.started} {work.feature} {digest} {work.subject.part} {recipe} {result.finding.status}\n"
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
