"""What corrupt files cost their batch: 1,000 files with 50 corrupt ones over the 950 good ones, in CPU time."""

from __future__ import annotations

import resource
import statistics
import tempfile
from pathlib import Path

from benchmarks.library import library
from benchmarks.results_file import write

GOOD, CORRUPT, ROUNDS = 950, 50, 9


def main() -> None:
    """Measure, interleaved, and write `results/corrupt.json`."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="mirror-realm-corrupt-") as base:
        folders = {bad: Path(base) / ("mixed" if bad else "good") for bad in times}
        for bad, folder in folders.items():
            folder.mkdir()
            _fill(folder, bad)
        for number in range(ROUNDS):
            for bad, folder in folders.items():
                times[bad].append(_cpu_of_one_ingest(Path(base) / f"home-{number}-{bad}", folder))
    mixed, good = statistics.median(times[True]), statistics.median(times[False])
    write(
        "corrupt",
        {
            "good": GOOD,
            "corrupt": CORRUPT,
            "rounds": ROUNDS,
            "good_alone_cpu_seconds": round(good, 2),
            "with_corrupt_cpu_seconds": round(mixed, 2),
            "ratio": round(mixed / good, 3),
            "ratios_of_rounds": [round(a / b, 3) for a, b in zip(times[True], times[False], strict=True)],
        },
    )


def _fill(folder: Path, bad: bool) -> None:
    from PIL import Image
    from skimage import data

    cat = Image.fromarray(data.chelsea())
    for number in range(GOOD):
        left, top = number % 100, number // 10
        cat.crop((left, top, left + 320, top + 200)).resize((640, 400)).save(folder / f"{number:04}.jpg", "JPEG")
    whole = (folder / "0000.jpg").read_bytes()
    for number in range(CORRUPT if bad else 0):
        broken = bytearray(whole[: len(whole) * (number + 10) // (CORRUPT + 20)])  # its end is missing
        if number % 2:
            broken = bytearray(whole)
            broken[2:600] = bytes((7 * number + at) % 256 for at in range(598))  # its header makes no sense
        (folder / f"{number * 19:04}-broken.jpg").write_bytes(bytes(broken))


def _cpu_of_one_ingest(home: Path, folder: Path) -> float:
    before = _cpu()
    with library(home, folder) as found:
        found.scan()
        count = found.work()
    if count != len(list(folder.iterdir())):
        raise RuntimeError(f"{count} files were in batches")
    return _cpu() - before


def _cpu() -> float:
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in every)
