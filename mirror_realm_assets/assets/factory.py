"""From a stage to an asset.

What belongs here: the one way in which a `Stage` becomes a partitioned asset. What does not: any stage, and what its
materializations show (`shown`). Our own assets and later those of workflows are built here, under their own key prefix.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from mirror_realm_assets import cluster, op_tags
from mirror_realm_assets.assets import descriptions
from mirror_realm_assets.assets.gate import Gate
from mirror_realm_assets.assets.shown import metadata_of
from mirror_realm_assets.catalog import gates as ledger
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import SetupError, SystemicFailure
from mirror_realm_assets.partitions import media_batch
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.report import StageReport
from mirror_realm_assets.stages.services import MODEL
from mirror_realm_assets.stages.stage import Stage

OWNERS = ["team:media"]
_PROGRESS_SECONDS = 10.0  # an event costs 25 ms and 1.5 KB on SQLite: progress is told, not streamed
StageList = Callable[[Settings], Sequence[Stage]]


def stage_asset(
    stage: Stage,
    stages: StageList,
    settings: Settings | None = None,
    *,
    key_prefix: Sequence[str] = (),
    gates: Sequence[Gate] = (),
    code_version: str = "1",
) -> dg.AssetsDefinition:
    """The partitioned asset that runs `stage` over a batch.

    Args:
        stage: what it runs.
        stages: all stages of its pipeline, for a process's settings, in dependency order.
        settings: of the process that builds the definitions, read when left out; they say where steps run.
        key_prefix: of the asset and of those it depends on.
        gates: the asset's checks; on a cluster they are done in its own step, elsewhere in steps of their own.
        code_version: shown in the UI; the ledger compares recipes, not this.
    """
    settings = settings or Settings.read()
    prefix = list(key_prefix)
    retry_policy = cluster.retry_policy(settings, stage.lane)
    own_gates = gates if settings.on_cluster else ()

    @dg.asset(
        name=stage.name,
        key_prefix=prefix or None,
        partitions_def=media_batch,
        # What needs nothing else comes from the registered folders.
        deps=[dg.AssetKey([*prefix, need]) for need in (*stage.needs, *stage.reads) or ("data_sources",)],
        description=descriptions.of_stage(stage),
        group_name=stage.group,
        kinds=set(stage.kinds),
        owners=OWNERS,
        tags=descriptions.tags(stage.lane, "batch"),
        metadata=descriptions.metadata(stage.lane, stage.feature),
        code_version=code_version,
        op_tags=op_tags.for_stage(stage, settings),
        pool=op_tags.pool_of(stage, settings),
        retry_policy=retry_policy,
        check_specs=[gate.spec for gate in own_gates],
    )
    # Without an argument: where an asset has checks of its own, Dagster knows the bare type only.
    def _asset(context: dg.AssetExecutionContext, library: LibraryResource) -> dg.MaterializeResult:
        settings = library.settings
        pipeline = stages(settings)
        mine = next((found for found in pipeline if found.name == stage.name), stage)
        try:
            report = run_stage(
                mine,
                context.partition_key,
                library.services,
                pipeline,
                run_id=context.run.run_id,
                slice_seconds=settings.slice_seconds if mine.lane != "search" else None,
                on_progress=_Progress(context.log.info),
            )
        except (SetupError, SystemicFailure) as error:
            if retry_policy is None:
                raise
            raise dg.Failure(str(error), allow_retries=False) from error  # the same again would fail the same way
        finally:
            library.services.let_go(MODEL)  # the next step of this process has its own
        with library.services.catalog.read() as conn:
            outcomes = ledger.outcomes(conn, context.partition_key, stage.feature)
            recipe = mine.recipe(ledger.policy_of(conn, context.partition_key))
        shown = metadata_of(report, outcomes)
        say = context.log.warning if report.skipped else context.log.info
        say(str(shown["summary"].value))
        return dg.MaterializeResult(
            metadata=shown,
            data_version=_version(outcomes, recipe),
            check_results=[gate.result(library, context.partition_key) for gate in own_gates],
        )

    return _asset


def _version(outcomes: Mapping[str, int], recipe: Recipe | None) -> dg.DataVersion:
    """The same as before when a batch was materialized again and nothing changed: what depends on it stays in step."""
    told = json.dumps([recipe.digest if recipe else None, sorted(outcomes.items())])
    return dg.DataVersion(hashlib.sha256(told.encode()).hexdigest()[:32])


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
