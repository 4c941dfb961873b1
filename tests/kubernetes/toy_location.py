"""Definitions with toy stages that misbehave when a file in the home says so, for pods.

What is computed is told in `computed.log` of the home, as in `counted_stages`. Importing this module changes the
pipeline of the process: no test does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
from counted_stages import counted_stages

from mirror_realm_assets import pipeline
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.stage import Result, Stage

_TOO_MUCH = 3 << 30  # above the limit of a toy stage's pod


def toy_stages(settings: Settings) -> tuple[Stage, ...]:
    """The toy stages; those that would load a model want a GPU."""
    return tuple(_misbehaving(stage, settings.home) for stage in counted_stages(settings))


def _misbehaving(stage: Stage, home: Path) -> Stage:
    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        if _once(home, f"{stage.name}.fails"):
            raise RuntimeError("as it was told to")
        if _once(home, f"{stage.name}.swells"):
            held = bytearray(_TOO_MUCH)
            time.sleep(60)
            del held
        while (home / f"{stage.name}.rests").exists():
            time.sleep(0.2)
        yield from stage.run(works, context)

    resource = "cpu" if stage.name in ("raw_media", "archived_media") else "gpu"
    return replace(stage, run=run, resource=resource)


def _once(home: Path, name: str) -> bool:
    """Whether the file is there; it is gone then."""
    try:
        (home / name).unlink()
    except FileNotFoundError:
        return False
    return True


pipeline.standard_stages = toy_stages


@dg.definitions
def defs() -> dg.Definitions:
    from mirror_realm_assets.definitions import build_defs

    return build_defs(stages=toy_stages)
