"""How long from dropping a photo to run start, `raw_media`, a search hit, and the enhanced picture.

A real home in a temporary folder, `mirror-realm up`, and twenty photos dropped one by one at random moments; each time
is read from the ledger (and the run's start from Dagster), so that looking costs nothing.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from benchmarks.results_file import spread, write
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.settings import Settings

DROPS = 20
_READY_SECONDS = 120
_DONE_SECONDS = 180


def main() -> None:
    """Measure and write `results/latency.json`."""
    with tempfile.TemporaryDirectory(prefix="mirror-realm-latency-") as base:
        home, folder = Path(base) / "home", Path(base) / "photos"
        folder.mkdir()
        env = {**os.environ, "MIRROR_REALM_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
        _run(env, "init")
        _run(env, "models", "fetch")
        _run(env, "sources", "add", "bench", "--folder", str(folder))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mirror_realm_assets.cli", "up", "--port", str(port)]
        with (Path(base) / "up.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603
        try:
            _wait_port(port)
            time.sleep(15)  # the daemon's first ticks
            figures = _drop_all(Settings.at(home), folder)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    write("latency", figures)


def _run(env: dict[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "mirror_realm_assets.cli", *words]
    subprocess.run(command, env=env, check=True, capture_output=True)  # noqa: S603 - our own program


def _wait_port(port: int) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("the web server did not start")


def _drop_all(settings: Settings, folder: Path) -> dict[str, object]:
    catalog = Catalog(settings.catalog_url)
    chance = random.Random(1)  # noqa: S311 - no secret
    found: dict[str, list[float]] = {"run_start": [], "raw_media": [], "searchable": [], "enhanced": []}
    for number in range(DROPS):
        time.sleep(chance.uniform(0, 6))
        name = f"photo-{number:02d}.jpg"
        _photo(folder / f".{name}.part", number)
        dropped = datetime.now(UTC)
        (folder / f".{name}.part").rename(folder / name)
        times = _wait(catalog, name)
        for stage, at in times.items():
            found[stage].append((at - dropped).total_seconds())
        print(number, {stage: round(values[-1], 1) for stage, values in found.items()}, file=sys.stderr)
    catalog.close()
    return {stage: spread(values) for stage, values in found.items()}


def _photo(path: Path, number: int) -> None:
    from PIL import Image
    from skimage import data

    picture = Image.fromarray(data.chelsea()).crop((number * 5, number * 3, number * 5 + 256, number * 3 + 192))
    picture.resize((64, 48)).save(path, "JPEG")


def _wait(catalog: Catalog, name: str) -> dict[str, datetime]:
    end = time.monotonic() + _DONE_SECONDS
    while time.monotonic() < end:
        times = _times(catalog, name)
        if len(times) == 4:
            return times
        time.sleep(0.5)
    raise TimeoutError(f"{name} was not done; so far {times}")


def _times(catalog: Catalog, name: str) -> dict[str, datetime]:
    """When each stage recorded the photo; the run's start is when its worker took the batch."""
    loc, med, par, fea = t.locations.c, t.media.c, t.parts.c, t.features.c
    with catalog.read() as conn:
        row = conn.execute(
            sa.select(loc.id, med.content_id, t.contents.c.digest, par.image_digest)
            .join(t.media, med.id == loc.media_id)
            .join(t.contents, t.contents.c.id == med.content_id)
            .join(t.parts, par.content_id == med.content_id)
            .where(loc.display == name)
        ).first()
        if row is None:
            return {}
        recorded = conn.execute(
            sa.select(fea.feature, fea.created_at).where(fea.image_digest.in_([row[2], row[3]]), fea.status == "ok")
        )
        names = {"raw_media": "raw_media", "embeddings": "searchable", "enhanced_images": "enhanced"}
        times = {names[feature]: at for feature, at in recorded}
        started = conn.execute(
            sa.select(sa.func.min(t.batch_runs.c.started_at))
            .join(t.batch_items, t.batch_items.c.batch_id == t.batch_runs.c.batch_id)
            .where(t.batch_items.c.location_id == row[0], t.batch_runs.c.lane == "search")
        ).scalar()
        if started is not None:
            when = datetime.fromisoformat(started) if isinstance(started, str) else started
            times["run_start"] = when if when.tzinfo else when.replace(tzinfo=UTC)
    return times
