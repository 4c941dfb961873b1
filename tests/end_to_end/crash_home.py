"""A cheap home whose programs are killed: whom to kill and where, and waiting until all is settled."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from crash_oracle import CheckedHome

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now

PROGRAMS = str(Path(__file__).with_name("cheap_programs.py"))

WATCHER_POINTS = ("journal.before_commit", "journal.after_commit", "scan.absence_journalled")
FORMER_POINTS = (
    "drain.before_commit",
    "drain.after_commit",
    "form.before_commit",
    "form.after_commit",
    "sensor.before_requests",
)
WORKER_POINTS = (
    "lease.after_commit",
    "claim.after_commit",
    "store.draft begun",
    "store.draft synced",
    "store.renamed",
    "store.durable",
    "record.before_commit",
    "record.after_commit",
    "settle.before_commit",
    "settle.after_commit",
    "index.lease held",
    "index.segment announced",
    "index.segment written",
    "index.ready to publish",
    "index.about to commit",
    "index.published",
)
DAEMON_POINTS = tuple(
    f"daemon.{when}_{what}"
    for what in ("adding_keys", "creating_run", "submitting", "launching")
    for when in ("before", "after")
)
INGEST_POINTS = (
    *WATCHER_POINTS,
    "drain.before_commit",
    "drain.after_commit",
    "form.before_commit",
    "form.after_commit",
    "ingest.key_added",
    *WORKER_POINTS,
)
POINTS_OF = {
    "watcher": WATCHER_POINTS,
    "code server": FORMER_POINTS,
    "run worker": WORKER_POINTS,
    "daemon": DAEMON_POINTS,
    "ingest": INGEST_POINTS,
}
_WORDS_OF = {
    "watcher": ("cheap_programs.py", "cli", "watch"),
    "daemon": ("cheap_programs.py", "daemon"),
    "code server": ("api", "grpc"),
    "run worker": ("multiprocessing.spawn",),
}
_ABOUT_TO_COME = 15.0  # seconds for a process that is to be killed to appear, or to come to its point
_COUNTS = (1, 1, 1, 2, 3)  # at which passing of a point
_AT_POINTS = 0.6  # of the kills; the others come at any moment
# Of the kills under `up`; the others hit run workers, the code server, the daemon, and now and then everything.
_WATCHERS, _INGESTS_BESIDE = 0.35, 0.15


@dataclass(frozen=True)
class Settled:
    """How long it took until all was settled, and what a person had to do for it."""

    seconds: float
    set_aside: int

    def __str__(self) -> str:
        return f"settled in {self.seconds:.0f} s, {self.set_aside} set aside after two crashes"


class CrashHome(CheckedHome):
    """A home with toy stages, whose programs can be killed at points."""

    def up(self) -> None:
        """Start the supervisor with a daemon and a watcher."""
        self.up_process = self.start(PROGRAMS, "up")

    def ingest(self) -> subprocess.Popen[bytes]:
        """Start `mirror-realm ingest`."""
        return self.start(PROGRAMS, "cli", "ingest", "demo")

    # --- killing ---

    def pids_of(self, victim: str) -> list[int]:
        """The living processes that are called so."""
        words, found = _WORDS_OF[victim], []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words) and "supervised.py" not in line:
                    found.append(process.pid)
        return found

    def kill_at_any_moment(self, victim: str, chance: random.Random, longest: float) -> bool:
        """Wait for the victim to be there, then a random while, and kill it."""
        pids = self._wait_for_victim(victim)
        if not pids:
            return False
        pid = chance.choice(pids)
        time.sleep(chance.uniform(0, longest))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._note(victim, "any moment", pid)
        return True

    def kill_at_point(self, victim: str, chance: random.Random, beside: Mapping[int, str]) -> bool:
        """Arm one of the victim's points, at one of its next passings; `beside` names processes that may come first."""
        name = chance.choice(POINTS_OF[victim])
        self.arm(name, chance.choice(_COUNTS))
        end = time.monotonic() + _ABOUT_TO_COME
        while time.monotonic() < end:
            pid = self.died_at(name)
            if pid is not None:
                self._note(beside.get(pid, victim), name, pid)
                return True
            time.sleep(0.05)
        return self.disarm(name, victim)

    def arm(self, name: str, count: int) -> None:
        """Whoever passes the point for the `count`th time from now on dies there."""
        draft = self.faults / f".{name}"
        draft.write_text(str(count))
        draft.rename(self.faults / name)

    def died_at(self, name: str) -> int | None:
        """Who died at a point since it was armed."""
        for path in self.faults.glob(f"{name}.*"):
            pid = path.suffix.removeprefix(".")
            if pid.isdigit():
                path.unlink()
                return int(pid)
        return None

    def disarm(self, name: str, victim: str) -> bool:
        """Let everybody pass again; returns whether somebody died there."""
        with contextlib.suppress(FileNotFoundError):
            (self.faults / name).unlink()
        pid = self.died_at(name)
        if pid is not None:
            self._note(victim, name, pid)
        return pid is not None

    def cut_power(self) -> None:
        """Kill everything at once."""
        pids = {process.pid for process in self.processes()}
        self.kill_everything()
        self.killed.pids |= pids
        self.killed.by["everything", "any moment"] += 1

    def _wait_for_victim(self, victim: str) -> list[int]:
        end = time.monotonic() + _ABOUT_TO_COME
        while time.monotonic() < end:
            if pids := self.pids_of(victim):
                return pids
            time.sleep(0.1)
        return []

    def _note(self, victim: str, where: str, pid: int) -> None:
        self.killed.pids.add(pid)
        self.killed.by[victim, where] += 1

    # --- rounds ---

    def ingest_round(self, kills: int, seed: int) -> None:
        """Without `up`: start `ingest` again and again and kill it, at points and by the clock, in turns."""
        chance = random.Random(seed)  # noqa: S311 - which point comes next, no secret
        wanted, tries = self.killed.total + kills, 0
        while self.killed.total < wanted:
            tries += 1
            assert tries < 3 * kills + 20, f"too few kills: {self.killed.by}\n{self.logs()}"
            for _ in range(chance.randint(2, 6)):
                self.changing.change()
            self._kill_an_ingest(chance)

    def _kill_an_ingest(self, chance: random.Random) -> None:
        name = chance.choice(POINTS_OF["ingest"]) if chance.random() < _AT_POINTS else None
        if name is not None:
            self.arm(name, chance.choice(_COUNTS))
        running = self.ingest()
        try:
            running.wait(60 if name is not None else chance.uniform(0.3, 3.5))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            self._note("ingest", "any moment", running.pid)
        if name is not None:
            self.disarm(name, "ingest")
        assert running.returncode in (0, -signal.SIGKILL), self.logs()

    def up_round(self, kills: int, seed: int) -> None:
        """With `up`: kill whom it supervises, and what they start, while the folder changes and others `ingest`."""
        watchers, ingests = round(kills * _WATCHERS), round(kills * _INGESTS_BESIDE)
        jobs = (
            (self._kill_a_watcher, watchers),
            (self._kill_an_ingest_beside, ingests),
            (self._kill_another, kills - watchers - ingests),
        )
        self.up()
        self.changing.start()
        beside: dict[int, str] = {}
        end = time.monotonic() + 120 + 30 * kills
        failures: list[BaseException] = []

        def go(job: Any, wanted: int, chance: random.Random) -> None:
            try:
                while wanted and time.monotonic() < end:
                    wanted -= job(chance, beside)
                assert not wanted, f"{wanted} kills too few in time"
            except BaseException as error:
                failures.append(error)

        # Every killer has its own chance, so that what it plans does not depend on how fast the others are.
        threads = [
            threading.Thread(target=go, args=(*job, random.Random(seed * 10 + n)), daemon=True)  # noqa: S311
            for n, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.changing.stop()
        assert not failures, f"{failures}: {self.killed.by}\n{self.logs()}"
        assert not list(self.faults.iterdir())

    def _kill_a_watcher(self, chance: random.Random, beside: dict[int, str]) -> bool:
        time.sleep(chance.uniform(0, 2))
        if chance.random() < _AT_POINTS:
            return self.kill_at_point("watcher", chance, beside)
        return self.kill_at_any_moment("watcher", chance, 4.0)

    def _kill_an_ingest_beside(self, chance: random.Random, beside: dict[int, str]) -> bool:
        time.sleep(chance.uniform(1, 5))
        running = self.ingest()
        beside[running.pid] = "ingest beside"
        try:
            running.wait(chance.uniform(0.3, 5.0))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            self._note("ingest beside", "any moment", running.pid)
            return True
        return False

    def _kill_another(self, chance: random.Random, beside: dict[int, str]) -> bool:
        kind = chance.choices(("run worker", "code server", "daemon", "everything", "up"), (48, 22, 22, 4, 4))[0]
        if kind in ("everything", "up"):
            time.sleep(chance.uniform(0, 5))
            if kind == "everything":
                self.cut_power()
            else:
                assert self.up_process is not None
                self.up_process.kill()
                self.up_process.wait()
                self._note("up", "any moment", self.up_process.pid)
            self.up()
            return True
        if chance.random() < _AT_POINTS:
            return self.kill_at_point(kind, chance, beside)
        return self.kill_at_any_moment(kind, chance, 2.5 if kind == "run worker" else 6.0)

    # --- the end of a round ---

    def settle(self, seconds: float = 180.0) -> Settled:
        """Wait until nothing is left to do; what had two crashes is tried again by the command that is for it."""
        began = time.monotonic()
        self._wait_settled(seconds)
        aside = self._set_aside()
        if aside:
            self._retry()
            self._wait_settled(seconds)
        return Settled(time.monotonic() - began, aside)

    def settle_by_ingest(self) -> Settled:
        """One `ingest` that nobody kills does everything that is left."""
        began = time.monotonic()
        aside = 0
        for _try in range(2):
            running = self.ingest()
            while running.poll() is None:
                self._let_pauses_be_over()
                time.sleep(0.3)
                assert time.monotonic() - began < 180, self.logs()
            assert running.returncode == 0, self.logs()
            aside = self._set_aside()
            if not aside:
                break
            self._retry()
        return Settled(time.monotonic() - began, aside)

    def _wait_settled(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        calm = 0
        while calm < 3:
            self._let_pauses_be_over()
            left = self._left()
            calm = 0 if left else calm + 1
            assert time.monotonic() < end, f"not settled within {seconds} s: {left}\n{self.logs()}"
            time.sleep(0.5)

    def _let_pauses_be_over(self) -> None:
        """As if the time until the next attempt had passed: back-offs grow to a quarter of an hour."""
        with self.catalog.write() as conn:
            at = now(conn)
            for table, column in (
                (t.batch_lanes, "not_before"),
                (t.batch_items, "not_before"),
                (t.sources, "index_next_at"),
            ):
                conn.execute(table.update().where(table.c[column] > at).values({column: None}))
            for table in (t.locations, t.features):
                conn.execute(table.update().where(table.c.next_attempt_at > at).values(next_attempt_at=at))

    def _left(self) -> str:
        """What is not settled, in words."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(sa.func.count()).select_from(t.journal)).scalar_one()
            items = conn.execute(
                sa.select(sa.func.count()).select_from(t.batch_items).where(t.batch_items.c.settled_at.is_(None))
            ).scalar_one()
            known = self.known(conn)
        if rows or items:
            return f"{rows} journal rows, {items} open items"
        there = self.changing.digests()
        differing = sorted(
            path
            for path in {*known, *there}
            # A file that was set aside is tried again when all else is done.
            if known.get(path) != there.get(path) and known.get(path) != "unknown crashed_worker"
        )
        if differing:
            return f"the ledger differs from the folder: {[self._about(path) for path in differing[:5]]}"
        if missing := self.embedded_here() - self.indexed():
            return f"{len(missing)} pictures are not in the index"
        runs = self.runs_left()
        return f"runs {runs}" if runs else ""

    def _about(self, path: bytes) -> dict[str, object]:
        """A file as it lies in the folder, and what the ledger says of its place."""
        found: dict[str, object] = {"path": path}
        with contextlib.suppress(OSError):
            seen = os.stat(os.path.join(os.fsencode(self.changing.folder), path))  # noqa: PTH116, PTH118 - bytes
            found["stat"] = (seen.st_size, seen.st_mtime_ns, seen.st_ino)
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.locations).where(t.locations.c.path == path)).mappings()
            found["rows"] = [{name: value for name, value in row.items() if name != "path"} for row in rows]
        return found

    def keep(self, folder: Path) -> None:
        """Keep catalog and logs of a round that failed."""
        shutil.copytree(self.home, folder, ignore=shutil.ignore_patterns("models", "store", "dagster"))

    def _retry(self) -> None:
        assert self.start(PROGRAMS, "cli", "retry").wait(60) == 0, self.logs()

    def _set_aside(self) -> int:
        with self.catalog.read() as conn:
            counts = [
                conn.execute(sa.select(sa.func.count()).select_from(table).where(table.c.code == "crashed_worker"))
                for table in (t.locations, t.features)
            ]
            return sum(int(count.scalar_one()) for count in counts)
