"""Queries: the pictures most like a vector, in published segments and in what is not indexed yet.

What belongs here: collecting candidates, exact scores, ranking, and leaving out what is not shown any more. What does
not: making the query's vector (`understand`), SQL (`catalog.index`), the form of segments and shards.

Segments propose candidates; every candidate is then scored by one exact formula, so that equal pictures have equal
scores wherever they lie, and the order of results never depends on the layout. Whether a candidate is shown is asked of
the ledger *before* the best k are cut: more are fetched until k are certain or nothing is left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mirror_realm_assets.catalog import index, stacks
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.index import Found, SegmentEntry
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.search.reading import UNREADABLE, read_vectors
from mirror_realm_assets.search.segments import Segment, SegmentCache, load_segment
from mirror_realm_assets.search.view import Subject, View
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.shards import ShardCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

# A manifest can be replaced while its segments are searched; then the search begins again.
_TRIES = 5
_FIRST_FETCH = 64
_GROWTH = 4
# Float32 scores of unit vectors differ from exact ones by far less than this, in whatever order they are added up.
_MARGIN = 1e-4
_SCAN_ROWS = 4096  # 16 MB of double precision at 512 numbers a vector
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """One media that matches.

    Attributes:
        rank: 1 is the best.
        score: inner product with the query, exact; the cosine when the query has length 1.
        model: name of the model whose vectors were compared.
        digest: sha256 of the content.
        media: uuid.
        part: the part of the media that matches best.
        time_s: where that part is in a video.
        page: where it is in a document.
        paths: every place it is present at, raw bytes relative to the source's root.
        source: name of the source.
    """

    rank: int
    score: float
    model: str
    digest: str
    media: str
    part: int
    time_s: float | None
    page: int | None
    paths: list[bytes]
    source: str

    @property
    def within(self) -> str:
        """Where in the file the part is, in words; empty for a still."""
        if self.time_s is not None:
            minutes, seconds = divmod(int(self.time_s), 60)
            hours, minutes = divmod(minutes, 60)
            return f"at {hours}:{minutes:02}:{seconds:02}" if hours else f"at {minutes}:{seconds:02}"
        return "" if self.page is None else f"page {self.page}"


@dataclass(frozen=True)
class Caches:
    """What a process keeps between searches."""

    segments: SegmentCache = field(default_factory=lambda: SegmentCache(1024**3))
    shards: ShardCache = field(default_factory=lambda: ShardCache(256 * 1024**2))

    def clear(self) -> None:
        """Forget every vector, as after an erasure."""
        self.segments.clear()
        self.shards.clear()


PROCESS_CACHES = Caches()


def search(
    catalog: Catalog,
    store: Store,
    query: Vectors,
    *,
    recipe: str,
    model: str,
    source_ids: Sequence[int] | None = None,
    k: int = 10,
    caches: Caches = PROCESS_CACHES,
) -> list[Hit]:
    """The `k` media most like `query`, best first.

    A media is one hit, by its best part and with all its places; of a stack only the best media is one. Equal scores
    are ordered by content digest, then by the name of the source. A picture whose shard cannot be read, and that is in
    no index yet, is passed over with a warning.

    Args:
        catalog: the ledger.
        store: where segments and shards lie.
        query: D float32.
        recipe: digest of the recipe of the embeddings to compare with.
        model: name of the model that made the query.
        source_ids: only these sources; None for all.
        k: how many.
        caches: what is kept between searches.

    Raises:
        Failed: `invalid_argument` for a query or `k` that cannot be; `store_corrupt` or `store_failed` when a segment
            is damaged or missing; `catalog_failed` when indexes are published faster than they can be searched.
    """
    import numpy as np

    if query.ndim != 1 or not np.isfinite(query).all() or k < 1:
        raise Failed("invalid_argument", "A search needs one finite vector, and at least one hit to find.")
    query = np.ascontiguousarray(query, np.float32)
    for _ in range(_TRIES):
        view = View.read(catalog, source_ids, recipe)
        try:
            ranked = _Search(catalog, store, query, recipe, view, caches).run(k)
        except Failed as error:
            # A segment of an old manifest may be collected while we look for it.
            if error.code not in UNREADABLE or view.is_current(catalog):
                raise
            continue
        if ranked is not None:
            return [_hit(rank, score, model, found) for rank, (score, found) in enumerate(ranked, 1)]
    raise Failed("catalog_failed", f"Indexes were published anew during each of {_TRIES} searches.")


@dataclass(frozen=True)
class _Candidates:
    """What segments proposed, scored exactly.

    `bound` is the approximate score of the best vector that was not proposed, minus infinity when all were.
    """

    places: list[tuple[float, str, int]]  # score, segment, position
    bound: float


@dataclass(frozen=True)
class _Search:
    catalog: Catalog
    store: Store
    query: Vectors
    recipe: str
    view: View
    caches: Caches

    def run(self, k: int) -> list[tuple[float, Found]] | None:
        """The best `k` media with their scores, or None when the manifests were replaced meanwhile."""
        segments = [self._segment(*named) for named in self.view.segments]
        waiting = self._scan_pending()
        fetch = max(_FIRST_FETCH, _GROWTH * k)
        while True:
            candidates = self._propose(segments, fetch)
            bound = candidates.bound
            scores = dict(waiting[:fetch])
            if len(waiting) > fetch:
                bound = max(bound, waiting[fetch][1])
            with self.catalog.read() as conn:
                for subject, score in _identified(conn, candidates.places).items():
                    scores[subject] = max(score, scores.get(subject, score))
                found = index.hits(conn, self.view.source_ids, list(scores))
                in_stacks = stacks.of_media(conn, list({one.media for one in found}))
                if not self.view.holds(conn):
                    return None
            ranked = _ranked(found, scores, {media: stack.primary.media for media, stack in in_stacks.items()})
            certain = sum(score > bound + _MARGIN for score, _found in ranked)
            if certain >= k or bound == float("-inf"):
                return ranked[:k]
            fetch *= _GROWTH

    def _segment(self, source: str, dim: int, entry: SegmentEntry) -> tuple[SegmentEntry, Segment]:
        self._check_length(dim)
        cache = self.caches.segments
        return entry, load_segment(self.store, entry, source=source, recipe=self.recipe, dim=dim, cache=cache)

    def _propose(self, segments: Sequence[tuple[SegmentEntry, Segment]], fetch: int) -> _Candidates:
        """The `fetch` best of all segments by their own scores, scored exactly."""
        proposed: list[tuple[float, int, int]] = []
        bound = float("-inf")
        for n, (entry, segment) in enumerate(segments):
            scores, positions = segment.nearest(self.query[None], fetch)
            proposed.extend((float(s), n, int(p)) for s, p in zip(scores[0], positions[0], strict=True) if p >= 0)
            if entry.count > fetch:
                bound = max(bound, float(scores[0][-1]))
        proposed.sort(reverse=True)
        if len(proposed) > fetch:
            bound = max(bound, proposed[fetch][0])
        return _Candidates(self._score(segments, proposed[:fetch]), bound)

    def _score(
        self, segments: Sequence[tuple[SegmentEntry, Segment]], proposed: Sequence[tuple[float, int, int]]
    ) -> list[tuple[float, str, int]]:
        import numpy as np

        places: list[tuple[float, str, int]] = []
        for n, (entry, segment) in enumerate(segments):
            positions = np.array([place for _score, owner, place in proposed if owner == n], np.int64)
            if len(positions):
                scores = _exact(self.query, segment.vectors(positions))
                places.extend((float(s), entry.sha256, int(p)) for s, p in zip(scores, positions, strict=True))
        return places

    def _scan_pending(self) -> list[tuple[Subject, float]]:
        """Every recorded vector that is in no manifest yet, with its exact score, best first."""
        scored: list[tuple[Subject, float]] = []
        rows = sorted(self.view.pending, key=lambda row: row.sha256)  # so that a shard lies in one piece
        for start in range(0, len(rows), _SCAN_ROWS):
            piece = rows[start : start + _SCAN_ROWS]
            read = read_vectors(self.store, piece, recipe=self.recipe, dim=None, cache=self.caches.shards)
            for error in read.errors:
                _log.warning("Pictures were left out of a search: %s", error)
            if read.vectors is not None:
                self._check_length(read.vectors.shape[1])
                scores = _exact(self.query, read.vectors)
                scored.extend(((r.image_digest, r.part), float(s)) for r, s in zip(read.rows, scores, strict=True))
        scored.sort(key=lambda one: (-one[1], one[0]))
        return scored

    def _check_length(self, dim: int) -> None:
        if dim != len(self.query):
            raise Failed("invalid_argument", f"The query has {len(self.query)} numbers, the index {dim}.")


def _exact(query: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    import numpy as np

    # Not a matrix product: its result for one row can depend on how many rows there are.
    products: NDArray[np.float64] = vectors.astype(np.float64) * query.astype(np.float64)
    return products.sum(axis=1)


def _identified(conn: sa.Connection, places: Sequence[tuple[float, str, int]]) -> dict[Subject, float]:
    """The live members at these places, with their scores."""
    by_segment: dict[str, dict[int, float]] = {}
    for score, segment, position in places:
        by_segment.setdefault(segment, {})[position] = score
    return {
        (member.image_digest, member.part): scores[member.position]
        for segment, scores in by_segment.items()
        for member in index.members_of(conn, segment, list(scores))
    }


def _ranked(
    found: Sequence[Found], scores: Mapping[Subject, float], stacked: Mapping[str, str]
) -> list[tuple[float, Found]]:
    """Each media once, by its best part, in order; of media of one stack only the best."""
    scored = [(scores[one.image_digest, one.part], one) for one in found]
    scored.sort(key=lambda pair: (-pair[0], pair[1].digest, pair[1].source, pair[1].media, pair[1].part))
    best: dict[str, tuple[float, Found]] = {}
    for score, one in scored:
        best.setdefault(stacked.get(one.media, one.media), (score, one))
    return list(best.values())


def _hit(rank: int, score: float, model: str, found: Found) -> Hit:
    return Hit(
        rank=rank,
        score=score,
        model=model,
        digest=found.digest,
        media=found.media,
        part=found.part,
        time_s=found.time_s,
        page=found.page,
        paths=list(found.paths),
        source=found.source,
    )
