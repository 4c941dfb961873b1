"""What the engine costs.

`raw_media` over the same reads and decodes called directly, in one run, interleaved; and three stages that do nothing,
over many tiny pictures: what is left is the engine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.library import library
from benchmarks.results_file import write
from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.stage import Result, Stage

FILES = 300
ROUNDS = 3
TRIVIAL_FILES = 3000


def main() -> None:
    """Measure and write `results/engine.json`."""
    direct: list[float] = []
    engine: list[float] = []
    for _round in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="mirror-realm-engine-") as base:
            folder = Path(base) / "photos"
            folder.mkdir()
            for number in range(FILES):
                _photo(folder / f"{number:04d}.jpg", number)
            direct.append(_direct(folder))
            engine.append(_engine(Path(base) / "home", folder))
    seconds = _trivial()
    figures = {
        "files": FILES,
        "direct_seconds": round(min(direct), 2),
        "engine_seconds": round(min(engine), 2),
        "engine_over_direct": round(min(engine) / min(direct), 2),
        "engine_files_per_second": round(FILES / min(engine), 1),
        "trivial_files": TRIVIAL_FILES,
        "trivial_stages": 3,
        "trivial_seconds": round(seconds, 2),
        "trivial_files_per_second": round(TRIVIAL_FILES / seconds),
    }
    write("engine", figures)


def _photo(path: Path, number: int) -> None:
    from PIL import Image
    from skimage import data

    left, top = number % 100, number // 100
    picture = Image.fromarray(data.chelsea()).crop((left, top, left + 300, top + 200))
    picture.resize((640, 427)).save(path, "JPEG")


def _direct(folder: Path) -> float:
    settings = Settings.read()
    limits = {"max_pixels": settings.max_pixels, "max_frames": settings.max_frames}
    began = time.monotonic()
    with Decoder(seconds=60, memory_bytes=settings.decode_memory_bytes, **limits) as decoder:
        for path in sorted(folder.iterdir()):
            with read_original(os.fsencode(folder), os.fsencode(path.name), max_bytes=2**30) as original:
                decoder.proxy(original.fd, long_side=settings.proxy_long_side)
    return time.monotonic() - began


def _engine(home: Path, folder: Path) -> float:
    with library(home, folder) as found:
        found.scan()
        began = time.monotonic()
        found.work()
        return time.monotonic() - began


def _nothing(name: str) -> Stage:
    def run(works: Iterable[Work], _context: StageContext) -> Iterator[Result]:
        for work in works:
            yield Result(work, Finding("ok", {"n": 1}))

    recipe = Recipe(name, "1")
    return Stage(name=name, description=name, lane="search", needs=("raw_media",), recipe=lambda _: recipe, run=run)


def _trivial() -> float:
    """Three stages, one after the other, over every batch of pictures that are read already."""
    with tempfile.TemporaryDirectory(prefix="mirror-realm-engine-") as base:
        folder = Path(base) / "photos"
        folder.mkdir()
        for number in range(TRIVIAL_FILES):
            _tiny(folder / f"{number:05d}.png", number)
        with library(Path(base) / "home", folder) as found:
            stages = (raw_media_stage(found.settings), *(_nothing(name) for name in ("one", "two", "three")))
            found.scan()
            formed = form_batches(found.services.catalog, found.settings, stages, "bench", now_or_never=True)
            for key in formed.keys:
                run_stage(stages[0], key, found.services, stages)
            began = time.monotonic()
            done = 0
            for key in formed.keys:
                done += sum(run_stage(stage, key, found.services, stages).done for stage in stages[1:])
            seconds = time.monotonic() - began
        if done != 3 * TRIVIAL_FILES:
            raise RuntimeError(f"{done} results of {3 * TRIVIAL_FILES}")
        return seconds


def _tiny(path: Path, number: int) -> None:
    from PIL import Image

    Image.frombytes("RGB", (4, 2), number.to_bytes(24, "big")).save(path)
