"""What the engine costs: `raw_media` over the same reads and decodes called directly, in one run, interleaved."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.library import library
from benchmarks.results_file import write
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.settings import Settings

FILES = 300
ROUNDS = 3


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
    figures = {
        "files": FILES,
        "direct_seconds": round(min(direct), 2),
        "engine_seconds": round(min(engine), 2),
        "engine_over_direct": round(min(engine) / min(direct), 2),
        "engine_files_per_second": round(FILES / min(engine), 1),
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
