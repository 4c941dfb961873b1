"""What a cluster makes of a backlog: how long, how busy, how many runs and rows, and what limits it.

What belongs here: times and sizes with their sources, and which clusters are simulated. What does not: the simulation
(`cluster_simulation`). No figure is of a run on a cluster. With other values:
`MIRROR_REALM_BENCH_CLUSTER='{"embed_seconds": 0.004}'`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.cluster_simulation import SHARES, Figures, Policy, batch_files, simulate
from benchmarks.results_file import write

# Seconds, bytes and shares: value, how it is known, and where from. A name in brackets is a benchmark's.
TIMES: dict[str, tuple[float, str, str]] = {
    "pod_seconds": (
        18.0,
        "published",
        "17 to 19 s from a request to a run's start (dagster#19607); a step's pod alike",
    ),
    "load_seconds": (
        5.0,
        "assumed",
        "torch and the model take 1.7 s on a CPU (latency); CUDA's own start comes on top",
    ),
    "file_bytes": (3e6, "assumed", "a photograph of 12 megapixels"),
    "read_seconds_per_megabyte": (0.05, "measured", "reading, decoding, proxy on two cores (ingest/batching.py)"),
    "cpu_seconds_per_file": (0.03, "measured", "embedding and recording on two cores (ingest/batching.py)"),
    "record_seconds": (0.0011, "measured", "claiming and recording one stage of a file (known)"),
    "embed_seconds": (
        0.008,
        "derived",
        "two threads decode and shrink a proxy of 1.6 megapixels; the network hides in it",
    ),
    "form_seconds": (0.00032, "measured", "applying the journal and forming batches, of a file (known)"),
    "index_seconds": (0.0005, "measured", "of a vector in an index round (known)"),
    "member_seconds": (
        4e-7,
        "measured",
        "counting a member of the index before each publication; PostgreSQL, a million",
    ),
    "enhanced_megapixels": (0.8, "assumed", "of a picture that is enhanced"),
    "enhance_seconds_per_megapixel": (0.35, "derived", "35.85 TFLOP at a third of an A100's 312 TFLOP/s"),
    "launch_seconds": (1.5, "published", "making one Job takes more than a second (dagster#4311)"),
    "claim_seconds": (
        15.0,
        "published",
        "so seldom a step looks for a GPU that has waited long (code of dagster 1.13.27)",
    ),
    "events_per_run": (47.0, "derived", "35 measured in one process (production); 1.35 times as many with pods"),
    "dagster_bytes_per_run": (175_000.0, "derived", "130 kB measured in one process (production), times 1.35"),
    "catalog_rows_per_file": (12.0, "counted", "in a catalog of 400 photographs, search lane"),
    "catalog_bytes_per_file": (6_200.0, "measured", "PostgreSQL, 50,000 files (production)"),
    "vector_bytes": (5_120.0, "counted", "1280 numbers in 32 bits"),
    "watcher_bytes_per_file": (300.0, "measured", "0.24 to 0.4 kB, of 250,000 to a million files (scan)"),
}
SIZES, GPUS = (1_000_000, 10_000_000, 100_000_000), (1, 10, 100)
_MIDDLE = 10_000_000
_WIDE = 1_600  # runs, more than any of these clusters needs
# What limits a hundred GPUs over a hundred million files, taken away one after the other: policy, and shares of times.
_LADDER: list[tuple[str, dict[str, float], dict[str, float]]] = [
    ("as deployed", {}, {}),
    ("1,600 runs in dagster.yaml, 25 a lane in the sensors as before", {"runs_at_once": _WIDE}, {}),
    ("1,600 runs a lane", {"lane_runs": _WIDE}, {}),
    ("forming four times as fast", {}, {"form_seconds": 0.25}),
    ("four index writers", {}, {"index_seconds": 0.25, "member_seconds": 0.25}),
    ("100 enhancement runs may wait at the pool", {"run_buffer": 100}, {}),
    ("16 threads make Jobs", {"workers": 16}, {}),
]


def main() -> None:
    """Simulate and write `results/cluster.json`."""
    given = json.loads(os.environ.get("MIRROR_REALM_BENCH_CLUSTER", "{}"))
    times = {name: float(given.get(name, value)) for name, (value, _how, _source) in TIMES.items()}
    base = Policy()
    deployed = [simulate(gpus, files, lanes, base, times) for lanes in SHARES for gpus in GPUS for files in SIZES]
    write(
        "cluster",
        {
            "what": "simulated; no figure is of a run on a cluster",
            "times": {name: {"value": times[name], "is": how, "from": of} for name, (_v, how, of) in TIMES.items()},
            "policy": asdict(base),
            "batch_files": batch_files(base, times),
            "as_deployed": [asdict(found) for found in deployed],
            "on_paper": [on_paper(found, times) for found in deployed if found.gpus == GPUS[-1]],
            "batch_seconds": _tried("batch_seconds", (60, 300, 600, 900, 1080, 1200, 1800, 3600), "search", times),
            "slice_seconds": _tried("slice_seconds", (300, 900, 1800, 3600), "and all enhanced", times),
            "runs_at_once": _runs(times),
            "without_gpus": _without_gpus(times),
            "limits_taken_away": _ladder(times),
        },
    )


def on_paper(found: Figures, times: Mapping[str, float]) -> dict[str, Any]:
    """What does not depend on when something happens."""
    files, runs = found.files, found.runs
    reading = times["read_seconds_per_megabyte"] * times["file_bytes"] / 1e6 + times["record_seconds"]
    enhancing = SHARES[found.lanes] * times["enhanced_megapixels"] * times["enhance_seconds_per_megapixel"]
    return {
        "files": files,
        "lanes": found.lanes,
        "core_hours_of_reading": round(files * 2 * reading / 3600),
        "gpu_hours_of_embedding": round(files * (times["embed_seconds"] + times["record_seconds"]) / 3600),
        "gpu_hours_of_enhancing": round(files * enhancing / 3600),
        "partitions": found.partitions,
        "runs": runs,
        "dagster_events": round(runs * times["events_per_run"]),
        "dagster_gigabytes": round(runs * times["dagster_bytes_per_run"] / 1e9, 2),
        "catalog_rows": round(files * times["catalog_rows_per_file"]),
        "catalog_gigabytes": round(files * times["catalog_bytes_per_file"] / 1e9, 1),
        "index_gigabytes": round(files * times["vector_bytes"] / 1e9, 1),
        "watcher_gigabytes": round(files * times["watcher_bytes_per_file"] / 1e9, 1),
    }


def _tried(name: str, values: Sequence[float], lanes: str, times: Mapping[str, float]) -> list[dict[str, Any]]:
    """Values of one part of the policy, on ten GPUs."""
    found = []
    for value in values:
        policy = replace(Policy(), **{name: value})  # type: ignore[arg-type]
        tried = asdict(simulate(10, _MIDDLE, lanes, policy, times))
        found.append({name: value, "batch_files": batch_files(policy, times)} | tried)
    return found


def _runs(times: Mapping[str, float]) -> list[dict[str, Any]]:
    """How many runs at once a cluster needs, where the sensors let a lane have as many."""
    found = []
    for lanes in ("search", "and all enhanced"):
        for gpus in (10, 100):
            for runs in (25, 50, 100, 200, 400, 800, 1600):
                policy = replace(Policy(), runs_at_once=runs, lane_runs=runs)
                found.append({"runs_at_once": runs} | asdict(simulate(gpus, _MIDDLE, lanes, policy, times)))
    return found


def _without_gpus(times: Mapping[str, float]) -> list[dict[str, Any]]:
    """The search lane where embeddings are computed on CPUs, in as many steps at once as the pool `embed` allows."""
    slower = {**times, "embed_seconds": times["cpu_seconds_per_file"] - times["record_seconds"], "load_seconds": 1.7}
    found = []
    for steps in (1, 4, 25):
        figures = asdict(simulate(steps, _MIDDLE, "search", Policy(), slower))
        found.append({"steps": steps} | {name: figures[name] for name in ("hours", "first_minutes", "most_cores")})
    return found


def _ladder(times: Mapping[str, float]) -> list[dict[str, Any]]:
    policy, now, found = Policy(), dict(times), []
    for name, changed, shares in _LADDER:
        policy = replace(policy, **changed)  # type: ignore[arg-type]
        now |= {each: now[each] * share for each, share in shares.items()}
        found.append({"limits": name} | asdict(simulate(GPUS[-1], SIZES[-1], "and a tenth enhanced", policy, now)))
    return found
