"""A cluster with a backlog, simulated batch by batch: sensors, queue, pods and the pool of GPUs as in `deploy/`.

What belongs here: the order of things, and what waits for what. What does not: how long anything takes
(`cluster.TIMES`), what a stage does, and single files. Left out are failures, and whatever is too small for so much:
nodes, the network, the database.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

Lane = Literal["index", "search", "enhance"]  # the most urgent first
Process = Generator[float | Lane, None, None]  # a run: it waits for seconds, or for a GPU as its lane does

SHARES = {"search": 0.0, "and a tenth enhanced": 0.1, "and all enhanced": 1.0}
_FIRST_FILES = 32  # of the first batch of a burst (`catalog.forming`)
_ROUND_VECTORS = 50_000  # that an index publishes at once (`search.build`)
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
        self.files = sum(batch.files for batch in batches)
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
            when, _serial, what = heapq.heappop(self.events)
            if callable(what) and self.turns.get(what) != when:
                continue  # it has looked earlier
            self.now = when
            if callable(what):
                del self.turns[what]
                what()
            else:
                self._go_on(what)

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
        if isinstance(wanted, str):
            heapq.heappush(self.waiting, (wanted != "search", self.now, next(self.serial), run))
            self._give_gpus()
        elif wanted is not None:
            self._at(self.now + wanted, run)

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
            due = self.published + self.policy.index_seconds if self.embedded < self.files else self.now
            if due <= self.now:
                self._ask(index, self._index())
            else:
                self._wake(self._tick, due)
        self._note("keys", self.keys)

    def _ask(self, lane: _Lane, run: Process) -> None:
        lane.active += 1
        lane.queue.append(run)
        self._wake(self._dequeue, self.dequeued)

    def _dequeue(self) -> None:
        """Start what there is room for, the most urgent first; several Jobs are made at once, and the rest waits."""
        chosen: list[Process] = []
        for name, lane in self.lanes.items():
            while lane.queue and self.running < self.policy.runs_at_once:
                # A run whose only step wants a GPU is left in the queue while as many want one as there are.
                wanting = self.gpus - self.free + len(self.waiting) + self.starting
                if name == "enhance" and wanting >= self.gpus + self.policy.run_buffer:
                    break
                self.starting += name == "enhance"
                self.index_runs += name == "index"
                self.running += 1
                chosen.append(lane.queue.popleft())
        self.runs += len(chosen)
        for number, run in enumerate(chosen):
            self._at(self.now + (number // self.policy.workers + 1) * self.times["launch_seconds"], run)
        if chosen:
            rounds = math.ceil(len(chosen) / self.policy.workers)
            self.dequeued = self.now + rounds * self.times["launch_seconds"] + self.policy.dequeue_seconds
            self._wake(self._dequeue, self.dequeued)
        self._note("runs", self.running)

    # --- the runs ---

    def _search(self, batch: _Batch) -> Process:
        lane, times = self.lanes["search"], self.times
        yield from self._start(lane)
        read = times["read_seconds_per_megabyte"] * times["file_bytes"] / 1e6 + times["record_seconds"]
        yield from self._step(lane, batch.files * read)
        yield "search"
        yield from self._on_gpu(lane, batch.files * (times["embed_seconds"] + times["record_seconds"]))
        self.embedded += batch.files
        self.fresh += batch.files
        self.searchable = self.now
        self.first = self.first or (self.now if batch.files > _FIRST_FILES else 0.0)
        self._end(lane)
        self._enhance_more(batch)

    def _enhance(self, batch: _Batch) -> Process:
        lane = self.lanes["enhance"]
        yield from self._start(lane)
        self.starting -= 1
        yield "enhance"
        work = min(batch.left, self.policy.slice_seconds)
        yield from self._on_gpu(lane, work)
        batch.left -= work
        self._end(lane)
        self._enhance_more(batch)

    def _enhance_more(self, batch: _Batch) -> None:
        if batch.left > _NOTHING:
            self.ready.appendleft(batch)
        else:
            self.keys -= 1

    def _index(self) -> Process:
        lane, times = self.lanes["index"], self.times
        yield from self._start(lane)
        taken, self.fresh = self.fresh, 0
        rounds = math.ceil(taken / _ROUND_VECTORS)
        yield taken * times["index_seconds"] + rounds * self.embedded * times["member_seconds"]
        self.published = self.now
        self._end(lane)

    def _start(self, lane: _Lane) -> Process:
        lane.starts += self.times["pod_seconds"]
        yield self.times["pod_seconds"]

    def _step(self, lane: _Lane, work: float) -> Process:
        """A pod of its own on two cores."""
        self.working += 1
        self._note("cores", 2 * self.working + 0.25 * self.running)
        yield from self._start(lane)
        yield work
        lane.work += work
        self.working -= 1

    def _on_gpu(self, lane: _Lane, work: float) -> Process:
        yield self.times["load_seconds"]
        yield from self._step(lane, work)
        self.busy += work
        self.free += 1
        self._give_gpus()

    def _end(self, lane: _Lane) -> None:
        lane.active -= 1
        self.running -= 1
        self._wake(self._tick, self.now)
        self._wake(self._dequeue, self.dequeued)


def batch_files(policy: Policy, times: Mapping[str, float]) -> int:
    """Files in a full batch, by the estimate of `ingest.batching.search_seconds`."""
    estimate = times["cpu_seconds_per_file"] + times["read_seconds_per_megabyte"] * times["file_bytes"] / 1e6
    limits = (policy.batch_items, policy.batch_seconds / estimate, policy.batch_bytes / times["file_bytes"])
    return max(1, int(min(limits)))


def simulate(gpus: int, files: int, lanes: str, policy: Policy, times: Mapping[str, float]) -> Figures:
    """One backlog of one source, from the first batch until all is searchable, indexed and enhanced.

    Args:
        gpus: of the cluster; of cores there are enough.
        files: that are there at once and journalled.
        lanes: a key of `SHARES`.
        policy: of batches and queue.
        times: as in `TIMES`.
    """
    each = SHARES[lanes] * times["enhanced_megapixels"] * times["enhance_seconds_per_megapixel"]
    size, first = batch_files(policy, times), min(_FIRST_FILES, files)
    full, rest = divmod(files - first, size)
    counts = [first, *[size] * full, *([rest] if rest else [])]
    cluster = _Cluster(gpus, policy, times, [_Batch(count, count * each) for count in counts])
    cluster.run()
    if cluster.embedded != files or cluster.keys or cluster.fresh:
        raise RuntimeError(f"{files - cluster.embedded} files and {cluster.keys} batches are left over")
    most = cluster.most
    return Figures(
        gpus=gpus,
        files=cluster.embedded,
        lanes=lanes,
        hours=round(cluster.now / 3600, 2),
        searchable_hours=round(cluster.searchable / 3600, 2),
        first_minutes=round(cluster.first / 60, 1),
        gpu_busy=round(cluster.busy / (cluster.now * gpus), 3),
        search_starts=round(cluster.lanes["search"].share(), 4),
        enhance_starts=round(cluster.lanes["enhance"].share(), 4),
        partitions=len(counts),
        runs=cluster.runs,
        index_runs=cluster.index_runs,
        most_keys=int(most["keys"]),
        most_runs=int(most["runs"]),
        most_cores=round(most["cores"]),
        longest_wait_hours=round(most["wait"] / 3600, 2),
    )
