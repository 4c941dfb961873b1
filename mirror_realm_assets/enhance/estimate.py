"""How long enhancement will take, before anything is computed.

What belongs here: measured rates and plain arithmetic. What does not: what this machine has really needed so far,
which the ledger knows and which replaces the defaults as soon as there is any.
"""

from __future__ import annotations

from mirror_realm_assets.weights.hardware import Device, Precision

# Seconds for a megapixel of input. CPU: two cores, x4plus on 320x320 (fp32 on AVX2: 274 s, on AVX-512: 193 s;
# bf16 where it is native: 93 s, with AMX 47 s). GPU: not measured but reckoned from 35.85 TFLOP a megapixel at a third
# of an A100's 312 TFLOP/s, fp32 at half of that.
_X4PLUS: dict[tuple[Device, Precision], float] = {
    ("cpu", "fp32"): 250.0,
    ("cpu", "bf16"): 95.0,
    ("cuda", "fp16"): 0.35,
    ("cuda", "bf16"): 0.35,
    ("cuda", "fp32"): 0.7,
}
_AMX_BF16 = 47.0
# What the other models take of x4plus's time: CPU seconds of both threads on 160x160, the least of seven interleaved
# rounds, the larger ratio of bf16 with AMX and fp32. The general ones had random weights, which take as long. Their
# multiplications alone would be 0.32, 0.035 and 0.067 of x4plus's.
_SHARES: dict[str, float] = {
    "realesrgan-x4plus-anime": 0.36,
    "realesr-animevideov3": 0.029,
    "realesr-general-x4v3": 0.053,
    "realesr-general-wdn-x4v3": 0.053,
}
_MEGAPIXEL = 1_000_000


def seconds_per_megapixel(
    model: str, precision: Precision, device: Device = "cpu", flags: frozenset[str] = frozenset()
) -> float:
    """The rate to assume as long as nothing has been measured on this machine.

    Args:
        model: name of an `enhance` model; an unknown one counts like x4plus.
        precision: the number format in use. bf16 is taken as native: emulated it is ten times slower than fp32.
        device: where it runs; the CPU figures are those of two cores.
        flags: capabilities of the CPU, from `weights.hardware.cpu_flags`.

    Returns:
        Seconds for one megapixel of input.
    """
    share = _SHARES.get(model, 1.0)
    if (device, precision) == ("cpu", "bf16") and "amx_bf16" in flags:
        return share * _AMX_BF16
    return share * _X4PLUS.get((device, precision), _X4PLUS[(device, "fp32")])


def estimate_seconds(
    pixels: int, rate: float, *, overhead: float = 1.0, pictures: int = 1, seconds_per_picture: float = 0.5
) -> float:
    """Seconds to enhance pictures one after the other.

    Args:
        pixels: input pixels of all of them together.
        rate: seconds for a megapixel of input, as measured or from `seconds_per_megapixel`.
        overhead: computed over useful pixels, from `tiling.overhead`; 1.0 where pictures fit one tile.
        pictures: how many there are.
        seconds_per_picture: reading, encoding and writing one.

    Raises:
        ValueError: a negative number.
    """
    if min(pixels, rate, overhead, pictures, seconds_per_picture) < 0:
        raise ValueError("an estimate needs numbers that are not negative")
    return pixels / _MEGAPIXEL * rate * overhead + pictures * seconds_per_picture
