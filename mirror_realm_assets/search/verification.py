"""Whether a published index holds what the ledger says: what its check asks."""

from __future__ import annotations

from mirror_realm_assets.catalog import index
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.search.segments import SegmentCache, load_segment
from mirror_realm_assets.store.interface import Store

_CACHE_BYTES = 1 << 28


def index_matches_ledger(catalog: Catalog, store: Store, source: Source, recipe: str) -> tuple[int, int]:
    """Live vectors that the published manifest counts, and live members that the ledger names in its segments.

    Every segment is read and verified on the way: its digest, its label and how many vectors it holds.

    Raises:
        Failed: when a segment is missing or altered.
    """
    with catalog.read() as conn:
        manifest = index.manifest(conn, source.id, recipe)
        if manifest is None:
            return 0, 0
        members = sum(len(index.members_of(conn, entry.sha256)) for entry in manifest.segments)
    cache = SegmentCache(_CACHE_BYTES)
    for entry in manifest.segments:
        load_segment(store, entry, source=source.uuid, recipe=recipe, dim=manifest.dim, cache=cache)
    return manifest.vectors, members
