"""Embedding shards: the Parquet objects that hold the vectors, the truth that every index is built from.

What belongs here: the form of a shard, checking it, and reading single vectors out of many shards. What does not: which
vectors exist (`catalog.index`), how they are searched (`search`), and where objects lie (`local`).

A shard holds one row a vector: image digest, part, and the L2-normalised vector in float16. Half precision halves disk
and traffic and moves a cosine by less than 0.001. The same rows in the same order give the same bytes, so a step that
is done again writes the object that is there already.
"""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store.interface import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

VERSION = "1"
# Room for float16 rounding of a unit vector, and for models that normalise in half precision themselves.
_NORM_TOLERANCE = 0.01
_MAX_DIM = 65_536
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COLUMNS = ("image_digest", "part", "vector")

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class ShardRow:
    """One embedding: `vector` is D float32 of length 1."""

    image_digest: str
    part: int
    vector: Vectors


@dataclass(frozen=True)
class Shard:
    """A shard in memory.

    Attributes:
        image_digests: one a row.
        parts: one a row.
        vectors: NxD float32, as the float16 numbers of the object say.
        model: name of the model that made them.
        recipe: digest of the recipe of the embeddings.
    """

    image_digests: tuple[str, ...]
    parts: tuple[int, ...]
    vectors: Vectors
    model: str
    recipe: str

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])


class ByteCache(Generic[K, V]):
    """Things lately used in this process, up to a number of bytes; safe in threads.

    Args:
        max_bytes: what is kept at most; a thing larger than that is handed out and not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K, load: Callable[[], tuple[V, int]]) -> V:
        """The thing under `key`; `load` makes it, and says how many bytes it takes, when it is not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        # Loading is slow, so it is done outside the lock: two threads may load the same thing, which is harmless.
        value, size = load()
        with self._lock:
            if size <= self._max_bytes and key not in self._held:
                self._held[key] = (value, size)
                self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._held.popitem(last=False)[1][1]
        return value

    def clear(self) -> None:
        """Forget everything: after an erasure no vector may stay in memory."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """What is held now."""
        return self._bytes


ShardCache = ByteCache[str, Shard]


def encode_shard(rows: Sequence[ShardRow], *, model: str, recipe: str) -> bytes:
    """The Parquet bytes of a shard with `rows` in their order.

    Args:
        rows: at least one; no picture's part twice.
        model: name of the model.
        recipe: digest of the recipe of the embeddings.

    Raises:
        Failed: `model_failed` when a vector is not finite or not of length 1.
        ValueError: no rows, a row twice, or vectors of several lengths: a mistake in our own code.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    subjects = {(row.image_digest, row.part) for row in rows}
    shapes = {np.shape(row.vector) for row in rows}
    if not rows or len(subjects) != len(rows) or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError("a shard needs rows, each picture's part once, with vectors of one length")
    _check_digests([recipe, *(row.image_digest for row in rows)], ValueError)
    full = np.stack([row.vector for row in rows])
    if not _is_normal(full):
        raise Failed("model_failed", f"The model {model} made a vector that is not finite or not of length 1.")
    vectors = full.astype(np.float16)
    dim = vectors.shape[1]
    table = pa.table(
        [
            pa.array([row.image_digest for row in rows], pa.string()),
            pa.array([row.part for row in rows], pa.int32()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), dim),
        ],
        names=list(_COLUMNS),
    ).replace_schema_metadata({"version": VERSION, "model": model, "recipe": recipe, "dim": str(dim)})
    out = io.BytesIO()
    # Statistics and dictionaries would be larger than what they describe: most shards are small.
    parquet.write_table(table, out, compression="zstd", use_dictionary=False, write_statistics=False)
    return out.getvalue()


def decode_shard(data: bytes) -> Shard:
    """The shard in `data`, which was read from our own store and verified there.

    Raises:
        Failed: `store_corrupt` when it is no shard of a version we know, or its parts disagree.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(data))
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        dim = _dim(table, facts)
        column = table.column("vector").combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        vectors = np.ascontiguousarray(flat.astype(np.float32).reshape(table.num_rows, dim))
        digests = tuple(table.column("image_digest").to_pylist())
        parts = tuple(table.column("part").to_pylist())
        _check_digests([facts["recipe"], *digests], _Malformed)
        if None in parts or not _is_normal(vectors):
            raise _Malformed("a row has no part, or a vector that is not finite or not of length 1")
    except (pa.ArrowException, _Malformed, KeyError, TypeError, ValueError, OSError) as error:
        raise Failed("store_corrupt", f"An object is not an embedding shard: {error}.") from error
    return Shard(digests, parts, vectors, facts["model"], facts["recipe"])


def load_shard(store: Store, key: str, sha256: str, *, cache: ShardCache) -> Shard:
    """A shard of the store, verified.

    Raises:
        Failed: `store_corrupt` or `store_failed`.
    """

    def load() -> tuple[Shard, int]:
        shard = decode_shard(store.read(key, sha256))
        # A digest of 64 characters takes about 113 bytes as a Python string, a part and two references 50.
        return shard, int(shard.vectors.nbytes) + 163 * len(shard.parts)

    return cache.get(sha256, load)


def vectors_of(
    store: Store,
    refs: Sequence[tuple[str, str, int]],
    *,
    cache: ShardCache,
    recipe: str | None = None,
    subjects: Sequence[tuple[str, int]] | None = None,
) -> Vectors:
    """Single vectors out of many shards, each shard read once.

    Args:
        store: the store.
        refs: key and sha256 of the shard, and the row in it, one a wanted vector; at least one.
        cache: shards lately used.
        recipe: what every shard must have been made by: vectors of two models are never compared.
        subjects: image digest and part that each row must be of.

    Returns:
        NxD float32 in the order of `refs`.

    Raises:
        Failed: `store_corrupt` when a shard is damaged, lacks a row, holds another picture there or is of another
            recipe, or when the shards have vectors of several lengths; `store_failed` when one cannot be read.
    """
    import numpy as np

    wanted: dict[tuple[str, str], list[int]] = {}
    for n, (key, sha256, _row) in enumerate(refs):
        wanted.setdefault((key, sha256), []).append(n)
    vectors: Vectors | None = None
    for (key, sha256), places in wanted.items():
        shard = load_shard(store, key, sha256, cache=cache)
        if recipe not in (None, shard.recipe):
            raise Failed(
                "store_corrupt", f"The shard {key} was made by another recipe than its rows are recorded under."
            )
        if vectors is None:
            vectors = np.empty((len(refs), shard.dim), np.float32)
        rows = [refs[n][2] for n in places]
        _check_rows(shard, key, rows, vectors.shape[1], [subjects[n] for n in places] if subjects else None)
        vectors[places] = shard.vectors[rows]
    if vectors is None:
        raise ValueError("no vectors were asked for")
    return vectors


class _Malformed(Exception):
    """What is wrong with a shard."""


def _dim(table: Any, facts: Mapping[str, str]) -> int:
    import pyarrow as pa

    if facts.get("version") != VERSION:
        raise _Malformed(f"its version is {facts.get('version')!r}")
    dim = int(facts["dim"])
    if tuple(table.column_names) != _COLUMNS or not 0 < dim <= _MAX_DIM or not table.num_rows:
        raise _Malformed("it has other columns, no rows, or no length of vectors")
    if table.schema.field("vector").type != pa.list_(pa.float16(), dim) or table.column("vector").null_count:
        raise _Malformed("its vectors are of another kind or length than it says")
    return dim


def _check_digests(digests: Sequence[str], kind: type[Exception]) -> None:
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        raise kind("a digest is not a lower-case sha256")


def _is_normal(vectors: Vectors) -> bool:
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1)  # not finite as soon as one number is not
    return bool(np.all(np.abs(norms - 1) <= _NORM_TOLERANCE))


def _check_rows(
    shard: Shard, key: str, rows: Sequence[int], dim: int, subjects: Sequence[tuple[str, int]] | None
) -> None:
    if shard.dim != dim or not all(0 <= row < len(shard.parts) for row in rows):
        raise Failed("store_corrupt", f"The shard {key} lacks a recorded row, or its vectors have another length.")
    if subjects and any((shard.image_digests[r], shard.parts[r]) != s for r, s in zip(rows, subjects, strict=True)):
        raise Failed("store_corrupt", f"The shard {key} holds another picture where a recorded one should be.")
