"""What a search goes by: manifests and pending vectors, as they were at one moment.

What belongs here: reading them, and telling whether they still hold. What does not:
scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mirror_realm_assets.catalog import index, lacking, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.index import SegmentEntry
from mirror_realm_assets.catalog.lacking import PendingVector

Subject = tuple[str, int]  # image digest and part


@dataclass(frozen=True)
class View:
    """What the ledger said when a search began.

    Attributes:
        recipe: digest of the recipe of the embeddings.
        source_ids: the sources that are searched.
        versions: of their manifests, by source; as they were before anything else was read.
        segments: uuid of the source, length of a vector, and entry, of every segment.
        pending: recorded vectors that are in none of these manifests, each picture once.
    """

    recipe: str
    source_ids: tuple[int, ...]
    versions: Mapping[int, int]
    segments: tuple[tuple[str, int, SegmentEntry], ...]
    pending: tuple[PendingVector, ...]

    @classmethod
    def read(cls, catalog: Catalog, source_ids: Sequence[int] | None, recipe: str) -> View:
        """What there is to search in these sources (None: in all), under one recipe."""
        with catalog.read() as conn:
            chosen = [one for one in sources.all_sources(conn) if source_ids is None or one.id in source_ids]
            ids = tuple(one.id for one in chosen)
            # Versions first: whatever is published after this, even between the next queries, is seen in the end.
            versions = index.versions(conn, ids, recipe)
            pending = lacking.unindexed(conn, ids, recipe)
            found = [(one.uuid, index.manifest(conn, one.id, recipe)) for one in chosen]
        segments = [(owner, known.dim, entry) for owner, known in found if known for entry in known.segments]
        return cls(recipe, ids, versions, tuple(segments), tuple(pending))

    def is_current(self, catalog: Catalog) -> bool:
        """Whether the manifests are still the published ones."""
        with catalog.read() as conn:
            return self.holds(conn)

    def holds(self, conn: sa.Connection) -> bool:
        """As `is_current`, in a transaction."""
        return index.versions(conn, self.source_ids, self.recipe) == self.versions
