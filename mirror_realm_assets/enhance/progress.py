"""What an engine and its callers tell each other about one picture: what is to be done, and how far it is.

What belongs here: words both understand. What does not: the work (`upscale`, `reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirror_realm_assets.enhance.layers import Layers, Pixels
from mirror_realm_assets.enhance.tiling import Tile


def go_on() -> None:
    """Between tiles, do nothing."""


@dataclass(frozen=True)
class Tiles:
    """How far a picture is: `done` of `total` tiles, and `left`, the share of the computing that is to come."""

    done: int
    total: int
    left: float


def tell_nobody(_tiles: Tiles) -> None:
    """Of progress."""


@dataclass(frozen=True)
class Prepared:
    """A picture that is to be enlarged.

    Attributes:
        image: as `ingest.still.Still` has it.
        outscale: how many times wider and higher the result is to be; None for the model's own scale.
        layers: what `image` is made of, where an engine takes it apart.
    """

    image: Pixels
    outscale: float | None
    layers: Layers | None = None


class Watch:
    """Counts tiles and tells of them; a plan that replaces another goes on counting.

    Args:
        tiles: of the plan.
        done: tiles of plans before it.
        between_tiles: called before each tile but the first of a picture.
        on_progress: called now and after each tile.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        done: int,
        between_tiles: Callable[[], None],
        on_progress: Callable[[Tiles], None],
    ) -> None:
        self._pixels = [tile.padded.pixels for tile in tiles]
        self._before, self._here = done, 0
        self._begun = done > 0
        self._between_tiles, self._on_progress = between_tiles, on_progress
        self._tell()

    @property
    def done(self) -> int:
        """Tiles, those of plans before this one included."""
        return self._before + self._here

    def begin(self) -> None:
        """Before a tile."""
        if self._begun:
            self._between_tiles()
        self._begun = True

    def end(self) -> None:
        """After a tile."""
        self._here += 1
        self._tell()

    def _tell(self) -> None:
        left = sum(self._pixels[self._here :]) / sum(self._pixels)
        self._on_progress(Tiles(self.done, self._before + len(self._pixels), left))
