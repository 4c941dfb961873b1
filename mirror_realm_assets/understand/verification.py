"""Checking recorded embeddings: what a check asks before anything is built on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mirror_realm_assets.store.interface import Store

_TOLERANCE = 0.01  # float16 storage moves a length by up to 0.001


def bad_vectors(store: Store, outputs: Sequence[Mapping[str, Any]]) -> int:
    """How many recorded embeddings are not finite or not of length 1.

    Args:
        store: where the shards lie.
        outputs: recorded outputs of the feature `embeddings`.

    Raises:
        Failed: when a shard cannot be read back.
    """
    import numpy as np

    from mirror_realm_assets.store.shards import decode_shard

    bad = 0
    by_shard: dict[tuple[str, str], list[int]] = {}
    for output in outputs:
        by_shard.setdefault((output["shard"], output["sha256"]), []).append(output["row"])
    for (key, sha256), rows in by_shard.items():
        vectors = decode_shard(store.read(key, sha256)).vectors[rows]
        lengths = np.linalg.norm(vectors, axis=1)
        bad += int(np.count_nonzero(~(np.abs(lengths - 1) < _TOLERANCE)))  # NaN is bad too
    return bad
