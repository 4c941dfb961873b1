"""Many small files through watcher, daemon, queue, PostgreSQL and a bucket; what each costs, and what Dagster adds.

PostgreSQL is a server of this measurement, with its own care of statistics and without fsync; the bucket is moto's, a
single Python process. On real ones the figures differ, the ratio of the two ways much less. `MIRROR_REALM_BENCH_FILES`
says how many files (10,000), `MIRROR_REALM_BENCH_FORMS` into what batches they go (a list of the names below with
commas; all of them).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.processor import Processor
from benchmarks.programs import free_port, run, wait_port
from benchmarks.results_file import write
from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage

FILES = int(os.environ.get("MIRROR_REALM_BENCH_FILES", "10000"))
FORMS = {
    "default": {},
    "256_files": {"MIRROR_REALM_BATCH_ITEMS": "256"},
    "300_seconds": {"MIRROR_REALM_BATCH_ITEMS": "100000", "MIRROR_REALM_BATCH_SECONDS": "300"},
}
_CHOSEN = os.environ.get("MIRROR_REALM_BENCH_FORMS", ",".join(FORMS)).split(",")
_BUCKET = "bench"
_SECONDS = 4 * 3600.0


def main() -> None:
    """Measure and write `results/production-FILES.json`."""
    # The servers are those of the tests, which begin and end them with their own process.
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgres import Server
    from s3_server import S3Server

    with tempfile.TemporaryDirectory(prefix="mirror-realm-production-") as name:
        base = Path(name)
        server, bucket = Server("autovacuum=on", "shared_buffers=256MB"), S3Server(base)
        try:
            bucket.client().create_bucket(Bucket=_BUCKET)  # type: ignore[attr-defined]
            hidden = base / "hidden"
            _photos(hidden, FILES)
            direct = _direct(_environment(base / "direct", server, bucket), hidden)
            figures: dict[str, Any] = {"files": FILES, "directly": direct}
            for form in _CHOSEN:
                env = _environment(base / form, server, bucket) | FORMS[form]
                found = _through_dagster(env, hidden, base / f"photos-{form}")
                figures[form] = found | {"over_direct": round(found["seconds"] / direct["seconds"], 3)}
                print(f"{form}: {figures[form]}", file=sys.stderr)
        finally:
            bucket.close()
            server.stop()
    write(f"production-{FILES}", figures)


def _environment(home: Path, server: Any, bucket: Any) -> dict[str, str]:
    return {
        **os.environ,
        "MIRROR_REALM_ENV": "production",
        "MIRROR_REALM_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "MIRROR_REALM_CATALOG_URL": server.url(server.create()),
        "MIRROR_REALM_DAGSTER_URL": server.url(server.create()),
        "MIRROR_REALM_STORE_URL": f"s3://{_BUCKET}/{home.name}",
        "MIRROR_REALM_S3_ENDPOINT_URL": bucket.url,
        "MIRROR_REALM_S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
    }


def _direct(env: dict[str, str], folder: Path) -> dict[str, Any]:
    """Seconds and batches of the same stages over the same files, called one after the other in this process."""
    os.environ.update(env)
    run(env, "init")
    run(env, "models", "fetch")
    run(env, "sources", "add", "photos", "--folder", str(folder), "--option", "enhance=false")
    settings = Settings.read()
    services = open_services(settings)
    stages = standard_stages(settings)
    processor = Processor()
    began = time.monotonic()
    with services.catalog.read() as conn:
        source = sources.get(conn, "photos")
    watched = FolderWatch(services.catalog, settings, source)  # one: it has to see each file twice
    while watched.scan().restless:
        time.sleep(0.5)
    while form_batches(services.catalog, settings, stages, "bench", now_or_never=True).keys:
        pass
    with services.catalog.read() as conn:
        pending = [batch.key for batch in batches.pending(conn, "search", ["raw_media", "embeddings"])]
    for key in pending:
        for stage in stages:
            if stage.lane == "search":
                run_stage(stage, key, services, stages)
    update_index(services, stages, "photos")
    seconds = time.monotonic() - began
    processor.sample()
    close_services(settings)
    print(f"directly: {FILES} files in {len(pending)} batches, {seconds:.1f} s", file=sys.stderr)
    return {
        "batches": len(pending),
        "seconds": round(seconds, 1),
        "files_per_second": round(FILES / seconds, 1),
        "processor_seconds": processor.seconds(),
    }


def _through_dagster(env: dict[str, str], hidden: Path, folder: Path) -> dict[str, Any]:
    run(env, "init")
    run(env, "models", "fetch")
    folder.mkdir()
    run(env, "sources", "add", "photos", "--folder", str(folder), "--option", "enhance=false")
    port = free_port()
    command = [sys.executable, "-m", "mirror_realm_assets.cli", "up", "--port", str(port)]
    with (folder.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603
    catalog = Catalog(env["MIRROR_REALM_CATALOG_URL"])
    dagster = sa.create_engine(env["MIRROR_REALM_DAGSTER_URL"])
    try:
        wait_port(port)
        time.sleep(15)  # the daemon's first ticks
        before = _counted(catalog.engine, dagster)
        began = time.monotonic()
        hidden.rename(folder / "all")  # a folder that is moved in: every file is there and closed at once
        processor = Processor()
        seconds = _wait(catalog, began, processor)
        after = _counted(catalog.engine, dagster)
        with catalog.read() as conn:
            formed = conn.execute(sa.select(sa.func.count()).select_from(t.batches)).scalar_one()
        median = _median_run_seconds(dagster)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        catalog.close()
        dagster.dispose()
        if (folder / "all").exists():
            (folder / "all").rename(hidden)
    per_thousand = {name: round((after[name] - before[name]) * 1000 / FILES, 1) for name in after}
    return {
        "batches": formed,
        "median_run_seconds": median,
        "seconds": round(seconds, 1),
        "files_per_second": round(FILES / seconds, 1),
        "per_1000_files": per_thousand,
        "processor_seconds": processor.seconds(),
    }


def _median_run_seconds(dagster: sa.Engine) -> float | None:
    """Of the runs of batches, from their start to their end."""
    words = (
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY end_time - start_time) FROM runs WHERE pipeline_name = :job"
    )
    with dagster.connect() as conn:
        found = conn.execute(sa.text(words), {"job": "media_batch_job"}).scalar_one()
    return None if found is None else round(found, 1)


def _wait(catalog: Catalog, began: float, processor: Processor) -> float:
    """Until every file is in the published index."""
    while time.monotonic() < began + _SECONDS:
        with catalog.read() as conn:
            done = conn.execute(sa.select(sa.func.count()).select_from(t.index_members)).scalar_one()
        print(f"{time.monotonic() - began:.0f} s: {done} of {FILES}", file=sys.stderr)
        processor.sample()
        if done >= FILES:
            return time.monotonic() - began
        time.sleep(2)
    raise TimeoutError("the files were not indexed")


def _counted(catalog: sa.Engine, dagster: sa.Engine) -> dict[str, float]:
    """Rows and bytes of Dagster's events, and transactions of both databases, as the server counts them."""
    found: dict[str, float] = {}
    transactions = sa.text(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )
    size = sa.text("SELECT pg_database_size(current_database())")
    for name, engine in (("catalog", catalog), ("dagster", dagster)):
        with engine.connect() as conn:
            conn.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
            found[f"{name}_transactions"] = conn.execute(transactions).scalar_one()
            found[f"{name}_bytes"] = conn.execute(size).scalar_one()
    with dagster.connect() as conn:
        found["event_rows"] = conn.execute(sa.text("SELECT count(*) FROM event_logs")).scalar_one()
        found["runs"] = conn.execute(sa.text("SELECT count(*) FROM runs")).scalar_one()
    return found


def _photos(folder: Path, count: int) -> None:
    """Small JPEGs, no two alike."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    cat = Image.fromarray(data.chelsea())
    for number in range(count):
        left, top = number * 7 % 190, number * 3 % 100
        picture = cat.crop((left, top, left + 256, top + 192)).resize((64, 48))
        picture.putpixel((number % 64, number // 64 % 48), (255, number // 3072 * 40 % 256, 0))
        picture.save(folder / f"photo-{number:06d}.jpg", "JPEG", quality=95)
