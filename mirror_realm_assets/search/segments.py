"""Segments: the immutable pieces of an index, as bytes and in memory.

What belongs here: building one from vectors, its form on disk, loading it safely, asking it. What does not: which
segments make an index (`build`), and whose vector lies at a position (`catalog.index`).

A segment is what faiss writes, followed by a short trailer that says whose it is. The trailer makes a segment belong to
one index: two sources that hold the same pictures would otherwise share one object, and one of them dropping it would
take it from the other. Reading index files has been a way to corrupt memory, so only our own are read: from the store,
by the sha256 in the manifest, with faiss's limits set to what the file can honestly need.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.catalog.index import SegmentEntry
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.shards import ByteCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

FLAT = "flat"
_MAGIC = b"MRSEG001"
_LENGTH_BYTES = 4
_SERIAL = "serial"
_MAX_TRAILER = 4096
# Flat segments have no loops to read; the limit is there for kinds that have.
_LOOP_LIMIT = 10_000_000
# faiss keeps its limits per process, so one segment is read at a time.
_reading = threading.Lock()


@dataclass(frozen=True)
class Label:
    """Whose a segment is and what is in it; written behind its vectors and compared when it is read."""

    source: str  # uuid
    recipe: str
    kind: str
    dim: int
    count: int


class Segment:
    """A segment in memory.

    Args:
        label: what its trailer says.
        index: faiss's own index, inner product.
    """

    def __init__(self, label: Label, index: Any) -> None:
        self.label = label
        self._index = index

    def nearest(self, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and positions of the `k` best vectors for each of QxD float32 `queries`, best first.

        Both are QxK; an approximate kind may give position -1 where it found fewer.
        """
        scores, positions = self._index.search(queries, min(k, self.label.count))
        return scores, positions

    def vectors(self, positions: NDArray[np.int64] | None = None) -> Vectors:
        """The vectors at `positions` (all without), NxD float32."""
        if positions is None:
            found: Vectors = self._index.reconstruct_n(0, self.label.count)
        else:
            found = self._index.reconstruct_batch(positions)
        return found


SegmentCache = ByteCache[str, Segment]


def encode_segment(vectors: Vectors, label: Label, *, serial: str) -> bytes:
    """The bytes of a segment with `vectors` in their order.

    Args:
        vectors: NxD float32, N > 0.
        label: whose it is; with `flat` every search looks at every vector.
        serial: unlike that of any other segment of this index, so that equal vectors never give equal objects.
    """
    import faiss

    if label.kind != FLAT or vectors.shape != (label.count, label.dim):
        raise ValueError(f"vectors of the shape {vectors.shape} do not make a segment as {label}")
    index = faiss.IndexFlatIP(label.dim)
    index.add(vectors)
    trailer = json.dumps({**asdict(label), _SERIAL: serial}, sort_keys=True).encode()
    length = len(trailer).to_bytes(_LENGTH_BYTES, "little")
    return faiss.serialize_index(index).tobytes() + trailer + length + _MAGIC


def decode_segment(data: bytes, expected: Label) -> Segment:
    """The segment in `data`, which must already be known to be ours by its digest.

    Raises:
        Failed: `store_corrupt` when it is no segment, or another one than `expected`.
    """
    import faiss
    import numpy as np

    label, body = _split(data)
    if label != expected:
        raise Failed("store_corrupt", f"A segment is {label}, the manifest says {expected}.")
    with _reading:
        # No single vector of the file can be longer than the file.
        faiss.set_deserialization_vector_byte_limit(len(data))
        faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8, body))
        except (RuntimeError, ValueError) as error:
            raise Failed("store_corrupt", f"A segment cannot be read: {error}.") from error
    flat = isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not flat or (index.d, index.ntotal) != (label.dim, label.count):
        raise Failed("store_corrupt", f"A segment does not hold what its trailer says: {label}.")
    return Segment(label, index)


def load_segment(
    store: Store, entry: SegmentEntry, *, source: str, recipe: str, dim: int, cache: SegmentCache
) -> Segment:
    """A segment that a manifest names, verified.

    Raises:
        Failed: `store_corrupt` when its bytes are not what was published; `store_failed` when it cannot be read.
    """

    def load() -> tuple[Segment, int]:
        data = store.read(entry.key, entry.sha256)
        return decode_segment(data, Label(source, recipe, entry.kind, dim, entry.count)), len(data)

    return cache.get(entry.sha256, load)


def entry_of(data: bytes, label: Label, *, sealed: bool, recall_at_10: float) -> SegmentEntry:
    """How a manifest names the segment with these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return SegmentEntry(keys.segment_key(digest), digest, label.kind, label.count, len(data), sealed, recall_at_10)


def measure_recall(segment: Segment, vectors: Vectors, *, k: int = 10, sample: int = 64) -> float:
    """The share of the true `k` best that the segment finds, over queries near a sample of its own vectors.

    What scores as high as the true k-th counts as found: equal pictures have equal scores, and any of them is right.

    Args:
        segment: what is measured.
        vectors: NxD float32, the truth it was built from.
        k: how many are asked for.
        sample: number of queries.
    """
    import numpy as np

    count, dim = vectors.shape
    rng = np.random.default_rng(count)
    chosen = vectors[rng.choice(count, min(sample, count), replace=False)]
    # Noise of half the vector's length: a query is close to a picture, but never equal to one.
    noise = rng.standard_normal(chosen.shape).astype(np.float32) * np.float32(0.5 / dim**0.5)
    queries = np.ascontiguousarray(chosen + noise)
    k = min(k, count)
    kth = np.sort(queries @ vectors.T, axis=1)[:, -k]
    _scores, positions = segment.nearest(queries, k)
    true = np.einsum("qd,qkd->qk", queries, vectors[np.maximum(positions, 0)])
    return float(np.mean((true >= kth[:, None] - 1e-5) & (positions >= 0)))


def _split(data: bytes) -> tuple[Label, int]:
    """The label of a segment, and the length of what faiss wrote."""
    fixed = len(_MAGIC) + _LENGTH_BYTES
    end = len(data) - fixed
    length = int.from_bytes(data[max(end, 0) : max(end, 0) + _LENGTH_BYTES], "little")
    if not data.endswith(_MAGIC) or not 0 < length <= min(_MAX_TRAILER, end):
        raise Failed("store_corrupt", "An object is not an index segment.")
    try:
        facts = json.loads(data[end - length : end])
        del facts[_SERIAL]
        return Label(**facts), end - length
    except (KeyError, TypeError, ValueError) as error:
        raise Failed("store_corrupt", f"The trailer of a segment cannot be read: {error}.") from error
