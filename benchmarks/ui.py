"""How long the pages of the UI wait for their data when ten thousand batches are filled: on PostgreSQL and on SQLite.

Events and runs are reported as a run would report them; queries are those of the partition status of `raw_media` and
of the first page of the runs. `MIRROR_REALM_BENCH_BATCHES` says how many batches (10,000).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.programs import free_port, run
from benchmarks.results_file import spread, write

BATCHES = int(os.environ.get("MIRROR_REALM_BENCH_BATCHES", "10000"))
_ROUNDS = 12
_READY_SECONDS = 180
_ASSETS = ("raw_media",)
_QUERIES = {
    "partition_status": """{ assetNodeOrError(assetKey: {path: ["raw_media"]}) { ... on AssetNode {
        partitionStats { numPartitions numMaterialized numFailed numMaterializing }
        assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } } } } }""",
    "partition_keys": """{ assetNodeOrError(assetKey: {path: ["raw_media"]}) { ... on AssetNode {
        partitionKeysByDimension { name partitionKeys } } } }""",
    "runs_page": """{ runsOrError(filter: {}, limit: 26) { ... on Runs { results {
        id status jobName startTime endTime creationTime tags { key value } } } } }""",
}


def main() -> None:
    """Measure and write `results/ui.json`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the server is that of the tests
    from postgres import Server

    figures: dict[str, Any] = {"batches": BATCHES}
    server = Server()
    try:
        for kind in ("postgresql", "sqlite"):
            url = server.url(server.create()) if kind == "postgresql" else None
            with tempfile.TemporaryDirectory(prefix="mirror-realm-ui-") as base:
                figures[kind] = _measure(Path(base), url)
    finally:
        server.stop()
    write("ui", figures)


def _measure(base: Path, url: str | None) -> dict[str, Any]:
    env = {**os.environ, "MIRROR_REALM_HOME": str(base / "home"), "DAGSTER_HOME": str(base / "home" / "dagster")}
    run(env, "init")
    if url:
        with (base / "home" / "dagster" / "dagster.yaml").open("a", encoding="utf-8") as file:
            file.write(f"\nstorage:\n  postgres:\n    postgres_url: {json.dumps(url)}\n")
    began = time.monotonic()
    _fill(env["DAGSTER_HOME"])
    print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
    port = free_port()
    words = ["-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-m", "mirror_realm_assets.definitions"]
    with (base / "web.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *words], env=env, stdout=log, stderr=log)  # noqa: S603
    try:
        found: dict[str, Any] = {}
        for name, query in _QUERIES.items():
            _ask(port, query, _READY_SECONDS)
            found[name] = spread([_ask(port, query, 0) for _ in range(_ROUNDS)])
        return found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _fill(dagster_home: str) -> None:
    keys = [f"photos.20260101T000000.{number:05d}" for number in range(BATCHES)]
    with dg.DagsterInstance.from_config(dagster_home) as instance:
        instance.add_dynamic_partitions("media_batch", keys)
        for number, key in enumerate(keys):
            for asset in _ASSETS:
                instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))
            tags = {"dagster/partition": key, "mirror-realm/source": "photos", "mirror-realm/lane": "search"}
            instance.add_run(dg.DagsterRun(job_name="media_batch_job", status=dg.DagsterRunStatus.SUCCESS, tags=tags))
            if number % 1000 == 0:
                print(f"{number} of {BATCHES} batches", file=sys.stderr)


def _ask(port: int, query: str, patience: float) -> float:
    """Seconds of one answer; `patience` waits for a server that only starts."""
    end = time.monotonic() + patience
    while True:
        began = time.monotonic()
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql",
                json.dumps({"query": query}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                told = json.load(answer)
            if told.get("errors"):
                raise RuntimeError(str(told["errors"])[:500])
            if "AssetNode" in query and not told["data"]["assetNodeOrError"]:
                raise OSError("the code location is not loaded yet")
            if (
                "partitionStats" in query
                and told["data"]["assetNodeOrError"]["partitionStats"]["numMaterialized"] < BATCHES
            ):
                raise RuntimeError("not every batch is filled")
            return time.monotonic() - began
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(1)
