"""What moving costs: `ingest` after 10,000 files of 1 MB went to another folder, over hashing them once.

On a local drive inodes show what was moved. On a network drive they do not: every file is read once more, and known by
its digest.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from pathlib import Path
from unittest import mock

from benchmarks.library import Library, library
from benchmarks.results_file import write

FILES = int(os.environ.get("MIRROR_REALM_BENCH_FILES", "10000"))
BYTES = 1_000_000


def main() -> None:
    """Measure and write `results/moved.json`."""
    with tempfile.TemporaryDirectory(prefix="mirror-realm-moved-") as base:
        folder = Path(base) / "photos"
        _fill(folder / "before")
        with library(Path(base) / "home", folder) as found:
            found.scan()
            began = time.monotonic()
            count = found.work()
            first = time.monotonic() - began
            if count != FILES:
                raise RuntimeError(f"{count} files were in batches")
            hashing = [_hash(folder)]
            local, local_items = _moved(found, "before", "after", inodes=True)
            hashing.append(_hash(folder))
            network, network_items = _moved(found, "after", "elsewhere", inodes=False)
            hashing.append(_hash(folder))
    once = sorted(hashing)[1]
    write(
        "moved",
        {
            "files": FILES,
            "bytes_each": BYTES,
            "first_read_seconds": round(first, 1),
            "hashing_once_seconds": round(once, 2),
            "moved_local_seconds": round(local, 2),
            "moved_local_over_hashing": round(local / once, 3),
            "moved_local_files_read": local_items,
            "moved_network_seconds": round(network, 2),
            "moved_network_over_hashing": round(network / once, 3),
            "moved_network_files_read": network_items,
        },
    )


def _fill(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    Image.effect_noise((96, 64), 60).save(folder / "seed.jpg", "JPEG")
    picture = (folder / "seed.jpg").read_bytes()
    (folder / "seed.jpg").unlink()
    noise = random.Random(0)  # noqa: S311 - not for secrets
    for number in range(FILES):
        rest = number.to_bytes(8, "big") + noise.randbytes(BYTES - len(picture) - 8)
        (folder / f"{number:05}.jpg").write_bytes(picture + rest)


def _hash(folder: Path) -> float:
    began = time.monotonic()
    for path in sorted(folder.rglob("*.jpg")):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return time.monotonic() - began


def _moved(found: Library, before: str, after: str, *, inodes: bool) -> tuple[float, int]:
    (found.folder / before).rename(found.folder / after)
    with mock.patch("mirror_realm_assets.ingest.folder_watch.on_network", return_value=not inodes):
        began = time.monotonic()
        found.scan()
        items = found.work()
    return time.monotonic() - began, items
