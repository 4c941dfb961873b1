"""Near duplicates: pictures whose perceptual hashes differ in a few bits, in groups around their best picture.

What belongs here: comparing many hashes and grouping them, over plain values. What does not: computing a hash
(`phash`), and whose hash it is, which the catalog knows (`catalog.duplicates`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    _Indexes: TypeAlias = npt.NDArray[np.int64]
    _Bits: TypeAlias = npt.NDArray[np.uint64]

# Measured in docs/explanation/near-duplicates.md: 98% of recompressed, scaled and brightened copies differ in at most 6
# bits. At 8 there are 1.5% more of them, and nearly three times as many pieces of different pictures that match.
DEFAULT_DISTANCE = 6
# Beyond, chance takes over: whole photographs of different things differed in 18 bits at least, among 201 of them.
MAX_DISTANCE = 12
_HASH_BITS = 64
_MOST_EQUAL_BLOCKS = 4


@dataclass(frozen=True)
class NearGroup:
    """A picture and what is near it.

    Attributes:
        members: positions in the sequence that was given, the representative first, the others by distance.
        distances: of each member from the representative, in bits.
    """

    members: tuple[int, ...]
    distances: tuple[int, ...]


def near_groups(hashes: Sequence[int] | _Bits, distance: int) -> list[NearGroup]:
    """Groups of hashes that differ in at most `distance` bits from the group's representative.

    A hash that no earlier representative is near is one itself; any other joins the nearest earlier representative. So
    a group never chains from one picture over a second to a third that has nothing to do with the first, which
    grouping by "is near any member" does, and none is in two groups. A million hashes are not compared with each
    other: at a distance of 6 they take 10 s and 0.3 GB, because few have enough bits in common, and pairs are not kept.

    Args:
        hashes: 64 bits each, the best picture first.
        distance: in bits.
    """
    import numpy as np

    given = np.asarray(hashes, dtype=np.uint64)
    # The same hash many times over would be compared with itself: each is taken once, where it first stands.
    _values, first, of_value = np.unique(given, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    heads, apart = _representatives(given[first[order]], distance)
    mine = rank[of_value]
    return _collected(first[order][heads[mine]], apart[mine])


def _collected(heads: _Indexes, apart: _Indexes) -> list[NearGroup]:
    """Groups of two and more, from the position of each one's representative and the distance from it."""
    import numpy as np

    order = np.lexsort((np.arange(len(heads)), apart, heads))
    starts = np.flatnonzero(np.diff(heads[order], prepend=-1))
    ends = np.append(starts[1:], len(heads))
    several = ends - starts > 1
    return [
        NearGroup(tuple(order[start:end].tolist()), tuple(apart[order[start:end]].tolist()))
        for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True)
    ]


def _representatives(hashes: _Bits, distance: int) -> tuple[_Indexes, _Indexes]:
    """For each of different hashes the position of its representative, perhaps its own, and the distance from it."""
    import numpy as np

    count = len(hashes)
    pairs = _pairs(hashes, np.arange(count), distance)
    nearby = _seen(count, (each for earlier, later, _apart in pairs for each in (earlier, later)))
    is_head = ~nearby
    undecided = np.flatnonzero(nearby)
    # In each round those become representatives that no earlier undecided one is near, and what they are near is taken:
    # the outcome is that of going through all in order, in a few passes over arrays.
    while len(undecided):
        beaten = _seen(count, (later for _earlier, later, _apart in _pairs(hashes, undecided, distance)))
        is_head[undecided[~beaten[undecided]]] = True
        pairs = _pairs(hashes, undecided, distance)
        taken = _seen(count, (later[is_head[earlier]] for earlier, later, _apart in pairs))
        undecided = undecided[beaten[undecided] & ~taken[undecided]]
    # The nearest one, and the better of two that are as near: the smallest of distance and position in one number.
    nearest = np.where(is_head, np.arange(count), np.iinfo(np.int64).max)
    for earlier, later, apart in _pairs(hashes, np.flatnonzero(nearby), distance):
        joins = is_head[earlier] & ~is_head[later]
        np.minimum.at(nearest, later[joins], apart[joins] * count + earlier[joins])
    return nearest % max(count, 1), nearest // max(count, 1)


def _seen(count: int, batches: Iterable[_Indexes]) -> npt.NDArray[np.bool_]:
    """Which positions stand in any batch."""
    import numpy as np

    found = np.zeros(count, dtype=bool)
    for batch in batches:
        found[batch] = True
    return found


def _pairs(hashes: _Bits, chosen: _Indexes, distance: int) -> Iterator[tuple[_Indexes, _Indexes, _Indexes]]:
    """All pairs of the chosen within the distance: the earlier, the later, the bits apart; some come several times.

    Of `distance + k` blocks of the bits, two hashes within the distance have `k` in common. So for each choice of `k`
    blocks the hashes are sorted by these bits, and only those with the same bits are compared.
    """
    import numpy as np

    bits = hashes[chosen]
    for mask in _masks(len(chosen), distance):
        keys = bits & mask
        order = np.argsort(keys, kind="stable")  # stable: who is earlier stays earlier
        keys, sorted_bits = keys[order], bits[order]
        at, step = np.arange(len(order)), 0
        while len(at):
            step += 1
            at = at[: np.searchsorted(at, len(order) - step)]
            at = at[keys[at] == keys[at + step]]
            apart = np.bitwise_count(sorted_bits[at] ^ sorted_bits[at + step]).astype(np.int64)
            near = at[apart <= distance]
            if len(near):
                yield chosen[order[near]], chosen[order[near + step]], apart[apart <= distance]


def _masks(count: int, distance: int) -> list[np.uint64]:
    """The bits to sort by, one mask for each choice of blocks, for the number of blocks that costs least."""
    import numpy as np

    def cost(equal: int) -> float:
        blocks = distance + equal
        key_bits = _HASH_BITS * equal / blocks if blocks else 0
        return (
            math.comb(blocks, equal) * count * (20 + count / 2 ** (key_bits + 1))
        )  # sorting costs 20 comparisons each

    most = max(0, min(_MOST_EQUAL_BLOCKS, _HASH_BITS - distance))
    equal = min(range(most + 1), key=cost)
    blocks = [sum(1 << bit for bit in range(n, _HASH_BITS, distance + equal)) for n in range(distance + equal)]
    return [np.uint64(sum(choice)) for choice in combinations(blocks, equal)]
