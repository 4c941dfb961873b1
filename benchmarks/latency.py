"""From closing a file to `raw_media` and to a search hit, by native events and by polling, and where the time goes.

A real home in a temporary folder, `mirror-realm up`, two watched folders, and fifty photos dropped into each, in turn
and at random moments. Each time is read from the ledger, and the run's from Dagster, so that looking costs nothing. The
photos are not enhanced, so that they wait for nothing but themselves; then a few are, in a third folder.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from benchmarks.programs import free_port, run, wait_port
from benchmarks.results_file import spread, write
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.settings import Settings

DROPS = int(os.environ.get("MIRROR_REALM_BENCH_DROPS", "50"))
ENHANCED_DROPS = DROPS // 10
_SOURCES = {
    "native": ("watch=native", "enhance=false"),
    "polling": ("watch=poll", "enhance=false"),
    "enhanced": ("watch=native",),
}
# What follows what; a step's time is counted from the one before.
_STEPS = (
    "noticed",
    "batch formed",
    "run created",
    "run's process started",
    "run took it",
    "raw_media",
    "searchable",
    "enhanced_images",
)
_ENDS = ("raw_media", "searchable", "enhanced_images")
_DONE_SECONDS = 180


def main() -> None:
    """Measure and write `results/latency.json`."""
    with tempfile.TemporaryDirectory(prefix="mirror-realm-latency-") as base:
        home = Path(base) / "home"
        env = {**os.environ, "MIRROR_REALM_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
        run(env, "init")
        run(env, "models", "fetch")
        for source, options in _SOURCES.items():
            (Path(base) / source).mkdir()
            words = [word for option in options for word in ("--option", option)]
            run(env, "sources", "add", source, "--folder", str(Path(base) / source), *words)
        port = free_port()
        command = [sys.executable, "-m", "mirror_realm_assets.cli", "up", "--port", str(port)]
        with (Path(base) / "up.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603
        try:
            wait_port(port)
            time.sleep(15)  # the daemon's first ticks
            os.environ["DAGSTER_HOME"] = env["DAGSTER_HOME"]
            figures = _drop_all(Settings.at(home), Path(base))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    write("latency", figures)


def _drop_all(settings: Settings, base: Path) -> dict[str, object]:
    catalog = Catalog(settings.catalog_url)
    chance = random.Random(1)  # noqa: S311 - no secret
    found: dict[str, dict[str, list[float]]] = {source: {} for source in _SOURCES}
    order = ["native", "polling"] * DROPS + ["enhanced"] * ENHANCED_DROPS
    with dg.DagsterInstance.get() as instance:
        for number, source in enumerate(order):
            time.sleep(chance.uniform(0, 6))
            name = f"photo-{number:03d}.jpg"
            hidden = base / source / f".{name}.part"
            _photo(hidden, number)
            picture = hidden.read_bytes()
            hidden.unlink()
            with (base / source / name).open("wb") as file:
                file.write(picture)
            closed = datetime.now(UTC)
            times = _wait(catalog, instance, name, last="enhanced_images" if source == "enhanced" else "searchable")
            told = _told(closed, times)
            for part, seconds in told.items():
                found[source].setdefault(part, []).append(seconds)
            print(number, source, {part: round(seconds, 1) for part, seconds in told.items()}, file=sys.stderr)
    catalog.close()
    return {
        source: {part: spread(values) for part, values in parts.items()} for source, parts in found.items() if parts
    }


def _told(closed: datetime, times: dict[str, datetime]) -> dict[str, float]:
    """Seconds from closing the file to each end, and between one step and the next."""
    ends = {f"to {end}": (times[end] - closed).total_seconds() for end in _ENDS if end in times}
    steps, before = {}, closed
    for step in _STEPS:
        if step in times:
            steps[step] = (times[step] - before).total_seconds()
            before = times[step]
    return ends | steps


def _photo(path: Path, number: int) -> None:
    from PIL import Image
    from skimage import data

    left, top = number * 7 % 190, number * 3 % 100
    picture = Image.fromarray(data.chelsea()).crop((left, top, left + 256, top + 192)).resize((64, 48))
    picture.putpixel((number % 64, number // 64), (255, 0, 0))  # no two are alike: a known picture costs nothing
    picture.save(path, "JPEG", quality=95)


def _wait(catalog: Catalog, instance: dg.DagsterInstance, name: str, *, last: str) -> dict[str, datetime]:
    end = time.monotonic() + _DONE_SECONDS
    while time.monotonic() < end:
        times = _times(catalog, instance, name)
        if last in times:
            return times
        time.sleep(0.5)
    raise TimeoutError(f"{name} was not done; so far {times}")


def _times(catalog: Catalog, instance: dg.DagsterInstance, name: str) -> dict[str, datetime]:
    """When each step of the photo was done, as far as it is."""
    loc, med, par, fea = t.locations.c, t.media.c, t.parts.c, t.features.c
    with catalog.read() as conn:
        row = conn.execute(
            sa.select(loc.id, loc.changed_at, t.contents.c.digest, par.image_digest)
            .join(t.media, med.id == loc.media_id)
            .join(t.contents, t.contents.c.id == med.content_id)
            .join(t.parts, par.content_id == med.content_id)
            .where(loc.display == name)
        ).first()
        if row is None:
            return {}
        recorded = conn.execute(
            sa.select(fea.feature, fea.created_at).where(fea.image_digest.in_([row[2], row[3]]), fea.status == "ok")
        ).all()
        batch = conn.execute(
            sa.select(t.batches.c.created_at, t.batch_runs.c.started_at, t.batch_runs.c.run_id)
            .join(t.batch_runs, t.batch_runs.c.batch_id == t.batches.c.id)
            .join(t.batch_items, t.batch_items.c.batch_id == t.batches.c.id)
            .where(t.batch_items.c.location_id == row[0], t.batch_runs.c.lane == "search")
            .order_by(t.batch_runs.c.started_at)
        ).first()
    names = {"raw_media": "raw_media", "embeddings": "searchable", "enhanced_images": "enhanced_images"}
    times = {names[feature]: at for feature, at in recorded}
    if batch is not None:
        record = instance.get_run_record_by_id(batch[2])
        times |= {"noticed": row[1], "batch formed": batch[0], "run took it": batch[1]}
        if record is not None and record.start_time:
            times["run created"] = record.create_timestamp
            times["run's process started"] = datetime.fromtimestamp(record.start_time, UTC)
    return {step: at if at.tzinfo else at.replace(tzinfo=UTC) for step, at in times.items()}
