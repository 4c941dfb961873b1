"""Reading recorded vectors, with those set aside whose shard is damaged.

What belongs here: from rows of the ledger to vectors. What does not: the form of a shard (`store.shards`). One damaged
shard must neither stop an index from taking in all others, nor a search from finding them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.lacking import PendingVector
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.shards import ShardCache, vectors_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

# What a damaged or missing object is reported as.
UNREADABLE = ("store_corrupt", "store_failed")


@dataclass(frozen=True)
class Readable:
    """What could be read.

    Attributes:
        rows: those that could.
        vectors: one a row, NxD float32; None when there are none.
        errors: one for each shard that could not be read.
        damaged: rows of shards whose bytes are not those that were written; they can never be read again.
    """

    rows: tuple[PendingVector, ...]
    vectors: Vectors | None
    errors: tuple[Failed, ...]
    damaged: tuple[PendingVector, ...] = ()


def read_vectors(
    store: Store, rows: Sequence[PendingVector], *, recipe: str, dim: int | None, cache: ShardCache
) -> Readable:
    """The vectors of `rows`, shard by shard.

    Args:
        store: the store.
        rows: of the ledger.
        recipe: what they must have been made by.
        dim: length that vectors must have; None takes that of the first readable shard.
        cache: shards lately used.
    """
    import numpy as np

    by_shard: dict[tuple[str, str], list[PendingVector]] = {}
    for row in rows:
        by_shard.setdefault((row.shard, row.sha256), []).append(row)
    read: list[PendingVector] = []
    pieces: list[Vectors] = []
    errors: list[Failed] = []
    damaged: list[PendingVector] = []
    for members in by_shard.values():
        try:
            piece = _of_one_shard(store, members, recipe, dim, cache)
        except Failed as error:
            if error.code not in UNREADABLE:
                raise
            errors.append(error)
            if error.code == "store_corrupt":
                damaged.extend(members)
            continue
        dim = piece.shape[1]
        read.extend(members)
        pieces.append(piece)
    return Readable(tuple(read), np.concatenate(pieces) if pieces else None, tuple(errors), tuple(damaged))


def _of_one_shard(
    store: Store, rows: Sequence[PendingVector], recipe: str, dim: int | None, cache: ShardCache
) -> Vectors:
    try:
        found = vectors_of(
            store,
            [(row.shard, row.sha256, row.row) for row in rows],
            cache=cache,
            recipe=recipe,
            subjects=[(row.image_digest, row.part) for row in rows],
        )
    except ValueError as error:  # what is recorded as a key is none
        raise Failed("store_corrupt", f"A recorded embedding has no place in the store: {error}.") from error
    if found.shape[1] != (dim or found.shape[1]):
        raise Failed(
            "store_corrupt", f"The shard {rows[0].shard} has vectors of another length than its recipe's others."
        )
    return found
