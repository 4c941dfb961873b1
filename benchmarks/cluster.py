"""What a cluster makes of a backlog: simulated batch by batch, with times that were measured, published or assumed.

What belongs here: sensors, queue, pods and the pool of GPUs as `deploy/` sets them up. What does not: what a stage
does, and single files. No figure is of a run on a cluster; `TIMES` says of each time where it is from. Other values:
`MIRROR_REALM_BENCH_CLUSTER='{"embed_seconds": 0.004}'`.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, Literal

from benchmarks.results_file import write

Lane = Literal["index", "search", "enhance"]
Process = Generator[float | Lane, None, None]  # a run: waits for seconds, or for a GPU in a lane

# Seconds, bytes and shares: value, how it is known, and where from. A name in brackets is a benchmark's.
TIMES: dict[str, tuple[float, str, str]] = {
    "pod_seconds": (18.0, "published", "17 to 19 s from a request to a run's start (dagster#19607); a step's pod alike"),
    "load_seconds": (5.0, "assumed", "torch and the model take 1.7 s on a CPU (latency); CUDA's own start comes on top"),
    "file_bytes": (3e6, "assumed", "a photograph of 12 megapixels"),
    "read_seconds_per_megabyte": (0.05, "measured", "reading, decoding, proxy on two cores (ingest/batching.py)"),
    "cpu_seconds_per_file": (0.03, "measured", "embedding and recording on two cores (ingest/batching.py)"),
    "record_seconds": (0.0011, "measured", "claiming and recording one stage of a file (known)"),
    "embed_seconds": (0.008, "derived", "two threads decode and shrink a proxy of 1.6 megapixels; the network hides in it"),
    "form_seconds": (0.00032, "measured", "applying the journal and forming batches, of a file (known)"),
    "index_seconds": (0.0005, "measured", "of a vector in an index round (known)"),
    "enhanced_megapixels": (0.8, "assumed", "of a picture that is enhanced"),
    "enhance_seconds_per_megapixel": (0.35, "derived", "35.85 TFLOP at a third of an A100's 312 TFLOP/s"),
    "launch_seconds": (1.5, "published", "making one Job takes more than a second (dagster#4311)"),
    "claim_seconds": (15.0, "published", "so seldom a step looks for a GPU that has waited long (code of dagster 1.13.27)"),
    "events_per_run": (47.0, "derived", "35 measured in one process (production); 1.35 times as many with pods"),
    "dagster_bytes_per_run": (175_000.0, "derived", "130 kB measured in one process (production), times 1.35"),
    "catalog_rows_per_file": (12.0, "counted", "in a catalog of 400 photographs, search lane"),
    "catalog_bytes_per_file": (6_200.0, "measured", "PostgreSQL, 50,000 files (production)"),
    "vector_bytes": (5_120.0, "counted", "1280 numbers in 32 bits"),
    "watcher_bytes_per_file": (300.0, "measured", "0.24 to 0.4 kB, of 250,000 to a million files (scan)"),
}
SHARES = {"search": 0.0, "and a tenth enhanced": 0.1, "and all enhanced": 1.0}
_FIRST_FILES = 32  # of the first batch of a burst
_NOTHING = 1e-6  # seconds, left over by subtracting


@dataclass(frozen=True)
class Policy:
    """Batches, slices and the queue as `deploy/base` and the sensors have them; times are seconds.

    Attributes:
        batch_seconds, batch_items, batch_bytes: of one batch at most; the seconds are estimated.
        slice_seconds: of one enhancement run.
        runs_at_once: of all lanes (`max_concurrent_runs`).
        lane_runs: queued and running runs that a sensor allows its lane (`sensors/lanes.py`).
        run_buffer: enhancement runs that may wait for a GPU beyond those that have one (`op_granularity_run_buffer`).
        workers: threads that make Jobs.
        tick_seconds, dequeue_seconds: how often sensors and queue look.
        index_seconds: how seldom an index is published while many files are still to come.
    """

    batch_seconds: float = 1200.0
    batch_items: int = 40_000
    batch_bytes: float = 32 * 1024**3
    slice_seconds: float = 900.0
    runs_at_once: int = 25
    lane_runs: int = 25
    run_buffer: int = 0
    workers: int = 4
    tick_seconds: float = 5.0
    dequeue_seconds: float = 1.0
    index_seconds: float = 180.0


@dataclass(frozen=True)
class Figures:
    """What one simulation shows.

    Attributes:
        gpus, files, lanes: what was simulated; files that were embedded.
        hours: until all is done; `searchable_hours`, until every file is embedded.
        first_minutes: until the first full batch is embedded.
        gpu_busy: share of the GPUs' time in which their steps compute; starts of pods count as idle.
        search_starts, enhance_starts: share of the time of a lane's pods in which they start.
        partitions, runs, index_runs: batches, runs of all lanes, and of these the index's.
        most_keys: batches at once that have a key and are not finished, so that it cannot be retired.
        most_runs, most_cores: at once; a step has two cores, a run's pod a quarter.
        longest_wait_hours: of a step for its GPU.
    """

    gpus: int
    files: int
    lanes: str
    hours: float
    searchable_hours: float
    first_minutes: float
    gpu_busy: float
    search_starts: float
    enhance_starts: float
    partitions: int
    runs: int
    index_runs: int
    most_keys: int
    most_runs: int
    most_cores: float
    longest_wait_hours: float


@dataclass
class _Batch:
    files: int
    left: float  # seconds of enhancement


@dataclass
class _Lane:
    """Runs that are queued, how many are queued or under way, and seconds of its pods."""

    queue: deque[Process] = field(default_factory=deque)
    active: int = 0
    starts: float = 0.0
    work: float = 0.0

    def share(self) -> float:
        return self.starts / (self.starts + self.work) if self.starts else 0.0


class _Cluster:
    """Events lie on a heap; sensors and queue look at their turns, and only when something has happened."""

    def __init__(self, gpus: int, policy: Policy, times: Mapping[str, float], batches: list[_Batch]) -> None:
        self.gpus, self.policy, self.times, self.batches = gpus, policy, times, batches
        self.now = 0.0
        self.events: list[tuple[float, int, Any]] = []
        self.serial = count()
        self.turns: dict[Any, float] = {}  # when sensors and queue look next
        self.lanes: dict[Lane, _Lane] = {"index": _Lane(), "search": _Lane(), "enhance": _Lane()}
        self.next_batch, self.form_ends = 0, 0.0
        self.ready: deque[_Batch] = deque()  # for enhancement
        self.fresh, self.published = 0, -math.inf  # vectors that are in no index, and when one was published
        self.free, self.starting, self.dequeued = gpus, 0, 0.0
        self.waiting: list[tuple[bool, float, int, Process]] = []
        self.running = self.working = self.keys = self.runs = self.index_runs = self.embedded = 0
        self.busy = self.searchable = self.first = 0.0
        self.most = {"runs": 0.0, "cores": 0.0, "keys": 0.0, "wait": 0.0}

    def run(self) -> None:
        """Until nothing happens any more."""
        self._wake(self._tick, 0.0)
        while self.events:
            self.now, _serial, what = heapq.heappop(self.events)
            if not callable(what):
                self._go_on(what)
            elif self.turns.get(what) == self.now:
                del self.turns[what]
                what()

    def _at(self, when: float, what: Any) -> None:
        heapq.heappush(self.events, (when, next(self.serial), what))

    def _wake(self, what: Any, when: float) -> None:
        every = self.policy.tick_seconds if what == self._tick else self.policy.dequeue_seconds
        turn = math.ceil(max(when, self.now) / every) * every
        if turn < self.turns.get(what, math.inf):
            self.turns[what] = turn
            self._at(turn, what)

    def _go_on(self, run: Process) -> None:
        wanted = next(run, None)
        if isinstance(wanted, float):
            self._at(self.now + wanted, run)
        elif wanted is not None:
            heapq.heappush(self.waiting, (wanted != "search", self.now, next(self.serial), run))
            self._give_gpus()

    def _give_gpus(self) -> None:
        while self.free and self.waiting:
            _late, since, _serial, run = heapq.heappop(self.waiting)
            self.free -= 1
            waited = self.now - since
            self._note("wait", waited)
            # It looks after 1.1 s, then a tenth later each time: in half of what it has come to, it sees its GPU.
            self._at(self.now + (min(self.times["claim_seconds"], 1 + waited / 10) / 2 if waited else 0.0), run)

    def _note(self, what: str, value: float) -> None:
        self.most[what] = max(self.most[what], value)

    # --- the sensors and the queue ---

    def _tick(self) -> None:
        search, enhance, index = (self.lanes[name] for name in ("search", "enhance", "index"))
        while self.next_batch < len(self.batches) and search.active < self.policy.lane_runs:
            batch = self.batches[self.next_batch]
            formed = self.form_ends + batch.files * self.times["form_seconds"]
            if formed > self.now:
                self._wake(self._tick, formed)
                break
            self.next_batch, self.form_ends = self.next_batch + 1, formed
            self.keys += 1
            self._ask(search, self._search(batch))
        while self.ready and enhance.active < self.policy.lane_runs:
            self._ask(enhance, self._enhance(self.ready.popleft()))
        if self.fresh and not index.active:
            due = self.published + self.policy.index_seconds if self.embedded < self._files() else self.now
            if due <= self.now:
                self._ask(index, self._index())
            else:
                self._wake(self._tick, due)
        self._note("keys", self.keys)

    def _files(self) -> int:
        return sum(batch.files for batch in self.batches[-2:]) and self.total

    def _ask(self, lane: _Lane, run: Process) -> None:
        lane.active += 1
        lane.queue.append(run)
        self._wake(self._dequeue, self.dequeued)
