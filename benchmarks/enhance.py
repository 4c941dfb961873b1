"""Our engine over the package `RealESRGANer` as its script runs it, and over the bare network, in one run, interleaved.

What is compared does the same work on the same picture with the same threads, after a warm-up; medians of the rounds.
Where a GPU is at hand, pictures a minute as well (`gpu`). `MIRROR_REALM_BENCH_HUGE=0` leaves the 300-megapixel result
out, which takes minutes on a CPU.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results_file import write
from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.codec import Style, encode_rows
from mirror_realm_assets.enhance.reference import ReferenceUpscaler
from mirror_realm_assets.enhance.tiling import overhead, plan
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import fetch
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
MODEL = MODELS["realesrgan-x4plus"]
SMALL = MODELS["realesr-animevideov3"]
SIDE, ROUNDS = 160, 5
HUGE = (3750, 5000)  # 300 megapixels at four times the width and height
_HUGE_TILE = 256


def main() -> None:
    """Measure and write `results/enhance.json`."""
    settings = Settings.read()
    for model in (MODEL, SMALL):
        fetch(model, settings.models_dir)
    figures = _against_the_package(settings)
    figures |= _against_the_bare_network(settings)
    figures["computed_over_useful_1080p"] = _overhead(settings)
    if os.environ.get("MIRROR_REALM_BENCH_HUGE", "1") != "0":
        figures["huge"] = _huge(settings)
    gpu = _gpu(settings)
    if gpu is not None:
        figures["gpu"] = gpu
    write("enhance", figures)


def _photo(side: int) -> Picture:
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[40 : 40 + side, 140 : 140 + side])


def _against_the_package(settings: Settings) -> dict[str, Any]:
    photo, models = _photo(SIDE), settings.models_dir
    with (
        ReferenceUpscaler(MODEL, models, device="cpu", threads=2) as stock,
        Upscaler(MODEL, models, device="cpu", precision="fp32", threads=2) as exact,
        Upscaler(MODEL, models, device="cpu", precision="bf16", threads=2) as fast,
    ):
        runs: dict[str, Callable[[], Any]] = {
            "stock": lambda: stock.upscale(photo),
            "fp32": lambda: exact.upscale(photo, tile=SIDE),
            "bf16": lambda: fast.upscale(photo, tile=SIDE),
        }
        seconds, made = _interleaved(runs)
    difference = np.abs(made["fp32"].astype(int) - made["stock"]).max()
    return {
        "picture": [SIDE, SIDE],
        "stock_seconds": round(seconds["stock"], 2),
        "native_fp32_over_stock": round(seconds["stock"] / seconds["fp32"], 2),
        "native_fp32_levels_apart": int(difference),
        "native_bf16_over_stock": round(seconds["stock"] / seconds["bf16"], 2),
        "native_bf16_psnr_db": round(psnr(made["bf16"], made["stock"]), 1),
    }


def _against_the_bare_network(settings: Settings) -> dict[str, Any]:
    """From a picture to the bytes of a PNG, over one pass of the same network alone."""
    import torch

    photo = _photo(SIDE)
    with Upscaler(MODEL, settings.models_dir, device="cpu", threads=2) as upscaler:
        descriptor = upscaler._network._descriptor  # the bare network is inside
        assert descriptor is not None  # noqa: S101 - it was loaded a line above
        dtype = next(descriptor.model.parameters()).dtype
        batch = torch.tensor(photo).permute(2, 0, 1)[None].to(dtype).div_(255)
        batch = batch.contiguous(memory_format=torch.channels_last)

        def bare() -> Any:
            with torch.inference_mode():
                return descriptor(batch)

        def whole() -> Any:
            target = io.BytesIO()
            size = upscaler.output_size(SIDE, SIDE)
            encode_rows(upscaler.strips(photo, tile=SIDE), size, Style("png"), target)
            return target

        seconds, _made = _interleaved({"bare": bare, "whole": whole})
        precision = upscaler.precision
    return {"precision": precision, "throughput_over_bare_network": round(seconds["bare"] / seconds["whole"], 3)}


def _interleaved(runs: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each, and what each made."""
    made = {name: run() for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _round in range(ROUNDS):
        for name, run in runs.items():
            began = time.monotonic()
            made[name] = run()
            spent[name].append(time.monotonic() - began)
    return {name: statistics.median(each) for name, each in spent.items()}, made


def _overhead(settings: Settings) -> float:
    """Of the tiles that are chosen for 1080p with the memory that is free here."""
    with Upscaler(MODEL, settings.models_dir, threads=2) as upscaler:
        tile = upscaler.chosen_tile(memory.Picture(1080, 1920))
    return round(overhead(plan(1080, 1920, tile=tile)), 3)


def _huge(settings: Settings) -> dict[str, Any]:
    """Peak memory of a 300-megapixel result, beyond that of the loaded model, in a process of its own."""
    script = f"""
import resource, sys, tempfile, time
import numpy as np
from pathlib import Path
from skimage import data
from mirror_realm_assets.enhance.codec import Style, encode_rows, probe_file
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.registry import MODELS
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
photo = np.tile(data.astronaut(), (8, 10, 1))[:{HUGE[0]}, :{HUGE[1]}]
with Upscaler(MODELS["{SMALL.name}"], Path(sys.argv[1]), threads=2) as upscaler:
    upscaler.upscale(photo[:{_HUGE_TILE}, :{_HUGE_TILE}])
    before = peak()
    size = upscaler.output_size(*photo.shape[:2])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        path = Path(folder) / "huge.png"
        with path.open("wb") as file:
            encode_rows(upscaler.strips(photo, tile={_HUGE_TILE}), size, Style("png"), file, Path(folder))
        found = probe_file(path)
        print(before, peak(), time.monotonic() - began, found.width, found.height, path.stat().st_size)
"""
    with tempfile.TemporaryDirectory(prefix="mirror-realm-huge-") as folder:
        command = [sys.executable, "-c", script, str(settings.models_dir), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own script
    before, after, seconds, width, height, size = (float(word) for word in done.stdout.split())
    pixels = width * height
    return {
        "model": SMALL.name,
        "tile": _HUGE_TILE,
        "megapixels": round(pixels / 1e6, 1),
        "seconds": round(seconds),
        "file_mb": round(size / 1e6),
        "peak_beyond_model_mb": round((after - before) / 1e6),
        "peak_over_size": round((after - before) / (3 * pixels), 3),
    }


def _gpu(settings: Settings) -> dict[str, Any] | None:
    """1080p pictures a minute, encoding included, and the share of the card's arithmetic; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    rng = np.random.default_rng(1)
    photo = np.tile(_photo(372), (3, 6, 1))[:1080, :1920]
    pictures = [np.roll(photo, rng.integers(0, 1080, 2), axis=(0, 1)) for _ in range(64)]
    with Upscaler(MODEL, settings.models_dir, device="cuda") as upscaler:
        upscaler.upscale(pictures[0])
        torch.cuda.synchronize()
        began = time.monotonic()
        for picture in pictures:
            encode_rows(upscaler.strips(picture), upscaler.output_size(1080, 1920), Style("jpeg"), io.BytesIO())
        seconds = time.monotonic() - began
    return {
        "card": torch.cuda.get_device_name(),
        "precision": upscaler.precision,
        "pictures_a_minute": round(60 * len(pictures) / seconds, 1),
        "tflops": round(74.35 * len(pictures) / seconds, 1),
    }


def psnr(one: Picture, other: Picture) -> float:
    """Decibels between two pictures of 8 bits."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
