"""How much memory enhancement needs: a network on one tile, a picture around it, a step as a whole.

What belongs here: reckoning, in bytes, from models, shapes and number formats. What does not: measuring what is free
(`weights.hardware`), choosing a tile's shape (`tiling`), and what former processes learnt (`remembered`).

A network's peak has three parts. Something is always there: code that oneDNN makes for the CPU, buffers of threads. The
largest maps grow with the tile: of RRDBNet two of 64 channels at the size of the result. And malloc keeps pieces of the
small maps before them, because blocks below 32 MiB stay in its heap. Giving such blocks back at once (a fixed
`M_MMAP_THRESHOLD` of 1 MiB) makes the peak a sixth to a third smaller and equal from pass to pass, but costs half as
much CPU time again in bf16, or more: the kernel clears every page anew. One arena is no better, since one thread
allocates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mirror_realm_assets.enhance.tiling import DEFAULT_HALO, SMALLEST_TILE
from mirror_realm_assets.stages.stage import PROCESS_BYTES
from mirror_realm_assets.weights.hardware import Device, Precision
from mirror_realm_assets.weights.registry import Model

_MB, _MIB = 10**6, 1024**2
_ITEM: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# Others use the machine too, and on a CPU too much means that the kernel ends the process.
SHARE: dict[Device, float] = {"cpu": 0.4, "cuda": 0.8}
"""The part of what is free that one picture may take."""


@dataclass(frozen=True)
class Need:
    """What a network needs beyond its weights.

    Attributes:
        fixed: bytes for a tile of any size.
        per_pixel: bytes for each pixel of a padded tile.
        kept_per_pixel: bytes for each such pixel that malloc may keep besides, ...
        kept_most: ... up to so many.
    """

    fixed: int
    per_pixel: int
    kept_per_pixel: int = 0
    kept_most: int = 0

    def of(self, pixels: int) -> int:
        """Bytes for a padded tile of so many pixels."""
        return self.fixed + self.per_pixel * pixels + min(self.kept_per_pixel * pixels, self.kept_most)

    def pixels(self, free: int) -> int:
        """The most pixels of a padded tile that fit into `free` bytes; 0 where not even the fixed part does."""
        left = free - self.fixed
        if left <= 0:
            return 0
        small = left // (self.per_pixel + self.kept_per_pixel)
        large = (left - self.kept_most) // self.per_pixel
        return max(small, large)


# Fitted to the measurements of `python -m benchmarks memory`. The last is whether the CPU has AVX-512: without it
# oneDNN cuts its work differently. bf16 without AVX-512 is emulated, and was not measured.
_ON_CPU: dict[tuple[str, Precision, bool], Need] = {
    ("RRDBNet", "fp32", True): Need(20 * _MB, 9_900),
    ("RRDBNet", "fp32", False): Need(20 * _MB, 8_300, 2_500, 80 * _MB),
    ("RRDBNet", "bf16", True): Need(32 * _MB, 4_300, 2_400, 60 * _MB),
    ("RRDBNet", "bf16", False): Need(32 * _MB, 4_300, 2_400, 60 * _MB),
    ("SRVGGNetCompact", "fp32", True): Need(32 * _MB, 560, 950, 62 * _MB),
    ("SRVGGNetCompact", "fp32", False): Need(22 * _MB, 480, 800, 50 * _MB),
    ("SRVGGNetCompact", "bf16", True): Need(32 * _MB, 450, 650, 24 * _MB),
    ("SRVGGNetCompact", "bf16", False): Need(32 * _MB, 450, 650, 24 * _MB),
}
# Reckoned, not measured: three maps of 64 channels at the size of the result, and cuDNN's workspace.
_ON_GPU: dict[Precision, Need] = {
    "fp32": Need(1024 * _MIB, 13_000),
    "bf16": Need(1024 * _MIB, 7_000),
    "fp16": Need(1024 * _MIB, 7_000),
}


def of_network(architecture: str, precision: Precision, device: Device, flags: frozenset[str] = frozenset()) -> Need:
    """What a network needs beyond its weights.

    Args:
        architecture: as in `registry.Model`; an unknown one counts like RRDBNet, the largest of those we know.
        precision: the number format in use.
        device: where it runs.
        flags: capabilities of the CPU, from `weights.hardware.cpu_flags`; without any it counts as a plain one.
    """
    if device == "cuda":
        return _ON_GPU[precision]
    kind: Precision = "fp32" if precision == "fp32" else "bf16"
    wide = "avx512f" in flags
    return _ON_CPU.get((architecture, kind, wide), _ON_CPU["RRDBNet", kind, wide])


def of_weights(model: Model, precision: Precision) -> int:
    """Bytes of a loaded model; of one whose file is not here yet, those of x4plus."""
    file_bytes = model.bytes or 33_500_000
    # Our converted files hold 16 bits a number. Loading builds the network in fp32 first.
    return file_bytes * _ITEM["fp32"] // 2 if precision == "fp32" else file_bytes


@dataclass(frozen=True)
class Picture:
    """A picture on its way through enhancement.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: of its pixels: 1 to 4.
        itemsize: bytes of a sample: 1, or 2 for 16 bits.
    """

    height: int
    width: int
    channels: int = 3
    itemsize: int = 1


# Up to here an encoder gets its picture in memory, beyond it in a file; see `codec`.
_ENCODED_IN_MEMORY = 64 * _MIB


def of_picture(picture: Picture, *, tile: int, scale: int, outscale: float | None = None) -> int:
    """Bytes that a picture takes in main memory beside the network: its pixels, rows of the result, the encoder's.

    Args:
        picture: what is enhanced.
        tile: longest side of a tile's core.
        scale: the network's own.
        outscale: how many times wider and higher the result is; the network's scale by default.
    """
    outscale = scale if outscale is None else outscale
    pixels = picture.height * picture.width
    colours = 3 * picture.itemsize
    # What was decoded, and the three channels that a network sees where that is another array.
    given = pixels * picture.channels * picture.itemsize + (0 if picture.channels == 3 else pixels * colours)
    # A row of tiles is made while the one before is still with the encoder.
    row = min(tile, picture.height) * picture.width * scale**2
    rows = 2 * row * colours
    if picture.channels < 3:
        rows += 8 * row  # the mean of three channels is taken in 32 bits, twice
    if outscale != scale:
        rows += 2 * row * colours + 4 * row  # what the resizer keeps, and one plane of it in floats
    result = math.ceil(pixels * outscale**2) * max(picture.channels, 1) * picture.itemsize
    return given + rows + 2 * min(result, _ENCODED_IN_MEMORY)


def tile_pixels(need: Need, free: int, device: Device, beside: int = 0) -> int:
    """The most pixels that a padded tile may have.

    Args:
        need: of the network.
        free: bytes that are free on the device.
        device: decides which part of them may be used.
        beside: bytes of the same memory that the picture itself takes.
    """
    return need.pixels(int(free * SHARE[device]) - beside)


def for_step(
    model: Model,
    precision: Precision,
    *,
    max_pixels: int,
    tile: int = SMALLEST_TILE,
    device: Device = "cpu",
    outscale: float | None = None,
) -> int:
    """Bytes of main memory that a process which enhances pictures holds at most: what to ask of a cluster for it.

    Args:
        model: the model.
        precision: the number format in use.
        max_pixels: of the largest picture; it is taken as three times as wide as high.
        tile: longest side of a tile's core; more only makes it faster. The default is the least that works.
        device: where the network runs; on a GPU its own memory counts apart.
        outscale: how many times wider and higher results are; the model's scale by default.

    Returns:
        Bytes, the child that decodes included.

    Raises:
        ValueError: sizes below 1.
    """
    if max_pixels < 1 or tile < 1:
        raise ValueError(f"expected sizes above 0, got {max_pixels} pixels and a tile of {tile}")
    height = max(1, math.isqrt(max_pixels // 3))
    picture = Picture(height, -(-max_pixels // height))
    padded = min(tile + 2 * DEFAULT_HALO, picture.height) * min(tile + 2 * DEFAULT_HALO, picture.width)
    network = of_network(model.architecture, precision, device).of(padded) if device == "cpu" else 0
    around = of_picture(picture, tile=tile, scale=model.scale or 4, outscale=outscale)
    return PROCESS_BYTES + of_weights(model, precision) + network + around + _decoder(max_pixels)


def _decoder(pixels: int) -> int:
    """The child that decodes: its libraries, what it decodes and what it makes upright."""
    return 150 * _MIB + 2 * 4 * pixels


def pictures_at_once(free: int, one: int) -> int:
    """How many pictures can be enhanced at once, each in a process of its own.

    Args:
        free: bytes of main memory for all of them.
        one: what each needs, from `for_step`.

    Returns:
        0 where not even one fits.
    """
    return max(0, free) // one
