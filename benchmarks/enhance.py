"""Our engine over the package `RealESRGANer` as its script runs it, and over the bare network, in one run, interleaved.

What is compared does the same work on the same picture with the same threads, after a warm-up; medians of the rounds.
Where a GPU is at hand, pictures a minute through the whole stage as well (`gpu`). `MIRROR_REALM_BENCH_HUGE=0` leaves
the 300-megapixel result out, which takes minutes on a CPU.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from benchmarks.engines import KINDS, MODEL, SIDE, Engine, photo
from benchmarks.library import Library, library
from benchmarks.results_file import write
from mirror_realm_assets.enhance import memory
from mirror_realm_assets.enhance.codec import Style, encode_rows
from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.enhance.tiling import overhead, plan
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.weights.fetch import fetch
from mirror_realm_assets.weights.hardware import choose_precision, cpu_flags, start_environment
from mirror_realm_assets.weights.registry import MODELS

if TYPE_CHECKING:
    from PIL import Image

Picture = npt.NDArray[np.uint8]
SMALL = MODELS["realesr-animevideov3"]
ROUNDS = 5
PICTURES = 64  # for a GPU: different ones of 1920x1080
TFLOP = 74.35  # of x4plus over one of those: 17,926,848 multiply-adds an input pixel
ROOFS = {"A100": 312, "H100": 989, "H200": 989, "L40S": 362, "T4": 65}  # TFLOP/s in dense fp16, by the maker
HUGE = (3750, 5000)  # 300 megapixels at four times the width and height
_HUGE_TILE = 256


def main() -> None:
    """Measure and write `results/enhance.json`."""
    if start_environment():  # as `mirror-realm enhance` does
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same program, no shell
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


def _against_the_package(settings: Settings) -> dict[str, Any]:
    """Each engine in a process of its own, the package's with the environment that a shell gives its script."""
    with ExitStack() as stack:
        emulated = choose_precision("auto", "cpu", cpu_flags()) != "bf16"  # which takes ten times as long as fp32
        kinds = [kind for kind in KINDS if not (emulated and kind == "bf16")]
        engines = {kind: stack.enter_context(Engine(kind, settings.models_dir)) for kind in kinds}
        seconds, made = _interleaved({kind: engine.run for kind, engine in engines.items()})
        pictures = {kind: np.load(path) for kind, path in made.items()}
    stock = pictures["stock"]
    difference = np.abs(pictures["fp32"].astype(int) - stock).max()
    figures: dict[str, Any] = {
        "picture": [SIDE, SIDE],
        "stock_seconds": round(seconds["stock"], 2),
        "native_fp32_over_stock": round(seconds["stock"] / seconds["fp32"], 2),
        "native_fp32_levels_apart": int(difference),
    }
    if "bf16" in pictures:
        figures["native_bf16_over_stock"] = round(seconds["stock"] / seconds["bf16"], 2)
        figures["native_bf16_psnr_db"] = round(psnr(pictures["bf16"], stock), 1)
    return figures


def _against_the_bare_network(settings: Settings) -> dict[str, Any]:
    """From a picture to the bytes of a PNG, over one pass of the same network alone."""
    import torch

    picture = photo(SIDE)
    with Upscaler(MODEL, settings.models_dir, device="cpu", threads=2) as upscaler:
        descriptor = upscaler._network._descriptor  # the bare network is inside
        assert descriptor is not None  # noqa: S101 - it was loaded a line above
        dtype = next(descriptor.model.parameters()).dtype
        batch = torch.tensor(picture).permute(2, 0, 1)[None].to(dtype).div_(255)
        batch = batch.contiguous(memory_format=torch.channels_last)

        def bare() -> Any:
            with torch.inference_mode():
                return descriptor(batch)

        def whole() -> Any:
            target = io.BytesIO()
            size = upscaler.output_size(SIDE, SIDE)
            encode_rows(upscaler.strips(picture, tile=SIDE), size, Style("png"), target)
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
from mirror_realm_assets.enhance.codec import Style, encode_rows
from mirror_realm_assets.enhance.probing import probe_file
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
    """1080p pictures a minute through the stage itself, and the share of the card's arithmetic; None without a GPU.

    From files in a folder to verified JPEGs in a store, recorded in a catalog: decoding, encoding and all.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    busy = _Busy()
    seconds, used = through_the_stage(settings, MODEL.name, PICTURES, (1920, 1080), busy)
    card = torch.cuda.get_device_name()
    roof = next((tflops for name, tflops in ROOFS.items() if name in card), None)
    return {
        "card": card,
        "cores": len(os.sched_getaffinity(0)),
        "precision": used["precision"],
        "pictures": PICTURES,
        "pictures_a_minute": round(60 * PICTURES / seconds, 1),
        "tflops": round(TFLOP * PICTURES / seconds, 1),
        "share_of_the_roof": None if roof is None else round(TFLOP * PICTURES / seconds / roof, 3),
        "gpu_busy_percent": busy.percent,
    }


def through_the_stage(
    settings: Settings, model: str, count: int, size: tuple[int, int], watch: AbstractContextManager[Any]
) -> tuple[float, dict[str, str | int]]:
    """Runs of the stage `enhanced_images` over different pictures, in a home of their own, after one to warm up.

    Args:
        settings: of the models folder.
        model: name of the model.
        count: how many pictures.
        size: width and height of each.
        watch: entered for the measured part.

    Returns:
        Seconds, and what the stage says that it worked with.

    Raises:
        RuntimeError: a picture was not made.
    """
    options = {"enhance.model": model, "enhance.format": "jpeg", "enhance.max_pixels": str(10**9)}
    with tempfile.TemporaryDirectory(prefix="mirror-realm-enhance-") as base:
        folder = Path(base) / "photos"
        folder.mkdir()
        with library(Path(base) / "home", folder, options=options) as found:
            _link(found.settings.models_dir, settings.models_dir)
            _different(0, size).save(folder / "warm-up.jpg", quality=95)
            _stage(found, 1)  # loading, and the first run at a shape
            for number in range(1, count + 1):
                _different(number, size).save(folder / f"{number:03d}.jpg", quality=95)
            return _stage(found, count, watch)


def _stage(
    found: Library, count: int, watch: AbstractContextManager[Any] | None = None
) -> tuple[float, dict[str, str | int]]:
    """Read what is new in the folder, then enhance it; seconds of the latter."""
    s, services = found.settings, found.services
    stages = (raw_media_stage(s), enhanced_images_stage(s.precision, s.models_dir))
    found.scan()
    formed = form_batches(services.catalog, s, stages, "bench", now_or_never=True)
    for key in formed.keys:
        run_stage(stages[0], key, services, stages)
    with watch or nullcontext():
        reports = [run_stage(stages[1], key, services, stages) for key in formed.keys]
    made = sum(report.counts["ok"] for report in reports)
    if made != count:
        raise RuntimeError(f"{made} pictures of {count} were made")
    return sum(report.seconds for report in reports), reports[0].used


def _link(place: Path, target: Path) -> None:
    if place.exists():
        place.rmdir()
    place.symlink_to(target.resolve())


def _different(number: int, size: tuple[int, int]) -> Image.Image:
    """A photograph that no other number has."""
    from PIL import Image, ImageOps
    from skimage import data

    photos = (data.astronaut, data.chelsea, data.coffee, data.rocket)
    photo = Image.fromarray(photos[number % 4]())
    left, top = 2 * (number // 4) % 90, number // 4 % 40
    part = photo.crop((left, top, photo.width - 90 + left, photo.height - 40 + top))
    return ImageOps.fit(part, size, Image.Resampling.LANCZOS)


class _Busy:
    """The share of time in which the GPU computed, sampled once a second by NVML; None where that is not to be had."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gpu-busy", daemon=True)

    @property
    def percent(self) -> float | None:
        """Mean of the samples."""
        return round(statistics.mean(self._samples), 1) if self._samples else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        import torch

        while not self._over.wait(1):
            try:
                self._samples.append(torch.cuda.utilization())
            except (ImportError, RuntimeError, AssertionError):  # no NVML, or no GPU
                return


def psnr(one: Picture, other: Picture) -> float:
    """Decibels between two pictures of 8 bits."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
