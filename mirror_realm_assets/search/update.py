"""Bringing a source's index up to date as one worker: registered, with a heartbeat, under the index's lease.

An index of the embedder that the source had before goes when the wanted one has caught up with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mirror_realm_assets.catalog import sources, statistics, switching
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import clean_reason
from mirror_realm_assets.search.build import IndexReport, build_index
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.stages.worker import Worker


def update_index(
    services: Services,
    stages: Sequence[Stage],
    name: str,
    *,
    full: bool = True,
    rebuild: bool = False,
    run_id: str | None = None,
    kind: str = "run",
) -> IndexReport:
    """Take a source's new embeddings into its index.

    Args:
        services: settings, catalog, store.
        stages: the pipeline, whose embedding recipe tells which vectors belong together.
        name: of the source.
        full: see `build.build_index`.
        rebuild: see there.
        run_id: the Dagster run.
        kind: of worker: `run` or `ingest`.

    Raises:
        LeaseLost: another worker does it.
        Failed: a shard cannot be read.
    """
    statistics.refresh(services.catalog)
    with services.catalog.read() as conn:
        source = sources.get(conn, name)
    recipe = next(stage for stage in stages if stage.feature == "embeddings").recipe(source.policy)
    if recipe is None:
        raise ValueError("every policy wants embeddings")
    beat, lease = services.settings.heartbeat_seconds, services.settings.lease_seconds
    with Worker(services.catalog, kind, run_id, beat_seconds=beat, lease_seconds=lease) as worker:
        worker.doing = f"faiss_index {name}"
        try:
            report = build_index(
                services.catalog,
                services.store,
                source,
                recipe.digest,
                source.policy.embedder,
                worker_id=worker.id,
                lease_seconds=lease,
                run_id=run_id,
                full=full,
                rebuild=rebuild,
            )
        except Exception as error:
            with services.catalog.write() as conn:
                sources.set_index_error(conn, source.id, clean_reason(str(error)))
            raise
    with services.catalog.write() as conn:
        sources.index_succeeded(conn, source.id)
    if report.vectors:
        _retire_older(services.catalog, source, recipe.digest)
    return report


def _retire_older(catalog: Catalog, source: Source, recipe: str) -> None:
    with catalog.read() as conn:
        done = [
            older.recipe
            for older in switching.older_indexes(conn, source.id, recipe)
            if not switching.is_waited_for(conn, source.id, older.recipe, recipe)
        ]
    for older in done:
        with catalog.write() as conn:
            switching.retire(conn, source, older)
