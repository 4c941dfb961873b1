"""The asset `faiss_index`: one partition a source, the published search index of its embeddings."""

import dagster as dg

from mirror_realm_assets import op_tags
from mirror_realm_assets.assets.factory import OWNERS, StageList
from mirror_realm_assets.partitions import data_source
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.search.update import update_index


def faiss_index_asset(stages: StageList) -> dg.AssetsDefinition:
    """The asset, over the embeddings of a pipeline."""

    @dg.asset(
        partitions_def=data_source,
        # Between two different dynamic sets Dagster has no true mapping: the edge is for the eye, the ledger decides.
        deps=["embeddings"],
        description="The published search index of a source: every verified embedding, in segments that a manifest "
        "names. A cache: it can always be built again from the shards.",
        group_name="search",
        kinds={"faiss"},
        owners=OWNERS,
        code_version="1",
        op_tags=op_tags.CPU,
        pool=op_tags.POOL_INDEX,
    )
    def faiss_index(context: dg.AssetExecutionContext, library: LibraryResource) -> dg.MaterializeResult[None]:
        pipeline = stages(library.settings)
        report = update_index(library.services, pipeline, context.partition_key, run_id=context.run.run_id)
        return dg.MaterializeResult(
            metadata={
                "counts": dg.MetadataValue.json({"vectors": report.vectors, "added": report.added}),
                "vectors": report.vectors,
                "added": report.added,
                "tombstones": report.tombstones,
                "segments": report.segments,
                "recall_at_10": dg.MetadataValue.float(float(report.recall_at_10 or 0.0)),
                "version": report.version,
                "seconds": dg.MetadataValue.float(round(report.seconds, 2)),
                "published": report.published,
            }
        )

    return faiss_index
