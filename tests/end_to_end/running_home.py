"""A real home for whole-way tests: installed, with weights, a watched folder, and `mirror-realm up` on demand.

Programs are started from Python with default signal handlers and kept pids, never through a shell.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings

_GONE_SECONDS = 60.0
_ENDED = ("SUCCESS", "FAILURE", "CANCELED")


@dataclass(frozen=True)
class AtWork:
    """A run worker in the middle of something: its pid, and the items it has marked as running."""

    pid: int
    items: frozenset[int]


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningHome:
    """One home with one watched folder `photos`, source `demo`.

    Args:
        base: an empty folder.
        models: the folder of verified weights, copied by link.
        options: of the source.
        env: more environment variables.
    """

    def __init__(self, base: Path, models: Path, options: tuple[str, ...] = (), **env: str) -> None:
        self.home = base / "home"
        self.folder = base / "photos"
        self.folder.mkdir(parents=True)
        self.port = free_port()
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MIRROR_REALM_", "DAGSTER_"))},
            "MIRROR_REALM_HOME": str(self.home),
            "OMP_NUM_THREADS": "2",
            **env,
        }
        self.up_process: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self.run("init")
        for weights in models.glob("*.safetensors"):
            os.link(weights, self.home / "models" / weights.name)
        settings = Settings.at(self.home)
        self._catalog = Catalog(settings.catalog_url)
        self._rules = [stage.rule for stage in standard_stages(settings)]
        self.run("sources", "add", "demo", "--folder", str(self.folder), *[w for o in options for w in ("--option", o)])

    def run(self, *words: str, check: bool = True, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `mirror-realm WORDS`."""
        command = [sys.executable, "-m", "mirror_realm_assets.cli", *words]
        done = subprocess.run(
            command,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """Counts of the source `demo`, read in this process: asking a program each time would starve what is tested."""
        with self._catalog.read() as conn:
            source = sources.get(conn, "demo")
            return status.of_source(conn, source, self._rules).as_json()

    def files(self) -> list[dict[str, Any]]:
        """Every file as `files --json` shows it."""
        return [json.loads(line) for line in self.run("files", "--json").stdout.splitlines()]

    def search(self, picture: Path) -> list[dict[str, Any]]:
        """Hits of `search --like`."""
        return json.loads(self.run("search", "--like", str(picture), "--json").stdout)

    def up(self) -> None:
        """Start `mirror-realm up`."""
        log = (self.home / "up.out").open("ab")
        self.up_process = subprocess.Popen(
            [sys.executable, "-m", "mirror_realm_assets.cli", "up", "--port", str(self.port)],
            env=self.env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program of this home with this interpreter; modules of the tests can be loaded by name."""
        log = (self.home / "up.out").open("ab")
        beside = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])
        env = {**self.env, "DAGSTER_HOME": str(self.home / "dagster"), "PYTHONPATH": beside}
        program = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self._started.append(program)
        return program

    def start_daemon(self, module: str) -> subprocess.Popen[bytes]:
        """Start a Dagster daemon of its own for a code location, without webserver, watcher or supervisor."""
        return self.start(str(Path(sys.executable).parent / "dagster-daemon"), "run", "-m", module)

    def wait_for(self, done: Callable[[dict[str, Any]], bool], seconds: float, *, what: str) -> dict[str, Any]:
        """Wait until the status satisfies `done`; fails with what the logs say."""
        end = time.monotonic() + seconds
        while True:
            found = self.status()
            if done(found):
                return found
            assert time.monotonic() < end, f"not within {seconds} s: {what}; last {found}\n{self.logs()}"
            time.sleep(0.5)

    def wait_at_work(self, feature: str, seconds: float, *, done: int = 0) -> AtWork:
        """Wait until a run worker has pictures of a feature in work, and `done` of them are recorded; at once after."""
        end = time.monotonic() + seconds
        while True:
            found = self._at_work(feature, done)
            if found is not None:
                return found
            assert time.monotonic() < end, f"{feature} was not begun within {seconds} s\n{self.logs()}"
            time.sleep(0.01)

    def _at_work(self, feature: str, done: int) -> AtWork | None:
        items, workers = t.batch_items.c, t.workers.c
        query = (
            sa.select(workers.pid, items.id)
            .join(t.workers, workers.id == items.worker_id)
            .where(items.feature == feature, items.state == "running", workers.kind == "run")
            .where(workers.ended_at.is_(None))
        )
        with self._catalog.read() as conn:
            rows = conn.execute(query).all()
            if not rows or (done and len(self._recorded(conn, feature)) < done):
                return None
        return AtWork(int(rows[0][0]), frozenset(int(row[1]) for row in rows))

    def items_in_work(self) -> frozenset[int]:
        """Ids of the items that are marked as running."""
        with self._catalog.read() as conn:
            return frozenset(
                conn.execute(sa.select(t.batch_items.c.id).where(t.batch_items.c.state == "running")).scalars()
            )

    def crashed_items(self) -> dict[int, int]:
        """Ids of the items whose worker died on them, with how often."""
        items = t.batch_items.c
        with self._catalog.read() as conn:
            return {row[0]: row[1] for row in conn.execute(sa.select(items.id, items.crashes).where(items.crashes > 0))}

    def recorded(self, feature: str | None = None) -> list[dict[str, Any]]:
        """The recorded features."""
        with self._catalog.read() as conn:
            return self._recorded(conn, feature)

    @staticmethod
    def _recorded(conn: sa.Connection, feature: str | None) -> list[dict[str, Any]]:
        query = sa.select(t.features)
        if feature is not None:
            query = query.where(t.features.c.feature == feature)
        return [dict(row) for row in conn.execute(query).mappings()]

    def indexed(self) -> set[tuple[str, int]]:
        """Picture and part of every live member of the index."""
        members = t.index_members.c
        with self._catalog.read() as conn:
            rows = conn.execute(sa.select(members.image_digest, members.part).where(members.deleted_at.is_(None)))
            return {(row[0], row[1]) for row in rows}

    def embedded(self) -> set[tuple[str, int]]:
        """Picture and part of every verified embedding in the ledger."""
        return {
            (row["image_digest"], row["part"])
            for row in self.recorded("embeddings")
            if row["status"] == "ok" and row["verified"]
        }

    def wait_runs_ended(self, seconds: float) -> list[tuple[str, str, str]]:
        """Wait until no run is under way or queued; returns all runs."""
        end = time.monotonic() + seconds
        while True:
            runs = self.dagster_runs()
            if all(status in _ENDED for _job, status, _key in runs):
                return runs
            assert time.monotonic() < end, f"runs left: {runs}\n{self.logs()}"

    def logs(self) -> str:
        """The last lines of every log."""
        names = [self.home / "up.out", *sorted((self.home / "logs").glob("*.log"))]
        return "\n".join(f"--- {name}\n{_tail(name)}" for name in names if name.exists())

    def processes(self) -> list[psutil.Process]:
        """Every process that works for this home, found by its environment."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MIRROR_REALM_HOME") == str(self.home) and process.pid != os.getpid():
                    mine.append(process)
            except psutil.Error:
                continue
        return mine

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes of this home whose command line holds all these words."""
        found = []
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def daemon(self) -> psutil.Process:
        """The Dagster daemon itself, not its guardian."""
        (found,) = [p for p in self.find("dagster-daemon") if "supervised.py" not in " ".join(p.cmdline())]
        return found

    def kill_everything(self) -> None:
        """kill -9 of the whole process tree at once, as a power cut."""
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        self._wait_gone()

    def stop(self) -> int | None:
        """Ctrl-C; returns the exit code of `up`."""
        code = None
        if self.up_process is not None:
            if self.up_process.poll() is None:
                self.up_process.send_signal(signal.SIGINT)
            code = self.up_process.wait(_GONE_SECONDS)
            self.up_process = None
        self._wait_gone()
        return code

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
        if self.up_process is not None:
            self.up_process.wait(_GONE_SECONDS)
        for started in self._started:
            started.wait(_GONE_SECONDS)
        self._catalog.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _wait_gone(self) -> None:
        if self.up_process is not None and self.up_process.poll() is not None:
            self.up_process = None
        end = time.monotonic() + _GONE_SECONDS
        while self.processes():
            assert time.monotonic() < end, f"still running: {[p.cmdline() for p in self.processes()]}"
            time.sleep(0.2)

    def dagster_runs(self) -> list[tuple[str, str, str]]:
        """Job, status and partition of every run of the instance."""
        code = (
            "import dagster as dg, json\n"
            "with dg.DagsterInstance.get() as i:\n"
            "    print(json.dumps([[r.dagster_run.job_name, r.dagster_run.status.value,"
            " r.dagster_run.tags.get('dagster/partition','')] for r in i.get_run_records()]))\n"
        )
        env = {**self.env, "DAGSTER_HOME": str(self.home / "dagster")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
        )
        return [(row[0], row[1], row[2]) for row in json.loads(done.stdout)]


def _tail(path: Path, lines: int = 40) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def all_ok(count: int, *features: str) -> Callable[[dict[str, Any]], bool]:
    """True when `count` files are ok in each of these features and nothing is pending or running in them."""

    def done(found: dict[str, Any]) -> bool:
        return all(
            found["features"][f]["ok"] == count
            and not found["features"][f]["pending"] + found["features"][f]["running"]
            for f in features
        )

    return done
