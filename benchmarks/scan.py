"""The first scan of a large folder, and the next one that finds nothing new, over a bare walk of the same tree.

The bare walk is `os.scandir` and `stat` of every file, in the same run. The files are empty: no byte is
read here.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results_file import write

FILES = int(os.environ.get("MIRROR_REALM_BENCH_FILES", "1000000"))
FILES_A_FOLDER = 1000
ROUNDS = 3


def main() -> None:
    """Measure, print, and write `results/scan.json`."""
    from mirror_realm_assets.catalog import files, sources
    from mirror_realm_assets.catalog.engine import Catalog
    from mirror_realm_assets.ingest.batching import form_batches
    from mirror_realm_assets.ingest.folder_watch import FolderWatch
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.settings import Settings

    folder = Path(tempfile.mkdtemp(prefix="mirror-realm-scan-"))
    try:
        root = folder / "photos"
        _make(root)
        settings = Settings.at(folder / "home", quiet_seconds=0.0)
        settings.home.mkdir()
        catalog = Catalog(settings.catalog_url)
        catalog.migrate()
        with catalog.write() as conn:
            source = sources.add(conn, "bench", os.fsencode(root), {})
        _bare_walk(root)  # so that all of them meet warm caches
        bare = [_timed(lambda: _bare_walk(root)) for _round in range(ROUNDS)]
        first = _timed(lambda: FolderWatch(catalog, settings, source).scan())
        began = time.monotonic()
        drained = 1
        while drained:
            with catalog.write() as conn:
                drained = files.drain_journal(conn)
        drain = time.monotonic() - began
        watcher = FolderWatch(catalog, settings, source)
        compared = _timed(watcher.scan)  # the first scan of a watcher that begins
        again = [_timed(watcher.scan) for _round in range(ROUNDS)]
        bare += [_timed(lambda: _bare_walk(root)) for _round in range(ROUNDS)]
        with catalog.write() as conn:  # as if everything had been read
            conn.exec_driver_sql(
                "UPDATE locations SET media_id = NULL, state = 'unreadable', code = 'unsupported', attempts = 1"
            )
        stages = standard_stages(settings)
        form_batches(catalog, settings, stages, "bench")
        tick = [_timed(lambda: form_batches(catalog, settings, stages, "bench")) for _round in range(ROUNDS)]
        catalog.close()
    finally:
        shutil.rmtree(folder)
    walk = statistics.median(bare)
    write(
        "scan",
        {
            "files": FILES,
            "bare_walk_seconds": round(walk, 2),
            "first_scan_seconds": round(first, 2),
            "first_scan_over_walk": round(first / walk, 2),
            "drain_seconds": round(drain, 2),
            "compared_seconds": round(compared, 2),
            "compared_over_walk": round(compared / walk, 2),
            "rescan_seconds": round(statistics.median(again), 2),
            "rescan_over_walk": round(statistics.median(again) / walk, 2),
            "tick_seconds": round(statistics.median(tick), 3),
            "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        },
    )


def _make(root: Path) -> None:
    script = (
        "import os, sys\nroot, files, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "for start in range(0, files, each):\n"
        "    folder = f'{root}/{start // 100000:03}/{start // each:06}'\n"
        "    os.makedirs(folder)\n"
        "    for n in range(start, min(start + each, files)):\n"
        "        os.close(os.open(f'{folder}/IMG_{n:08}.jpg', os.O_CREAT | os.O_WRONLY))\n"
    )
    # In a process of its own: what it needs is not what a scan needs.
    subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script, str(root), str(FILES), str(FILES_A_FOLDER)], check=True
    )


def _bare_walk(root: Path) -> int:
    count, folders = 0, [os.fsencode(root)]
    while folders:
        with os.scandir(folders.pop()) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                else:
                    item.stat(follow_symlinks=False)
                    count += 1
    return count


def _timed(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began
