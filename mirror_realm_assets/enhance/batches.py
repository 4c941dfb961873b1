"""Several arrays of equal shape in one pass of a network, where that pays.

What belongs here: how many at once, and what follows when a pass over several fails. What does not: the pass itself
(`networks`), and where the arrays come from, tiles of one picture or whole pictures (`upscale`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.enhance.networks import Network, Pass
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.weights.hardware import Device, release_memory

T = TypeVar("T")

MOST: dict[Device, int] = {"cpu": 1, "cuda": 8}
"""Arrays in one pass at most.

On a CPU one: of 64x64 pixels each, 1, 4 and 8 at once took 12, 13 and 12 ms apiece in realesr-animevideov3 and 381, 459
and 573 ms in realesrgan-x4plus (bf16, one thread, best of 15 and of 4 on a machine that others used too; fp32 alike),
for 4 and 8 times the memory. What a GPU gains has not been measured, nor has the bound of 8.
"""

AHEAD: dict[Device, int] = {"cpu": 0, "cuda": 1}
"""Passes begun before the results of the first of them are taken: a GPU computes while results travel."""


class Begun:
    """A pass over some arrays that has been begun.

    Args:
        batches: whose it is.
        pieces: the arrays.
    """

    def __init__(self, batches: Batches, pieces: Sequence[Pixels]) -> None:
        self._batches, self._pieces = batches, pieces
        self._made: list[Pixels | None] | None = None
        self._failed: str | None = None
        self._pass: Pass | None = None
        try:
            self._pass = batches.network.begin(pieces)
        except MirrorRealmError as error:
            self._failed = error.code

    def results(self) -> list[Pixels | None]:
        """What became of each, in order; None for one that has to be done alone, where its own error shows."""
        if self._made is None:
            self._made = self._taken()
            self._pieces = ()
        return self._made

    def take(self, number: int) -> Pixels | None:
        """As `results`, for one of them, which is not kept here any longer."""
        made = self.results()
        found, made[number] = made[number], None
        return found

    def _taken(self) -> list[Pixels | None]:
        begun, self._pass = self._pass, None
        if begun is not None:
            try:
                return list(begun.results())
            except MirrorRealmError as error:
                self._failed = error.code
        # Outside of the handler, where the failed pass still holds its arrays.
        count = len(self._pieces)
        if self._failed != "out_of_memory" or count == 1:
            return [None] * count
        release_memory()
        made: list[Pixels | None] = []
        self._batches.too_many(self._pieces[0], count)
        while len(made) < count:  # what fits is found out on the way
            part = self._pieces[len(made) :][: self._batches.most(self._pieces[0])]
            made += Begun(self._batches, part).results()
        return made


class Batches:
    """Passes of one network over several arrays at once; remembers how many were too many.

    Args:
        network: whose passes.
        most: arrays in one pass at most.
    """

    def __init__(self, network: Network, most: int) -> None:
        self.network = network
        self._most = most
        self._learned: dict[tuple[int, int], int] = {}

    def at_once(self, height: int, width: int, fitting: int) -> int:
        """How many arrays of a size go into one pass: a power of two, so that few shapes are met.

        Args:
            height: of each.
            width: of each.
            fitting: pixels that fit into memory together.

        Returns:
            At least 1, also when not even one fits.
        """
        most = min(self._learned.get((height, width), self._most), fitting // (height * width))
        return 1 << (max(1, most).bit_length() - 1)

    def most(self, piece: Pixels) -> int:
        """How many arrays like `piece` may be tried at once, as far as has been learned."""
        return self._learned.get((piece.shape[0], piece.shape[1]), self._most)

    def too_many(self, piece: Pixels, count: int) -> None:
        """Learn that memory ran out over `count` arrays like `piece`: from now on half of them are tried."""
        self._learned[piece.shape[0], piece.shape[1]] = max(1, count // 2)

    def begin(self, pieces: Sequence[Pixels]) -> Begun:
        """Begin a pass over arrays of equal shape and type; see `networks.Network.begin`.

        When memory runs out it is done again with half as many at once, down to one; when it fails otherwise, none of
        them has a result: each alone shows which one it was.
        """
        return Begun(self, pieces)


def equal_runs(things: Iterable[T], *, key: Callable[[T], Any], most: Callable[[T], int]) -> Iterator[list[T]]:
    """Neighbours with equal keys, in order, in lists as long as `most` says of their first.

    It looks no further than it must: a list that is full is given before the next thing is asked for.
    """
    run: list[T] = []
    limit = 0
    for thing in things:
        if run and key(thing) != key(run[0]):
            yield run
            run = []
        if not run:
            limit = most(thing)
        run.append(thing)
        if len(run) >= limit:
            yield run
            run = []
    if run:
        yield run
