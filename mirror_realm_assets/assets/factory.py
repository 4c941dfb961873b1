"""From a stage to an asset.

What belongs here: the one way in which a `Stage` becomes a partitioned asset, and what its materializations show. What
does not: any stage. Our own assets and later those of workflows are built here, under their own key prefix.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from mirror_realm_assets import op_tags
from mirror_realm_assets.assets.glance import glance, preview
from mirror_realm_assets.partitions import media_batch
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.report import StageReport
from mirror_realm_assets.stages.stage import Stage

OWNERS = ["team:media"]
_PROGRESS_SECONDS = 10.0  # an event costs 25 ms and 1.5 KB on SQLite: progress is told, not streamed
_MAX_REASONS = 20
StageList = Callable[[Settings], Sequence[Stage]]


def stage_asset(
    stage: Stage, stages: StageList, *, key_prefix: Sequence[str] = (), code_version: str = "1"
) -> dg.AssetsDefinition:
    """The partitioned asset that runs `stage` over a batch.

    Args:
        stage: what it runs.
        stages: all stages of its pipeline, for a process's settings, in dependency order.
        key_prefix: of the asset and of those it depends on.
        code_version: shown in the UI; the ledger compares recipes, not this.
    """
    prefix = list(key_prefix)

    @dg.asset(
        name=stage.name,
        key_prefix=prefix or None,
        partitions_def=media_batch,
        # What needs nothing else comes from the registered folders.
        deps=[dg.AssetKey([*prefix, need]) for need in stage.needs or ("data_sources",)],
        description=stage.description,
        group_name=stage.group,
        kinds=set(stage.kinds),
        owners=OWNERS,
        code_version=code_version,
        op_tags=op_tags.for_resource(stage.resource),
        pool=stage.pool,
    )
    def _asset(context: dg.AssetExecutionContext, library: LibraryResource) -> dg.MaterializeResult[None]:
        settings = library.settings
        pipeline = stages(settings)
        mine = next((found for found in pipeline if found.name == stage.name), stage)
        report = run_stage(
            mine,
            context.partition_key,
            library.services,
            pipeline,
            run_id=context.run.run_id,
            slice_seconds=settings.slice_seconds if mine.lane == "enhance" else None,
            on_progress=_Progress(context.log.info),
        )
        if report.skipped:
            context.log.warning(f"{report.skipped} Nothing was done here.")
        return dg.MaterializeResult(metadata=metadata_of(report))

    return _asset


def metadata_of(report: StageReport) -> Mapping[str, dg.MetadataValue]:
    """What a materialization shows: counts, rates, reasons, pictures; no path and no name."""
    counts = {status: report.counts.get(status, 0) for status in ("ok", "empty", "refused", "failed")}
    seconds = max(report.seconds, 0.001)
    found: dict[str, dg.MetadataValue] = {
        "counts": dg.MetadataValue.json(
            {**counts, "items": report.items, "already_done": _already_done(report), "open": report.open_items}
        ),
        "seconds": dg.MetadataValue.float(round(report.seconds, 2)),
        "pictures_per_second": dg.MetadataValue.float(round(report.done / seconds, 2)),
        "megapixels": dg.MetadataValue.float(round(report.pixels / 1e6, 3)),
        "bytes": dg.MetadataValue.int(report.size),
    }
    for name, value in (("glance", glance(report.pictures)), ("preview", preview(report.pictures))):
        if value:
            found[name] = dg.MetadataValue.md(value)
    if report.recipes:
        found["recipes"] = dg.MetadataValue.json({recipe: {"model": m} for recipe, m in report.recipes.items()})
    if report.refused:
        found["refused"] = dg.MetadataValue.table(_reasons(report))
    if report.skipped or report.stopped:
        found["stopped"] = dg.MetadataValue.text(report.skipped or report.stopped or "")
    return found


def _already_done(report: StageReport) -> int:
    return 0 if report.skipped else max(report.items - report.done - report.open_items, 0)


def _reasons(report: StageReport) -> list[dg.TableRecord]:
    rows: list[dict[str, Any]] = [
        {"status": status, "code": code, "reason": _plain(reason), "files": count}
        for (status, code, reason), count in report.refused.most_common(_MAX_REASONS)
    ]
    return [dg.TableRecord(row) for row in rows]


def _plain(text: str) -> str:
    """Text as text: the UI renders table cells, and a reason may quote what a file says."""
    return text.replace("<", "‹").replace(">", "›")


class _Progress:
    """Tells the run's log how far it is, at most every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = self._told = time.monotonic()

    def __call__(self, report: StageReport, total: int) -> None:
        at = time.monotonic()
        if at - self._told < _PROGRESS_SECONDS:
            return
        self._told = at
        rate = report.done / max(at - self._began, 0.001)
        left = (total - report.done) / rate if rate else 0.0
        self._say(f"{report.done} of {total}, {rate:.2f} pictures a second, about {left:.0f} s left")
