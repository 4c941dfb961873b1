"""The blocking checks: nothing systemic in a batch, embeddings that are vectors, an index that equals the ledger.

None has a `partitions_def` (preview in Dagster 1.13): a check in a partitioned run knows its partition key.
"""

import dagster as dg

from mirror_realm_assets.assets.factory import StageList
from mirror_realm_assets.catalog import gates, sources
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.search.verification import index_matches_ledger
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.understand.verification import bad_vectors

_SYSTEMIC_MIN = 20


def no_systemic_failure(stage: Stage) -> dg.AssetChecksDefinition:
    """Fails when more than half of at least 20 files of a batch failed with one code."""

    @dg.asset_check(
        asset=stage.name,
        name="no_systemic_failure",
        blocking=True,
        description="At most half of a batch (of at least 20 files) failed with one and the same code.",
    )
    def _check(context: dg.AssetCheckExecutionContext, library: LibraryResource) -> dg.AssetCheckResult:
        with library.services.catalog.read() as conn:
            found = gates.failures(conn, context.partition_key, stage.feature)
        code, count = max(found.codes.items(), key=lambda item: item[1], default=("", 0))
        systemic = found.items >= _SYSTEMIC_MIN and count * 2 > found.items
        return dg.AssetCheckResult(
            passed=not systemic,
            metadata={"items": found.items, "failed": sum(found.codes.values()), "worst_code": code or "none"},
        )

    return _check


def embeddings_are_vectors(stages: StageList) -> dg.AssetChecksDefinition:
    """Fails when a recorded embedding of the batch is not finite or not of length 1."""

    @dg.asset_check(
        asset="embeddings",
        name="embeddings_are_vectors",
        blocking=True,
        description="Every embedding of the batch can be read back from its shard, is finite and has length 1.",
    )
    def _check(context: dg.AssetCheckExecutionContext, library: LibraryResource) -> dg.AssetCheckResult:
        services = library.services
        with services.catalog.read() as conn:
            outputs = gates.outputs_of_batch(conn, context.partition_key, "embeddings")
        bad = bad_vectors(services.store, outputs)
        return dg.AssetCheckResult(passed=bad == 0, metadata={"vectors": len(outputs), "bad": bad})

    return _check


def index_equals_ledger(stages: StageList) -> dg.AssetChecksDefinition:
    """Fails when the published segments do not hold what the ledger says."""

    @dg.asset_check(
        asset="faiss_index",
        name="index_equals_ledger",
        blocking=True,
        description="The published segments hold exactly the vectors that the ledger names.",
    )
    def _check(context: dg.AssetCheckExecutionContext, library: LibraryResource) -> dg.AssetCheckResult:
        services = library.services
        with services.catalog.read() as conn:
            source = sources.get(conn, context.partition_key)
        embeddings = next(stage for stage in stages(library.settings) if stage.feature == "embeddings")
        recipe = embeddings.recipe(source.policy)
        if recipe is None:
            return dg.AssetCheckResult(passed=True, metadata={"vectors": 0})
        counted, members = index_matches_ledger(services.catalog, services.store, source, recipe.digest)
        return dg.AssetCheckResult(passed=counted == members, metadata={"in_manifest": counted, "in_ledger": members})

    return _check
