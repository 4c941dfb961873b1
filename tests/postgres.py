"""A private PostgreSQL server for the tests: its own data folder, a unix socket, no network, gone at the end.

The catalog promises to be the same on SQLite and PostgreSQL, so a machine without a server cannot run these tests, and
that is a failure: a skip would hide that half of the promise was not looked at.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_USUAL_PLACES = (
    "/usr/lib/postgresql",
    "/usr/local/lib/postgresql",
    "/usr/pgsql",
    "/opt/homebrew/opt",
    "/opt/local/lib",
)
_PR_SET_PDEATHSIG = 1
# Nothing in this server has to survive anything.
_FAST = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "shared_buffers=64MB",
    "max_connections=60",
    "listen_addresses=",
)


class PostgresMissingError(RuntimeError):
    """There is no PostgreSQL server program on this machine."""


def find_programs() -> Path:
    """The folder with `initdb` and `postgres`."""
    candidates = []
    config = shutil.which("pg_config")
    if config:
        found = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(found.stdout.strip()))
    for place in _USUAL_PLACES:
        candidates.extend(sorted(Path(place).glob("*/bin"), reverse=True))
    if server := shutil.which("postgres"):
        candidates.append(Path(server).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissingError(
        "The catalog's tests need a PostgreSQL server (initdb and postgres) and found none through pg_config, PATH or "
        f"{', '.join(_USUAL_PLACES)}. Install one: apt-get install postgresql."
    )


class Server:
    """A running server; `stop` ends it and deletes its data.

    Args:
        settings: `name=value` each, beyond the fast ones, or instead of them.
    """

    def __init__(self, *settings: str) -> None:
        self._settings = (*_FAST, *settings)
        self._programs = find_programs()
        self._numbers = itertools.count()
        self._user = _unprivileged_user()
        self.folder = Path(tempfile.mkdtemp(prefix="mirror-realm-postgres-"))
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._process = self._start()
        self.admin = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://mirror@/{database}?host={self.folder}"

    def create(self) -> str:
        """The name of a new empty database."""
        name = f"test_{next(self._numbers)}"
        with self.admin.connect() as conn:
            conn.execute(sa.text(f"CREATE DATABASE {name}"))
        return name

    def disconnect(self, name: str) -> None:
        """End every connection to a database, so that nothing of one test is at work in the next."""
        with self.admin.connect() as conn:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            conn.execute(sa.text(ended), {"name": name})

    def drop(self, name: str) -> None:
        with self.admin.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def stop(self) -> None:
        self.admin.dispose()
        for way in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, by force
            if self._process.poll() is None:
                self._process.send_signal(way)
                try:
                    self._process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        initdb = [self._programs / "initdb", "-D", data, "-U", "mirror", "-A", "trust", "-E", "UTF8", "--locale=C"]
        made = subprocess.run(
            [*initdb, "--no-sync"], capture_output=True, text=True, check=False, cwd="/", **self._as_user()
        )
        if made.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise RuntimeError(f"initdb failed: {made.stderr}")
        settings = [word for setting in self._settings for word in ("-c", setting)]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [self._programs / "postgres", "-D", data, "-k", self.folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=_with_default_signals,
                **self._as_user(),
            )

    def _as_user(self) -> dict[str, object]:
        if not self._user:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with self.admin.connect():
                    return
            except sa.exc.OperationalError as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL did not start: {log}") from error
            time.sleep(0.05)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: then its own user, or `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresMissingError("Running as root needs a user `postgres` or `nobody` to run the server as.")


def _with_default_signals() -> None:
    # A shell that starts the tests in the background makes everything below ignore these.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
