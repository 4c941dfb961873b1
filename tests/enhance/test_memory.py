"""What enhancement needs: the arithmetic, and real processes that are allowed no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.memory import Need, Picture
from mirror_realm_assets.weights.hardware import Device, Precision
from mirror_realm_assets.weights.registry import MODELS, RELEASED

SMALL = MODELS["realesr-animevideov3"]
GIB = 1024**3
AVX512 = frozenset({"avx512f"})
needs = st.builds(Need, *(st.integers(low, high) for low, high in [(0, 10**8), (1, 10**5), (0, 10**4), (0, 10**8)]))
pictures = st.builds(
    Picture, st.integers(1, 5000), st.integers(1, 5000), channels=st.integers(1, 4), itemsize=st.integers(1, 2)
)


@given(needs, st.integers(0, 10**11))
def test_as_many_pixels_as_fit_and_not_one_more(need: Need, free: int) -> None:
    pixels = need.pixels(free)
    assert need.of(pixels + 1) > free
    assert pixels == 0 or need.of(pixels) <= free


@given(pictures, st.integers(64, 2000), st.sampled_from([0.5, 2.0, 4.0, 8.0]))
def test_a_larger_picture_and_a_larger_tile_never_need_less(picture: Picture, tile: int, outscale: float) -> None:
    wider = Picture(picture.height, picture.width + 1, picture.channels, picture.itemsize)
    here = memory.of_picture(picture, tile=tile, scale=4, outscale=outscale)
    assert here > picture.height * picture.width * picture.channels * picture.itemsize
    assert memory.of_picture(wider, tile=tile, scale=4, outscale=outscale) >= here
    assert memory.of_picture(picture, tile=tile + 1, scale=4, outscale=outscale) >= here


@pytest.mark.parametrize("device", get_args(Device))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_network_has_its_need_and_an_unknown_one_counts_like_the_largest(
    device: Device, precision: Precision
) -> None:
    known = {
        name: memory.of_network(name, precision, device, AVX512).of(10**6)
        for name in ("RRDBNet", "SRVGGNetCompact", "SwinIR")
    }
    assert known["SwinIR"] == known["RRDBNet"] >= known["SRVGGNetCompact"]
    assert memory.of_network("RRDBNet", "fp32", device, AVX512).of(10**6) >= known["RRDBNet"]


@given(st.integers(1, 10**8), st.integers(64, 1024))
def test_a_step_needs_more_for_larger_pictures_and_larger_tiles(pixels: int, tile: int) -> None:
    spec = MODELS["realesrgan-x4plus"]
    here = memory.for_step(spec, "fp32", max_pixels=pixels, tile=tile)
    assert here > GIB
    assert memory.for_step(spec, "fp32", max_pixels=4 * pixels, tile=tile) >= here
    assert memory.for_step(spec, "fp32", max_pixels=pixels, tile=tile + 64) >= here
    assert memory.for_step(spec, "bf16", max_pixels=pixels, tile=tile) < here


def test_a_step_is_known_before_its_weights_are_here() -> None:
    assert memory.for_step(RELEASED["realesr-general-x4v3"], "fp32", max_pixels=10**6) > GIB
    with pytest.raises(ValueError, match="sizes above 0"):
        memory.for_step(SMALL, "fp32", max_pixels=0)


@pytest.mark.parametrize(("free", "pictures"), [(24 * GIB, 12), (2 * GIB, 1), (2 * GIB - 1, 0), (-1, 0)])
def test_as_many_pictures_at_once_as_there_is_memory_for(free: int, pictures: int) -> None:
    assert memory.pictures_at_once(free, 2 * GIB) == pictures


CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.weights.registry import MODELS
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
folder, share, tile, limit = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
picture, told = np.random.default_rng(1).integers(0, 256, (512, 64, 3), np.uint8), []
with Upscaler(MODELS["realesr-animevideov3"], folder, device="cpu", precision="fp32") as upscaler:
    around = memory.of_picture(memory.Picture(512, 64), tile=512, scale=4)
    loaded, need = status("VmRSS:"), upscaler.need.of(512 * 64) + around
    if share:
        kinds = {"address": (resource.RLIMIT_AS, "VmSize:"), "data": (resource.RLIMIT_DATA, "VmData:")}
        bound = status(kinds[limit][1]) + int(share * need)
        resource.setrlimit(kinds[limit][0], (bound, bound))
    Path("/proc/self/clear_refs").write_text("5")
    try:
        made = upscaler.upscale(picture, tile=tile, on_progress=told.append)
        answer = {"shape": made.shape, "tiles": told[-1].total}
    except Failed as error:
        answer = {"code": error.code}
print(json.dumps(answer | {"estimate": need, "peak": status("VmHWM:") - loaded}))
"""


def enlarged(models_dir: Path, share: float, tile: int | None, limit: str = "address") -> dict[str, Any]:
    """What became of 512 x 64 pixels in a process that may have `share` of their estimate beyond the loaded model."""
    command = [sys.executable, "-c", CHILD, str(models_dir), str(share), json.dumps(tile), limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("limit", ["address", "data"])
def test_what_is_said_to_fit_fits_within_a_hard_limit(models_dir: Path, limit: str) -> None:
    found = enlarged(models_dir, 1.0, 512, limit)
    assert (found["shape"], found["tiles"]) == ([2048, 256, 3], 1)


def test_with_clearly_less_a_given_tile_fails_by_its_name(models_dir: Path) -> None:
    assert enlarged(models_dir, 0.15, 512)["code"] == "out_of_memory"


def test_with_clearly_less_a_chosen_tile_is_smaller(models_dir: Path) -> None:
    found = enlarged(models_dir, 0.5, None)
    assert found["shape"] == [2048, 256, 3] and found["tiles"] > 1


TEN_TIMES = """
import sys
from pathlib import Path
import numpy as np
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.registry import MODELS
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
for _time in range(10):
    with Upscaler(MODELS["realesrgan-x4plus-anime"], Path(sys.argv[1]), device="cpu", precision="fp32") as upscaler:
        upscaler.upscale(picture)
    print(resident())
"""


def test_ten_loadings_leave_no_more_behind_than_one(models_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TEN_TIMES, str(models_dir)], capture_output=True, text=True, check=True, timeout=240
    )
    resident = [int(line) for line in done.stdout.split()]
    assert resident[9] <= 1.05 * resident[0]
    assert resident[9] - resident[0] < 0.05 * 18_000 * 9  # a twentieth of the weights, each time
