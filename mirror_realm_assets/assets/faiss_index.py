"""The asset `faiss_index`: one partition a source, the published search index of its embeddings."""

from typing import Any

import dagster as dg
from pydantic import Field

from mirror_realm_assets import op_tags
from mirror_realm_assets.assets import descriptions, links
from mirror_realm_assets.assets.factory import OWNERS, StageList
from mirror_realm_assets.catalog import index, sources
from mirror_realm_assets.catalog.index import Manifest
from mirror_realm_assets.partitions import data_source
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.search.build import IndexReport
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.settings import Settings

_MAX_SEGMENTS = 20


class IndexConfig(dg.Config):
    """How an index run looks for what is to be done."""

    full_look: bool = Field(
        default=True,
        description="Look at all embeddings of the source, and for files that are gone. The sensor asks for it every "
        "few minutes; otherwise a run takes in what was recorded since the last one.",
    )


def faiss_index_asset(stages: StageList, settings: Settings) -> dg.AssetsDefinition:
    """The asset, over the embeddings of a pipeline."""

    @dg.asset(
        partitions_def=data_source,
        # Between two different dynamic sets Dagster has no true mapping: the edge is for the eye, the ledger decides.
        deps=["embeddings"],
        description=descriptions.FAISS_INDEX,
        group_name="search",
        kinds={"faiss"},
        owners=OWNERS,
        tags=descriptions.tags("index", "source"),
        metadata=descriptions.metadata("index"),
        code_version="1",
        op_tags=op_tags.for_index(settings),
        # In the run's own process, as on a cluster, a step that waits for a pool spins on a core; the lease is enough.
        pool=None if settings.on_cluster else op_tags.POOL_INDEX,
    )
    def faiss_index(
        context: dg.AssetExecutionContext, config: IndexConfig, library: LibraryResource
    ) -> dg.MaterializeResult[None]:
        pipeline = stages(library.settings)
        report = update_index(
            library.services, pipeline, context.partition_key, full=config.full_look, run_id=context.run.run_id
        )
        embeddings = next(stage for stage in pipeline if stage.feature == "embeddings")
        with library.services.catalog.read() as conn:
            source = sources.get(conn, context.partition_key)
            recipe = embeddings.recipe(source.policy)
            manifest = index.manifest(conn, source.id, recipe.digest) if recipe else None
        shown = _numbers(report) | (_manifest(manifest) if manifest else {})
        return dg.MaterializeResult(metadata=shown | {"links": links.of_source(source.name, "data_sources")})

    return faiss_index


def _numbers(report: IndexReport) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": _summary(report),
        "vectors": report.vectors,
        "added": report.added,
        "removed": report.removed,
        "tombstones": report.tombstones,
        "segments": report.segments,
        "version": report.version,
        "seconds": dg.MetadataValue.float(round(report.seconds, 2)),
        "published": report.published,
        "counts": dg.MetadataValue.json({"vectors": report.vectors, "added": report.added, "removed": report.removed}),
    }
    if report.recall_at_10 is not None:  # an empty index has none, and 0 would be a bad one
        found["recall_at_10"] = dg.MetadataValue.float(round(report.recall_at_10, 4))
    return found


def _summary(report: IndexReport) -> str:
    if not report.published:
        if not report.version:
            return "There is nothing to index yet: no embedding of this source is recorded."
        return f"Nothing was missing: version {report.version} with {report.vectors} vectors stays as it is."
    gone = f", {report.removed} of files that are gone were taken out" if report.removed else ""
    added = "1 vector" if report.added == 1 else f"{report.added} vectors"
    return f"Version {report.version} is published: {added} added{gone}, {report.vectors} in all."


def _manifest(manifest: Manifest) -> dict[str, Any]:
    columns = [
        dg.TableColumn("segment", description="digest of its bytes"),
        dg.TableColumn("kind"),
        dg.TableColumn("vectors", "int", description="dead ones included"),
        dg.TableColumn("megabytes", "float"),
        dg.TableColumn("recall_at_10", "float", description="against exact search, when it was built"),
        dg.TableColumn("sealed", "bool", description="false: the write buffer, which the next build replaces"),
    ]
    rows = [
        dg.TableRecord(
            {
                "segment": entry.sha256[:12],
                "kind": entry.kind,
                "vectors": entry.count,
                "megabytes": round(entry.bytes / 1e6, 3),
                "recall_at_10": round(entry.recall_at_10, 4),
                "sealed": entry.sealed,
            }
        )
        for entry in manifest.segments[-_MAX_SEGMENTS:]
    ]
    return {
        "bytes": sum(entry.bytes for entry in manifest.segments),
        "model": manifest.model,
        "dimensions": manifest.dim,
        "recipe": manifest.recipe[:12],
        "newest_segments": dg.MetadataValue.table(rows, dg.TableSchema(columns=columns)),
    }
