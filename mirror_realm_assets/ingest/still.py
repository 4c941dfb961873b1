"""A still picture at full size as its file holds it: its own depth, colours, transparency and metadata.

What belongs here: the value, and the check of what comes from the decoder's child. What does not: producing it
(`ingest.stills`, which only the child imports), and pictures for the screen (`ingest.decoded`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_CHANNELS = 4
MAX_BYTES_PER_SAMPLE = 2
_MAX_PROFILE = 16 << 20
_MAX_EXIF = 65_000


@dataclass(frozen=True)
class Still:
    """One picture.

    Attributes:
        pixels: upright. `HxW` grey, `HxWx2` grey with alpha, `HxWx3` RGB or `HxWx4` RGB with alpha; `uint8`, or
            `uint16` over its whole range where the file is deeper than 8 bits. Alpha is straight, not multiplied.
        icc: the colour profile that the pixels are in; None for sRGB.
        exif: the payload of an EXIF block without its `Exif` marker: what people and cameras wrote, for an upright
            picture; without thumbnail and without the private notes of the camera's maker, which break when moved.
        animated: whether it is the first picture of an animation.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    animated: bool = False


@dataclass(frozen=True)
class StillFacts:
    """What the child says of the pixels that it wrote: `height`, `width`, `channels`, `depth` in bits, and the rest."""

    height: int
    width: int
    channels: int
    depth: int
    animated: bool
    icc: bytes | None
    exif: bytes | None

    def as_reply(self) -> tuple[dict[str, Any], bytes]:
        """As JSON knows it, and the profile and EXIF, one after the other."""
        icc, exif = self.icc or b"", self.exif or b""
        names = ("height", "width", "channels", "depth", "animated")
        reply = {name: getattr(self, name) for name in names} | {"icc": len(icc), "exif": len(exif)}
        return reply, icc + exif

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any], blob: bytes, max_pixels: int) -> StillFacts:
        """The value that `as_reply` wrote.

        Raises:
            ValueError: when it is no such value, whatever it is.
        """
        numbers = {name: reply.get(name) for name in ("height", "width", "channels", "depth", "icc", "exif")}
        animated = reply.get("animated")
        if type(animated) is not bool or not all(type(one) is int and one >= 0 for one in numbers.values()):
            raise ValueError("impossible numbers")
        icc, exif = int(numbers.pop("icc") or 0), int(numbers.pop("exif") or 0)
        if icc > _MAX_PROFILE or exif > _MAX_EXIF or icc + exif != len(blob):
            raise ValueError("bytes that belong to nothing")
        found = cls(**numbers, animated=animated, icc=blob[:icc] or None, exif=blob[icc:] or None)  # type: ignore[arg-type] # checked above
        if not 0 < found.height * found.width <= max_pixels:
            raise ValueError("an impossible size")
        if not 1 <= found.channels <= MAX_CHANNELS or found.depth not in (8, 16):
            raise ValueError("an impossible kind of pixels")
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        size = (self.height, self.width)
        return size if self.channels == 1 else (*size, self.channels)
