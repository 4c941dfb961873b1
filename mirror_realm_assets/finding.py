"""Finding pictures like a given one: from a file to hits with full paths.

What belongs here: joining the embedder with the search. What does not: either of them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.ingest.stage import decoder
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.flow import decode_proxy
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.understand.stage import embedder

if TYPE_CHECKING:
    from mirror_realm_assets.search.query import Hit


def find_like(
    settings: Settings, services: Services, picture: Path, *, count: int = 10, source_name: str | None = None
) -> list[Hit]:
    """The pictures most like a file, best first; the file itself is found like any other.

    Sources with different embedders are searched with their own model each; scores of different models cannot be
    compared, so the best model's hits come whole before the next one's.

    Args:
        settings: of this process.
        services: catalog, store, models.
        picture: read and decoded as untrusted, never kept.
        count: how many hits.
        source_name: search one source only.

    Returns:
        Hits whose `paths` are absolute.

    Raises:
        Refused: the file is no picture we can decode.
        Failed: it cannot be read.
        SetupError: unknown source, missing weights.
    """
    from mirror_realm_assets.search.query import search

    with services.catalog.read() as conn:
        chosen = [sources.get(conn, source_name)] if source_name else sources.all_sources(conn)
    path = picture.expanduser().absolute()
    folder, name = os.fsencode(path.parent), os.fsencode(path.name)
    with read_original(folder, name, max_bytes=settings.max_file_bytes) as original:
        decoded = decoder(services).proxy(original.fd, long_side=settings.proxy_long_side)
    image = decode_proxy(decoded.proxy)
    stage = next(stage for stage in standard_stages(settings) if stage.feature == "embeddings")
    by_recipe: dict[str, list[Source]] = {}
    for source in chosen:
        recipe = stage.recipe(source.policy)
        if recipe is not None:
            by_recipe.setdefault(recipe.digest, []).append(source)
    hits: list[Hit] = []
    for recipe_digest, group in by_recipe.items():
        model = embedder(services, group[0].policy.embedder)
        found = search(
            services.catalog,
            services.store,
            model.embed([image])[0],
            recipe=recipe_digest,
            model=model.name,
            source_ids=[source.id for source in group],
            k=count,
        )
        roots = {source.name: source.root for source in group}
        hits.extend(_absolute(hit, roots[hit.source]) for hit in found)
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits[:count], 1)]


def _absolute(hit: Hit, root: bytes) -> Hit:
    return replace(hit, paths=[os.path.join(root, path) for path in hit.paths])  # noqa: PTH118 - bytes
