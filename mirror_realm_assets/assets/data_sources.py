"""The asset `data_sources`: one partition a registered source, what is known of it."""

import dagster as dg

from mirror_realm_assets import op_tags
from mirror_realm_assets.assets.factory import OWNERS, StageList
from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.partitions import data_source
from mirror_realm_assets.resources.library import LibraryResource


def data_sources_asset(stages: StageList) -> dg.AssetsDefinition:
    """The asset, counting the features of a pipeline."""

    @dg.asset(
        partitions_def=data_source,
        description="A registered folder: its state, its policy and what became of its files.",
        group_name="ingest",
        kinds={"python"},
        owners=OWNERS,
        code_version="1",
        op_tags=op_tags.CPU,
    )
    def data_sources(context: dg.AssetExecutionContext, library: LibraryResource) -> dg.MaterializeResult[None]:
        rules = [stage.rule for stage in stages(library.settings)]
        with library.services.catalog.read() as conn:
            source = sources.get(conn, context.partition_key)
            found = status.of_source(conn, source, rules)
        return dg.MaterializeResult(
            metadata={
                "counts": dg.MetadataValue.json(found.as_json()),
                "files": found.files,
                "bytes": found.bytes,
                "state": source.state,
                "policy": dg.MetadataValue.json(source.policy.as_options()),
            }
        )

    return data_sources
