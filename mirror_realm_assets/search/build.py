"""Building: everything pending of a source goes into its index.

What belongs here: the lease, the rounds of one build, and its report. What does not: what one round does (`rounds`),
and when a build runs (the index sensor).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mirror_realm_assets import fault_points
from mirror_realm_assets.catalog import index, leases, workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.index import Manifest
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import Failed, LeaseLost
from mirror_realm_assets.search.rounds import Builder, Step
from mirror_realm_assets.store.interface import Store

# Rewriting a full buffer of 512 numbers a vector writes 20 MB, which is what adding one picture may cost.
SEGMENT_VECTORS = 10_000
# What one round reads and publishes: 100 MB at 512 numbers a vector, and a transaction of about a second.
ROUND_VECTORS = 50_000

Progress = Callable[[int], None]


@dataclass(frozen=True)
class IndexReport:
    """What a build did, and the index as it is published now.

    Attributes:
        vectors: live vectors in the index.
        added: vectors that this build took in.
        removed: members whose picture is shown nowhere any more, found by this build.
        segments: number of segments.
        tombstones: dead vectors that still lie in sealed segments.
        recall_at_10: measured against exact search, weighted by the segments' vectors; None for an empty index.
        version: of the manifest; 0 when there is none.
        seconds: wall time of the build.
        published: whether anything was written at all.
    """

    vectors: int
    added: int
    removed: int
    segments: int
    tombstones: int
    recall_at_10: float | None
    version: int
    seconds: float
    published: bool


def build_index(
    catalog: Catalog,
    store: Store,
    source: Source,
    recipe: str,
    model: str,
    *,
    worker_id: str,
    lease_seconds: float,
    run_id: str | None = None,
    on_progress: Progress | None = None,
    step: Step | None = None,
    full: bool = True,
    rebuild: bool = False,
    segment_vectors: int = SEGMENT_VECTORS,
    round_vectors: int = ROUND_VECTORS,
) -> IndexReport:
    """Take everything pending of a source into its index, bury what is gone, and publish.

    Args:
        catalog: the ledger.
        store: where shards lie and segments go.
        source: whose index.
        recipe: digest of the recipe of the embeddings.
        model: name of the model, for people.
        worker_id: owner of the lease.
        lease_seconds: how long the lease lasts; it is renewed before every segment.
        run_id: the run that does it.
        on_progress: called with the number of vectors added so far after every round.
        step: called with a step's name between any two steps, for fault tests; by default they are fault points.
        full: look at all embeddings and members; else at what was noted since the last build, and at nothing that is
            gone: what a search shows does not depend on it.
        rebuild: leave no old segment in place, as after one was damaged.
        segment_vectors: size at which the write buffer is sealed.
        round_vectors: what is read and published at once.

    Raises:
        LeaseLost: another worker builds this index, or took over meanwhile; nothing of this round was published.
        Failed: `store_corrupt` or `store_failed` when shards could not be read; all others were published before, and
            the vectors of damaged ones will be made again.
    """
    began = time.monotonic()
    lease = _take(catalog, source, recipe, worker_id, lease_seconds)
    step = step or fault_points.points_of("index")
    builder = Builder(catalog, store, source, recipe, model, lease, lease_seconds, run_id, step, segment_vectors)
    added = removed = 0
    published = False
    errors: list[Failed] = []
    try:
        again = True
        while again:
            done = builder.round(round_vectors, full=full, rebuild=rebuild)
            full, rebuild = full or rebuild or done.damaged, False
            added, removed = added + done.added, removed + done.removed
            published = published or done.published
            again = done.again
            errors.extend(done.errors)
            if on_progress and done.published:
                on_progress(added)
        if errors:
            raise errors[0]
    finally:
        with catalog.write() as conn:
            leases.release(conn, lease)
    return _report(done.manifest, added, removed, published, time.monotonic() - began)


def _take(catalog: Catalog, source: Source, recipe: str, worker_id: str, seconds: float) -> Lease:
    name = index.lease_name(source.name, recipe)
    for _try in range(2):
        with catalog.write() as conn:
            lease = leases.acquire(conn, name, worker_id, seconds)
        if lease is not None:
            return lease
        workers.bury_the_dead(catalog)  # a builder whose process is provably gone does not count
    raise LeaseLost(f"Another worker builds the {name}.")


def _report(manifest: Manifest | None, added: int, removed: int, published: bool, seconds: float) -> IndexReport:
    return IndexReport(
        vectors=manifest.vectors if manifest else 0,
        added=added,
        removed=removed,
        segments=len(manifest.segments) if manifest else 0,
        tombstones=manifest.tombstones if manifest else 0,
        recall_at_10=manifest.recall_at_10 if manifest else None,
        version=manifest.version if manifest else 0,
        seconds=seconds,
        published=published,
    )
