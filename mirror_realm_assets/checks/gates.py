"""The blocking checks: nothing systemic in a batch, embeddings that are vectors, an index that equals the ledger.

None has a `partitions_def` (preview in Dagster 1.13): a check in a partitioned run knows its partition key. Each says
in words what it found, green or not; what it cannot read is no error of the check but a reason not to pass.
"""

import dagster as dg

from mirror_realm_assets.assets.factory import StageList
from mirror_realm_assets.assets.gate import Gate
from mirror_realm_assets.assets.reasons import words_of
from mirror_realm_assets.catalog import gates, sources
from mirror_realm_assets.catalog.gates import Failures
from mirror_realm_assets.errors import NOT_SYSTEMIC, REASONS, Failed
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.search.verification import index_matches_ledger
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.understand.verification import bad_vectors

_SYSTEMIC_MIN = 20


def no_systemic_failure(stage: Stage) -> Gate:
    """Fails when more than half of at least 20 files of a batch failed with one code."""

    def look(library: LibraryResource, key: str) -> dg.AssetCheckResult:
        with library.services.catalog.read() as conn:
            found = gates.failures(conn, key, stage.feature)
        # Half of a folder may well be moved or deleted before it is read.
        codes = {code: count for code, count in found.codes.items() if code not in NOT_SYSTEMIC}
        items = found.items - sum(found.codes.values()) + sum(codes.values())
        most = max(codes.values(), default=0)
        systemic = items >= _SYSTEMIC_MIN and most * 2 > items
        code, count = max((codes if systemic else found.codes).items(), key=lambda item: item[1], default=("", 0))
        return dg.AssetCheckResult(
            passed=not systemic,
            description=_about_failures(found, code, count, systemic=systemic),
            metadata={"items": found.items, "failed": sum(found.codes.values()), "worst_code": code or "none"},
        )

    return Gate(
        stage.name,
        "no_systemic_failure",
        "At most half of a batch (of at least 20 files) failed with one and the same code: more would be "
        "the machine's fault and not the files'. Files that were refused, or moved, deleted or written meanwhile, are "
        "no failures.",
        look,
    )


def _about_failures(found: Failures, code: str, count: int, *, systemic: bool) -> str:
    failed = sum(found.codes.values())
    if not failed:
        return f"None of {found.items} files failed."
    told = f"{failed} of {found.items} files failed, {count} of them with {code}: {REASONS[code].remedy}"
    if systemic:
        return f"{told} That is more than half with one code, so what depends on this batch does not run."
    return told


def embeddings_are_vectors(stages: StageList) -> Gate:
    """Fails when a recorded embedding of the batch cannot be read, is not finite or not of length 1."""

    def look(library: LibraryResource, key: str) -> dg.AssetCheckResult:
        services = library.services
        with services.catalog.read() as conn:
            outputs = gates.outputs_of_batch(conn, key, "embeddings")
        try:
            bad = bad_vectors(services.store, outputs)
        except Failed as error:
            return _unreadable(error, {"vectors": len(outputs)})
        told = f"All {len(outputs)} vectors were read back, are finite and have length 1."
        if bad:
            told = f"{bad} of {len(outputs)} vectors are not finite or have not length 1: the model made no direction."
        return dg.AssetCheckResult(passed=bad == 0, description=told, metadata={"vectors": len(outputs), "bad": bad})

    return Gate(
        "embeddings",
        "embeddings_are_vectors",
        "Every embedding of the batch can be read back from its shard, is finite and has length 1.",
        look,
    )


def index_equals_ledger(stages: StageList) -> Gate:
    """Fails when the published segments cannot be read, or do not hold what the ledger says."""

    def look(library: LibraryResource, key: str) -> dg.AssetCheckResult:
        services = library.services
        with services.catalog.read() as conn:
            source = sources.get(conn, key)
        embeddings = next(stage for stage in stages(library.settings) if stage.feature == "embeddings")
        recipe = embeddings.recipe(source.policy)
        if recipe is None:
            return dg.AssetCheckResult(passed=True, description="No index is wanted.", metadata={"vectors": 0})
        try:
            counted, members = index_matches_ledger(services.catalog, services.store, source, recipe.digest)
        except Failed as error:
            return _unreadable(error, {})
        told = f"The index and the ledger both name {counted} vectors."
        if counted != members:
            told = f"The index counts {counted} vectors, the ledger {members}. Searches go on with what is published."
        return dg.AssetCheckResult(
            passed=counted == members,
            description=told,
            metadata={"in_manifest": counted, "in_ledger": members},
        )

    return Gate(
        "faiss_index",
        "index_equals_ledger",
        "The published segments can be read and hold exactly the vectors that the ledger names.",
        look,
    )


def _unreadable(error: Failed, metadata: dict[str, int]) -> dg.AssetCheckResult:
    """What was recorded cannot be read back: the check says so instead of ending with an error."""
    return dg.AssetCheckResult(
        passed=False,
        description=f"{words_of(error.code, error.message)} {error.remedy}",
        metadata={**metadata, "code": error.code},
    )
