"""What enhancement is reckoned to need (`enhance.memory`) over what it takes, each case in a process of its own.

Measured is the peak of resident memory (`VmHWM`, set back before each pass) beyond the loaded network, the worst
of several passes: the first one finds an empty heap, later ones what malloc has kept. `ONEDNN_MAX_CPU_ISA` stands in
for lesser CPUs. The general model's weights cannot be had here; random ones of its form need the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks.results_file import write
from mirror_realm_assets.enhance import memory
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import fetch
from mirror_realm_assets.weights.hardware import START_ENVIRONMENT, Precision, cpu_flags
from mirror_realm_assets.weights.registry import MODELS

_X4PLUS, _ANIME, _VIDEO, _GENERAL = (
    "realesrgan-x4plus",
    "realesrgan-x4plus-anime",
    "realesr-animevideov3",
    "realesr-general-x4v3",
)
_ARCHITECTURES = {_X4PLUS: "RRDBNet", _ANIME: "RRDBNet", _VIDEO: "SRVGGNetCompact", _GENERAL: "SRVGGNetCompact"}

_CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from mirror_realm_assets.enhance.networks import Network
name, folder, precision, passes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
weights = folder / f"{name}.safetensors"
if not weights.exists():
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
    weights = SRVGGNetCompact(num_feat=64, num_conv=32, upscale=4, act_type="prelu").state_dict()
# Weights of another model first: what importing and the first loading leave behind belongs to no network.
Network(weights, device="cpu", precision=precision, threads=2).close()
without = status("VmRSS")
network = Network(weights, device="cpu", precision=precision, threads=2)
loaded, peaks = status("VmRSS"), []
for shape in sys.argv[5:]:
    height, width = map(int, shape.split("x"))
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    for _pass in range(passes):
        Path("/proc/self/clear_refs").write_text("5")
        network.run(picture)
        peaks.append(status("VmHWM") - loaded)
print(json.dumps({"without": without, "model": loaded - without, "peak": max(peaks)}))
"""


_PASSES = 3

_WHOLE = """
import io, json, sys
from pathlib import Path
import numpy as np
from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.codec import Style, encode_rows
from mirror_realm_assets.enhance.tiling import plan
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.registry import MODELS
name, folder, height, width, tile, outscale = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
with Upscaler(MODELS[name], folder, device="cpu", precision="fp32", threads=2) as upscaler:
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    rows = upscaler.strips(picture, tile=tile, outscale=outscale)
    size = upscaler.output_size(height, width, outscale)
    encode_rows(rows, size, Style("jpeg"), io.BytesIO())
    around = memory.of_picture(memory.Picture(height, width), tile=tile, scale=4, outscale=outscale)
    most = max(one.padded.pixels for one in plan(height, width, tile=tile))
    print(json.dumps({"estimate": upscaler.need.of(most) + around, "peak": status("VmHWM") - loaded}))
"""
# Height, width, tile and outscale of pictures that go all the way to a file.
_PICTURES = ((600, 800, 256, 4), (600, 800, 256, 3))


class _Case(NamedTuple):
    model: str
    precision: Precision
    shape: tuple[int, int]
    isa: str  # the most that oneDNN may use; empty for all that there is
    fitted: bool = True  # whether the figures of `enhance.memory` were fitted to this case, or only checked by it


def _cases() -> list[_Case]:
    """Small tiles, in which a pass takes seconds on two cores; x4plus only where its depth could matter."""
    native = bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
    kinds: list[tuple[Precision, str]] = [("fp32", ""), ("fp32", "AVX2")]
    if native:
        kinds += [("bf16", ""), ("bf16", "AVX512_CORE_BF16")]
    cases = []
    for precision, isa in kinds:
        cases += [_Case(_ANIME, precision, shape, isa) for shape in ((96, 96), (160, 160), (320, 320))]
        cases += [_Case(_VIDEO, precision, shape, isa) for shape in ((160, 160), (256, 256), (300, 900))]
        cases += [_Case(_X4PLUS, precision, (160, 120), isa), _Case(_GENERAL, precision, (256, 256), isa)]
        if not isa:
            cases += [_Case(_ANIME, precision, shape, isa, False) for shape in ((128, 200), (256, 256))]
            cases += [_Case(_VIDEO, precision, shape, isa, False) for shape in ((200, 400), (512, 512))]
            cases.append(_Case(_X4PLUS, precision, (224, 224), isa, False))
    return cases


def main() -> None:
    """Measure and write `results/memory.json`."""
    folder = Settings.read().models_dir
    for name in (_X4PLUS, _ANIME, _VIDEO):
        fetch(MODELS[name], folder)
    rows = []
    for case in _cases():
        found = _measured(case, str(folder))
        flags = frozenset() if case.isa == "AVX2" else cpu_flags()
        need = memory.of_network(_ARCHITECTURES[case.model], case.precision, "cpu", flags).of(
            case.shape[0] * case.shape[1]
        )
        rows.append(
            {
                "model": case.model,
                "precision": case.precision,
                "isa": case.isa or "all",
                "fitted": case.fitted,
                "tile": list(case.shape),
                "measured_mb": round(found["peak"] / 1e6),
                "estimate_mb": round(need / 1e6),
                "estimate_over_measured": round(need / found["peak"], 2),
                "model_mb": round(found["model"] / 1e6),
            }
        )
        print(*rows[-1].values(), flush=True)
    whole = [_whole_picture(numbers, str(folder)) for numbers in _PICTURES]
    spans = {"fitted": _span(rows, True), "checked": _span(rows, False)}
    write("memory", {"estimate_over_measured": spans, "tiles": rows, "pictures": whole})


def _span(rows: list[dict[str, Any]], fitted: bool) -> dict[str, float]:
    ratios = [row["estimate_over_measured"] for row in rows if row["fitted"] is fitted]
    return {"lowest": min(ratios), "highest": max(ratios)}


def _whole_picture(numbers: tuple[int, int, int, int], folder: str) -> dict[str, Any]:
    """From pixels to the bytes of a JPEG, everything beyond the loaded model."""
    found = _child(_WHOLE, [_VIDEO, folder, *map(str, numbers)], "")
    height, width, tile, outscale = numbers
    return {
        "model": _VIDEO,
        "picture": [height, width],
        "tile": tile,
        "outscale": outscale,
        "measured_mb": round(found["peak"] / 1e6),
        "estimate_mb": round(found["estimate"] / 1e6),
        "estimate_over_measured": round(found["estimate"] / found["peak"], 2),
    }


def _measured(case: _Case, folder: str) -> dict[str, Any]:
    shape = "x".join(map(str, case.shape))
    return _child(_CHILD, [case.model, folder, case.precision, str(_PASSES), shape], case.isa)


def _child(script: str, arguments: list[str], isa: str) -> dict[str, Any]:
    """What a script printed, in a process of its own."""
    environment = os.environ | START_ENVIRONMENT
    if isa:
        environment["ONEDNN_MAX_CPU_ISA"] = isa
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603 - our own
    found: dict[str, Any] = json.loads(done.stdout)
    return found
