"""What a new file costs in a library that knows 1,000 files, and in one that knows 100,000.

Both lie on one PostgreSQL server; new files come to both in turn, in the same run. What is timed is everything but
decoder and model, whose time does not depend on the library: applying the journal, forming batches, claiming,
recording two stages, publishing the index. `MIRROR_REALM_BENCH_FILES` says how many files the large one knows
(100,000).
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.library import Library, library
from benchmarks.results_file import write
from mirror_realm_assets.catalog import batches
from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.media import Identified, Part
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.stage import Result, Stage
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.shards import ShardRow, encode_shard

SMALL, LARGE = 1_000, int(os.environ.get("MIRROR_REALM_BENCH_FILES", "100000"))
NEW, ROUNDS = 1_000, 5
_DIM = 512
_FILES_A_FOLDER = 1_000


@dataclass
class _Spent:
    """Seconds of each round, by part."""

    form: list[float] = field(default_factory=list)
    stages: list[float] = field(default_factory=list)
    index: list[float] = field(default_factory=list)

    def total(self) -> float:
        return statistics.median(map(sum, zip(self.form, self.stages, self.index, strict=True)))


def main() -> None:
    """Measure and write `results/known.json`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the server is that of the tests
    from postgres import Server

    server = Server("autovacuum=on", "shared_buffers=256MB")
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-realm-known-") as name:
            base = Path(name)
            photos = {count: base / f"photos-{count}" for count in (SMALL, LARGE)}
            urls = {count: server.url(server.create()) for count in photos}
            with (
                library(base / "small", photos[SMALL], catalog_url=urls[SMALL]) as small,
                library(base / "large", photos[LARGE], catalog_url=urls[LARGE]) as large,
            ):
                figures = _measure({SMALL: small, LARGE: large})
    finally:
        server.stop()
    write("known", figures)


def _measure(libraries: dict[int, Library]) -> dict[str, object]:
    spent = {count: _Spent() for count in libraries}
    for count, found in libraries.items():
        _make(found.folder / "known", count)
        began = time.monotonic()
        _work(found, _Spent())
        print(f"{count} files are known after {time.monotonic() - began:.0f} s", file=sys.stderr)
        with found.services.catalog.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM ANALYZE")
    for number in range(ROUNDS + 1):
        turn = list(libraries)
        for count in turn if number % 2 else reversed(turn):
            _make(libraries[count].folder / f"new-{number}", NEW)
            _work(libraries[count], spent[count] if number else _Spent())  # the first round warms up
    small, large = spent[SMALL], spent[LARGE]
    parts = {
        part: {
            str(count): round(statistics.median(getattr(each, part)) / NEW * 1000, 3) for count, each in spent.items()
        }
        for part in ("form", "stages", "index")
    }
    return {
        "known": [SMALL, LARGE],
        "new_files_a_round": NEW,
        "rounds": ROUNDS,
        "milliseconds_a_file": parts,
        "seconds": {str(count): round(each.total(), 2) for count, each in spent.items()},
        "large_over_small": round(large.total() / small.total(), 3),
    }


def _make(folder: Path, count: int) -> None:
    for start in range(0, count, _FILES_A_FOLDER):
        part = folder / f"{start // _FILES_A_FOLDER:04d}"
        part.mkdir(parents=True)
        for number in range(start, min(start + _FILES_A_FOLDER, count)):
            (part / f"IMG_{number:06d}.jpg").touch()


def _work(found: Library, spent: _Spent) -> None:
    """What watcher and daemon do about new files; the watcher's walk is not timed."""
    stages = (_named(), _embedded())
    found.scan()
    form = run = 0.0
    while True:
        began = time.monotonic()
        formed = form_batches(found.services.catalog, found.settings, stages, "bench", now_or_never=True)
        form += time.monotonic() - began
        if not formed.keys and not formed.drained:
            break
        began = time.monotonic()
        for key in formed.keys:
            for stage in stages:
                run_stage(stage, key, found.services, stages)
        run += time.monotonic() - began
    began = time.monotonic()
    update_index(found.services, stages, "bench", full=False)
    spent.index.append(time.monotonic() - began)
    spent.form.append(form)
    spent.stages.append(run)
    with found.services.catalog.read() as conn:
        if batches.pending(conn, "search", [stage.feature for stage in stages]):
            raise RuntimeError("a batch is not done")


def _named() -> Stage:
    """`raw_media` without reading: bytes and picture of a file are what its path says."""

    def run(works: Iterable[Work], _context: StageContext) -> Iterator[Result]:
        for work in works:
            subject = work.subject
            digest = hashlib.sha256(subject.path or b"").hexdigest()
            picture = hashlib.sha256(digest.encode()).hexdigest()
            found = Identified(
                digest, subject.size, subject.mtime_ns, "image/jpeg", parts=[Part(0, "still", picture, 640, 480)]
            )
            yield Result(work, Finding("ok", {"frames": 1}), identified=found)

    recipe = Recipe("raw_media", "1")
    return Stage("raw_media", "Names.", "search", (), lambda _policy: recipe, run, of_bytes=True)


def _embedded() -> Stage:
    """`embeddings` without a model: a vector at random, one shard for 512 of them as in the real stage."""

    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        group: list[Work] = []
        for work in works:
            group.append(work)
            if len(group) == 512:
                yield from _published(group, context)
                group = []
        if group:
            yield from _published(group, context)

    recipe = Recipe("embeddings", "1")
    return Stage("embeddings", "Random vectors.", "search", ("raw_media",), lambda _policy: recipe, run)


def _published(works: list[Work], context: StageContext) -> Iterator[Result]:
    rows = []
    for work in works:
        vector = np.random.default_rng(int(work.key.image_digest[:12], 16)).standard_normal(_DIM).astype(np.float32)
        rows.append(ShardRow(work.key.image_digest, work.subject.part, vector / np.linalg.norm(vector)))
    data = encode_shard(rows, model="random", recipe=works[0].key.recipe)
    stored, intents = context.publish(keys.shard_key(hashlib.sha256(data).hexdigest()), data)
    for row, work in enumerate(works):
        output = {"shard": stored.key, "sha256": stored.sha256, "row": row, "dim": _DIM}
        yield Result(work, Finding("ok", output), [("shard", stored)], intents if row == len(works) - 1 else ())
