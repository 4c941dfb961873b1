"""What a cluster makes of a library: a simulation with the times that were measured, batch by batch.

What belongs here: runs, pods, pools and the queue as `deploy/` sets them up. What does not: what a stage does. Nothing
of it is measured on a cluster; `TIMES` says of each figure where it is from. Other figures instead:
`MIRROR_REALM_BENCH_CLUSTER='{"embed_seconds": 0.01}'`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.results_file import write

# seconds, bytes and shares; (value, where it is from)
TIMES: dict[str, tuple[float, str]] = {
    "pod_seconds": (18.0, "published: 17 to 19 s from a request to a step's first line, imports included"),
    "load_seconds": (3.0, "measured: torch and the default model, weights in the page cache"),
    "file_bytes": (3e6, "assumed: a photograph of 12 megapixels"),
    "read_seconds": (0.15, "measured: read, decode, proxy of such a file on two cores (0.05 s a megabyte)"),
    "embed_seconds": (0.012, "reckoned: decoding its proxy on the step's two cores; the network needs less on any GPU"),
    "ledger_seconds": (0.0022, "measured: rows of a file and all that is recorded of it, PostgreSQL beside it"),
    "index_seconds": (0.0005, "measured: of one vector, in the run of the index"),
    "enhanced_share": (0.1, "assumed: of the pictures, those that are small enough for the policy"),
    "enhanced_pixels": (0.8e6, "assumed: of such a picture"),
    "enhance_seconds_per_megapixel": (0.14, "published: 35.85 TFLOP a megapixel at 250 TFLOP/s, a third of an H100's"),
    "events_per_run": (40.0, "measured: rows in Dagster's event log of a run with two steps"),
    "event_bytes": (7_800.0, "measured: of Dagster's database, an event"),
    "catalog_bytes_per_file": (7_000.0, "measured"),
    "catalog_rows_per_file": (9.0, "counted: location, content, media and its version, part, two items, two features"),
    "vector_bytes": (5_120.0, "counted: 1280 numbers in 32 bits, as an index holds them"),
}


_NOTHING = 1e-9  # seconds, left over by subtracting


@dataclass(frozen=True)
class Policy:
    """Of `deploy/base`: batches, slices, and the queue. Times are seconds."""

    batch_seconds: float = 1200.0
    batch_items: int = 40_000
    batch_bytes: float = 32 * 1024**3
    slice_seconds: float = 900.0
    runs_at_once: int = 25
    runs_a_second: float = 1.0  # the coordinator looks once a second; making a Job takes one, by four threads
    batches_a_tick: int = 2
    tick_seconds: float = 5.0
    per_file_estimate: float = 0.03
    per_megabyte_estimate: float = 0.05


@dataclass
class Figures:
    """What one simulation shows.

    Attributes:
        gpus, files, lanes: what was simulated; files that went through.
        hours: until everything was done.
        gpu_busy: share of the GPUs' time in which they computed; starts of pods that hold one do not count.
        searchable_hours: until every file could be found.
        partitions, runs: batches, and runs of all lanes.
        pod_share: of the time of pods, that in which they started.
        waited_for: what runs and steps waited for the longest.
        most_runs: at once.
    """

    gpus: int
    files: int
    lanes: str
    hours: float
    gpu_busy: float
    searchable_hours: float
    partitions: int
    runs: int
    pod_share: float
    waited_for: str
    most_runs: int


@dataclass
class _Batch:
    """Its files, and the seconds that its enhancement still takes."""

    files: int
    left_to_enhance: float


@dataclass
class _Cluster:
    gpus: int
    policy: Policy
    times: dict[str, float]
    free_gpus: int = 0
    free_runs: int = 0
    busy: float = 0.0
    runs: int = 0
    most_runs: int = 0
    pod_time: float = 0.0
    work_time: float = 0.0
    waited_gpu: float = 0.0
    waited_queue: float = 0.0
    now: float = 0.0
    events: list[tuple[float, int, Any]] = field(default_factory=list)
    serial: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.free_gpus, self.free_runs = self.gpus, self.policy.runs_at_once
        self.search: deque[tuple[float, Any]] = deque()
        self.enhance: deque[tuple[float, Any]] = deque()
        self.gpu_search: deque[tuple[float, Any]] = deque()
        self.gpu_enhance: deque[tuple[float, Any]] = deque()
        self.next_launch = 0.0
        self.dequeuing = False

    def after(self, seconds: float, what: Any) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.serial), what))

    def run(self) -> None:
        while self.events:
            self.now, _serial, what = heapq.heappop(self.events)
            what()

    def ask_run(self, queue: deque[tuple[float, Any]], start: Any) -> None:
        queue.append((self.now, start))
        self.dequeue()

    def dequeue(self) -> None:
        """Start what fits, one run at a time, the search lane first."""
        if self.dequeuing or not self.free_runs or not (self.search or self.enhance):
            return
        wait = max(0.0, self.next_launch - self.now)
        if wait:
            self.dequeuing = True

            def again() -> None:
                self.dequeuing = False
                self.dequeue()

            self.after(wait, again)
            return
        since, start = (self.search or self.enhance).popleft()
        self.waited_queue += self.now - since
        self.next_launch = self.now + 1.0 / self.policy.runs_a_second
        self.free_runs -= 1
        self.runs += 1
        self.most_runs = max(self.most_runs, self.policy.runs_at_once - self.free_runs)
        self.pod_time += self.times["pod_seconds"]
        self.after(self.times["pod_seconds"], start)
        self.dequeue()

    def end_run(self) -> None:
        self.free_runs += 1
        self.dequeue()

    def ask_gpu(self, queue: deque[tuple[float, Any]], start: Any) -> None:
        queue.append((self.now, start))
        self.give_gpus()

    def give_gpus(self) -> None:
        while self.free_gpus and (self.gpu_search or self.gpu_enhance):
            since, start = (self.gpu_search or self.gpu_enhance).popleft()
            self.waited_gpu += self.now - since
            self.free_gpus -= 1
            start()

    def on_gpu(self, work: float, then: Any) -> None:
        """A step's pod: it holds the GPU from before its start."""
        begin = self.times["pod_seconds"] + self.times["load_seconds"]
        self.pod_time += self.times["pod_seconds"]
        self.work_time += work
        self.busy += work

        def done() -> None:
            self.free_gpus += 1
            self.give_gpus()
            then()

        self.after(begin + work, done)


def batch_files(policy: Policy, times: dict[str, float]) -> int:
    """Files in a full batch."""
    estimate = policy.per_file_estimate + policy.per_megabyte_estimate * times["file_bytes"] / 1e6
    limits = (policy.batch_items, policy.batch_seconds / estimate, policy.batch_bytes / times["file_bytes"])
    return max(1, int(min(limits)))


def simulate(gpus: int, files: int, policy: Policy, times: dict[str, float], *, enhance: bool) -> Figures:
    """All files of one backlog, through every lane that is wanted.

    Args:
        gpus: of the cluster.
        files: that are there at once.
        policy: of batches and queue.
        times: as in `TIMES`.
        enhance: whether the enhancement lane follows.
    """
    cluster = _Cluster(gpus, policy, times)
    library = _Library(cluster, files, enhance=enhance)
    cluster.after(0.0, lambda: library.form(0))
    cluster.run()
    waits_for = {"a GPU": cluster.waited_gpu, "its turn in the queue": cluster.waited_queue}
    return Figures(
        gpus=gpus,
        files=library.done,
        lanes="search and enhancement" if enhance else "search",
        hours=round(cluster.now / 3600, 2),
        gpu_busy=round(cluster.busy / (cluster.now * gpus), 4),
        searchable_hours=round(library.searchable / 3600, 2),
        partitions=len(library.batches),
        runs=cluster.runs,
        pod_share=round(cluster.pod_time / (cluster.pod_time + cluster.work_time), 4),
        waited_for=max(waits_for, key=lambda name: waits_for[name]),
        most_runs=cluster.most_runs,
    )


class _Library:
    """What becomes of each batch."""

    def __init__(self, cluster: _Cluster, files: int, *, enhance: bool) -> None:
        self.cluster, self.times, self.policy = cluster, cluster.times, cluster.policy
        size = batch_files(self.policy, self.times)
        self.batches = [size] * (files // size) + ([files % size] if files % size else [])
        times = self.times
        each = times["enhanced_share"] * times["enhanced_pixels"] / 1e6 * times["enhance_seconds_per_megapixel"]
        self.enhance_each = each if enhance else 0.0
        self.searchable, self.done = 0.0, 0

    def form(self, at: int) -> None:
        """A tick of the batch sensor."""
        upto = at + self.policy.batches_a_tick
        for count in self.batches[at:upto]:
            batch = _Batch(count, count * self.enhance_each)
            self.cluster.ask_run(self.cluster.search, partial(self._read, batch))
        if upto < len(self.batches):
            self.cluster.after(self.policy.tick_seconds, lambda: self.form(upto))

    def _read(self, batch: _Batch) -> None:
        cluster, pod = self.cluster, self.times["pod_seconds"]
        work = batch.files * (self.times["read_seconds"] + self.times["ledger_seconds"] / 2)
        cluster.pod_time += pod
        cluster.work_time += work
        cluster.after(pod + work, lambda: cluster.ask_gpu(cluster.gpu_search, partial(self._embed, batch)))

    def _embed(self, batch: _Batch) -> None:
        work = batch.files * (self.times["embed_seconds"] + self.times["ledger_seconds"] / 2)
        self.cluster.on_gpu(work, partial(self._embedded, batch))

    def _embedded(self, batch: _Batch) -> None:
        self.done += batch.files
        self.searchable = max(self.searchable, self.cluster.now + batch.files * self.times["index_seconds"])
        self._enhance_more(batch)

    def _enhance_more(self, batch: _Batch) -> None:
        self.cluster.end_run()
        if batch.left_to_enhance > _NOTHING:
            self.cluster.ask_run(self.cluster.enhance, partial(self._wait, batch))

    def _wait(self, batch: _Batch) -> None:
        self.cluster.ask_gpu(self.cluster.gpu_enhance, partial(self._slice, batch))

    def _slice(self, batch: _Batch) -> None:
        work = min(batch.left_to_enhance, self.policy.slice_seconds)
        batch.left_to_enhance -= work
        self.cluster.on_gpu(work, partial(self._enhance_more, batch))


def main() -> None:
    """Simulate and write `results/cluster.json`."""
    times = {name: value for name, (value, _source) in TIMES.items()}
    times |= {
        name: float(value) for name, value in json.loads(os.environ.get("MIRROR_REALM_BENCH_CLUSTER", "{}")).items()
    }
    base = Policy()
    sizes = [(gpus, files) for gpus in (1, 10, 100) for files in (1_000_000, 10_000_000, 100_000_000)]
    as_deployed, scaled = [], []
    for gpus, files in sizes:
        for enhance in (False, True):
            as_deployed.append(asdict(simulate(gpus, files, base, times, enhance=enhance)))
            # A run for every GPU, and as many beside them as keep these fed.
            wide = replace(base, runs_at_once=runs_for(gpus, base, times), batches_a_tick=20)
            scaled.append(asdict(simulate(gpus, files, wide, times, enhance=enhance)))
    policies = [
        {
            "batch_seconds": seconds,
            **asdict(simulate(10, 10_000_000, replace(base, batch_seconds=seconds), times, enhance=False)),
        }
        for seconds in (60.0, 300.0, 600.0, 1200.0, 3600.0)
    ]
    write(
        "cluster",
        {
            "what": "simulated: no figure of a run on a cluster",
            "times": {name: {"value": times[name], "from": source} for name, (_v, source) in TIMES.items()},
            "policy": asdict(base),
            "files_of_a_batch": batch_files(base, times),
            "as_deployed": as_deployed,
            "with_runs_for_the_gpus": scaled,
            "batch_seconds": policies,
            "sizes": [_size(files, times, base) for files in (1_000_000, 10_000_000, 100_000_000)],
        },
    )


def runs_for(gpus: int, policy: Policy, times: dict[str, float]) -> int:
    """Runs at once that keep so many GPUs busy with embedding, and at least one for each that enhances."""
    files = batch_files(policy, times)
    on_cpu = 2 * times["pod_seconds"] + files * times["read_seconds"]
    on_gpu = times["pod_seconds"] + times["load_seconds"] + files * times["embed_seconds"]
    return max(25, gpus + int(gpus * on_cpu / on_gpu))


def _size(files: int, times: dict[str, float], policy: Policy) -> dict[str, Any]:
    runs = 2.2 * files / batch_files(policy, times)  # search, and index runs that take several batches each
    return {
        "files": files,
        "catalog_gigabytes": round(files * times["catalog_bytes_per_file"] / 1e9, 1),
        "catalog_rows": round(files * times["catalog_rows_per_file"]),
        "partitions": -(-files // batch_files(policy, times)),
        "dagster_events": round(runs * times["events_per_run"]),
        "dagster_gigabytes": round(runs * times["events_per_run"] * times["event_bytes"] / 1e9, 2),
        "index_gigabytes": round(files * times["vector_bytes"] / 1e9, 1),
        "first_scan_minutes": round(files * 17e-6 / 60, 1),
    }
