"""The asset `data_sources`: one partition a registered source, what is known of it."""

import dagster as dg

from mirror_realm_assets import op_tags
from mirror_realm_assets.assets import descriptions, links
from mirror_realm_assets.assets.factory import OWNERS, StageList
from mirror_realm_assets.assets.reasons import words_of
from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.catalog.status import STATUSES, SourceStatus
from mirror_realm_assets.partitions import data_source
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings


def data_sources_asset(stages: StageList, settings: Settings) -> dg.AssetsDefinition:
    """The asset, counting the features of a pipeline."""

    @dg.asset(
        partitions_def=data_source,
        description=descriptions.DATA_SOURCES,
        group_name="ingest",
        kinds={"python"},
        owners=OWNERS,
        tags=descriptions.tags("index", "source"),
        metadata=descriptions.metadata("index"),
        code_version="1",
        op_tags=op_tags.for_index(settings),
    )
    def data_sources(context: dg.AssetExecutionContext, library: LibraryResource) -> dg.MaterializeResult[None]:
        rules = [stage.rule for stage in stages(library.settings)]
        services = library.services
        with services.catalog.read() as conn:
            source = sources.get(conn, context.partition_key)
            found = status.of_source(conn, source, rules, services.limits())
        if found.state_reason:
            found.state_reason = words_of("paused", found.state_reason)
        return dg.MaterializeResult(
            metadata={
                "summary": _summary(found),
                "features": _features(found),
                "files": found.files,
                "bytes": found.bytes,
                "batches": found.batches,
                "state": f"{found.state}: {found.state_reason}" if found.state_reason else found.state,
                "policy": dg.MetadataValue.json(source.policy.as_options()),
                "links": links.of_source(source.name, "faiss_index"),
                "counts": dg.MetadataValue.json(found.as_json()),
            }
        )

    return data_sources


def _summary(found: SourceStatus) -> str:
    waiting = sum(counts["pending"] + counts["running"] for counts in found.features.values())
    batches = "1 batch" if found.batches == 1 else f"{found.batches} batches"
    told = f"{found.files} files, {found.bytes / 1e6:.1f} MB, in {batches}."
    # Not the index's own count: this asset is recorded before the index of the same run is published.
    searchable = found.features.get("embeddings", {}).get("ok", 0)
    left = f"{waiting} results are still to come." if waiting else "Everything wanted is done."
    return f"{told} {searchable} pictures can be searched. {left}"


def _features(found: SourceStatus) -> dg.TableMetadataValue:
    """What became of the files, a row a feature."""
    columns = [dg.TableColumn("feature"), *[dg.TableColumn(name, "int") for name in STATUSES]]
    rows = [
        dg.TableRecord({"feature": feature, **{name: counts[name] for name in STATUSES}})
        for feature, counts in found.features.items()
    ]
    return dg.MetadataValue.table(rows, dg.TableSchema(columns=columns))
