"""Many workers on one catalog: drained, formed and claimed once, whatever is stopped, skewed or cut off in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from library import Library, seen
from postgres import Server
from sqlalchemy import event

from mirror_realm_assets.catalog import batches, files, leases, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now, serialise_places
from mirror_realm_assets.errors import LeaseLost
from mirror_realm_assets.liveness import identity

TESTS = Path(__file__).parents[1]
# Holds a lease and writes a row under it, again and again; a stopped one must not write after its lease is another's.
HOLDER = """
import sys, time
sys.path.insert(0, {tests!r})
from mirror_realm_assets.catalog import leases, tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.errors import LeaseLost
catalog = Catalog({url!r})
with catalog.write() as conn:
    lease = leases.acquire(conn, "batch/search/x", {owner!r}, 1.0)
assert lease is not None
print("held", flush=True)
while True:
    try:
        with catalog.write() as conn:
            leases.check(conn, lease)
            conn.execute(t.intents.insert().values(key={owner!r}, created_at=now(conn)))
        with catalog.write() as conn:
            leases.renew(conn, lease, 1.0)
    except LeaseLost:
        print("lost", flush=True)
        break
    time.sleep(0.02)
"""


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)


@pytest.fixture
def on_server(postgres_url: str) -> Iterator[Library]:
    """On PostgreSQL alone: SQLite's file is on one machine, with one clock and no connection."""
    opened = Catalog(postgres_url)
    opened.migrate()
    yield Library(opened)
    opened.close()


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` returned in as many threads, begun together; the first error is raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_eight_that_drain_one_journal_apply_each_row_once(library: Library) -> None:
    source = library.source()
    with library.catalog.write() as conn:
        for number in range(600):
            files.write_journal(conn, source.id, 1, [seen(f"{number}.jpg".encode(), "x")])

    def drain(_number: int) -> int:
        drained = 0
        while True:
            with library.catalog.write() as conn:
                count = files.drain_journal(conn)
            drained += count
            if not count:
                return drained

    assert sum(at_once(8, drain)) == 600
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.locations)).scalar() == 600
        assert conn.execute(sa.select(sa.func.count()).select_from(t.journal)).scalar() == 0


def test_eight_that_form_batches_at_once_never_share_a_number(library: Library) -> None:
    source = library.source()
    for number in range(8):
        library.sight(source, seen(f"{number}.jpg".encode(), "x"))
    keys = at_once(8, lambda number: library.form(source, f"{number}.jpg".encode()).key)
    assert len(set(keys)) == 8
    assert sorted(int(key.rpartition(".")[2]) for key in keys) == list(range(1, 9))


def test_of_eight_that_want_one_lease_one_has_it(library: Library) -> None:
    def take(number: int) -> bool:
        with library.catalog.write() as conn:
            return leases.acquire(conn, "index/x", f"worker-{number}", 60) is not None

    assert Counter(at_once(8, take))[True] == 1


@pytest.mark.timeout(120)
def test_a_worker_that_is_stopped_and_continued_after_its_lease_expired_writes_nothing_more(
    library: Library, catalog_url: str
) -> None:
    event.listen(library.catalog.engine, "begin", _wait_shortly, insert=True)
    script = HOLDER.format(tests=str(TESTS), url=catalog_url, owner="stopped")
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        time.sleep(0.3)
        os.kill(holder.pid, signal.SIGSTOP)
        end = time.monotonic() + 60
        taken = None
        while taken is None:
            assert time.monotonic() < end
            time.sleep(0.1)
            try:
                with library.catalog.write() as conn:
                    taken = leases.acquire(conn, "batch/search/x", "successor", 60)
            except sa.exc.OperationalError:  # it was stopped within its transaction and holds what we wait for
                os.kill(holder.pid, signal.SIGCONT)
                time.sleep(0.05)
                os.kill(holder.pid, signal.SIGSTOP)
        written = _written(library)
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.stdout.readline() == "lost\n"
        assert holder.wait(30) == 0
        assert _written(library) == written
    finally:
        holder.kill()
        holder.wait()


def _wait_shortly(conn: sa.Connection) -> None:
    """Not as long as anyone else would: neither a statement that waits in libpq nor SQLite minds a test's timeout."""
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
    else:
        conn.exec_driver_sql("PRAGMA busy_timeout = 2000")


def test_what_is_stopped_within_a_transaction_holds_its_rows_for_a_limited_time(
    on_server: Library, postgres_url: str
) -> None:
    library = on_server
    stopped = Catalog(postgres_url, idle_seconds=1)
    with stopped.write() as conn:
        lease = leases.acquire(conn, "stopped", "first", 0.1)
        written = _written(library)
    assert lease is not None
    with pytest.raises(sa.exc.DBAPIError), stopped.write() as conn:
        leases.renew(conn, lease, 60)
        serialise_places(conn)
        conn.execute(t.intents.insert().values(key="stopped", created_at=now(conn)))
        with library.catalog.write() as other:  # waits for it
            serialise_places(other)
            assert leases.acquire(other, "stopped", "second", 60) is not None
        conn.execute(t.intents.insert().values(key="continued", created_at=datetime.now(UTC)))
    assert _written(library) == written
    with stopped.write() as conn:  # another connection
        assert leases.renew(conn, lease, 60) is False
    stopped.close()


def _written(library: Library) -> int:
    with library.catalog.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(t.intents)).scalar_one())


class AnyTime(type(datetime)):  # type: ignore[misc]
    """Every time is an instance of a skewed clock's class: code asks for it by the name that is replaced."""

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, datetime)


class Off(datetime, metaclass=AnyTime):
    """A clock that is ten minutes off."""

    by = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + cls.by


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_machine_whose_clock_is_ten_minutes_off_takes_no_lease_and_loses_none(
    on_server: Library, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    library = on_server
    with library.catalog.write() as conn:
        mine = leases.acquire(conn, "x", "mine", 60)
        assert mine is not None
    monkeypatch.setattr(Off, "by", timedelta(minutes=minutes))
    for module in [m for name, m in sys.modules.items() if name.startswith("mirror_realm_assets")]:
        if getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Off)
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + minutes * 60)
    with library.catalog.write() as conn:
        assert leases.acquire(conn, "x", "other", 60) is None
        leases.check(conn, mine)
        other = leases.acquire(conn, "y", "other", 60)
        assert other is not None
        alive = workers.register(conn, "run", identity())
    assert workers.bury_the_dead(library.catalog) == []
    monkeypatch.undo()
    with library.catalog.write() as conn:
        leases.check(conn, other)
        assert leases.acquire(conn, "y", "mine", 60) is None
        assert alive in {worker.id for worker in workers.open_workers(conn)}


def test_a_connection_that_is_cut_costs_the_transaction_and_nothing_else(
    on_server: Library, postgres_server: Server
) -> None:
    library, server = on_server, postgres_server
    source = library.source()
    library.sight(source, seen(b"a.jpg", "x"))
    name = library.catalog.url.database
    assert name is not None
    with pytest.raises(sa.exc.DBAPIError), library.catalog.write() as conn:
        files.write_journal(conn, source.id, 1, [seen(b"lost.jpg", "x")])
        server.disconnect(name)
        files.drain_journal(conn)
    library.sight(source, seen(b"b.jpg", "x"))  # the pool has found out
    assert len(library.waiting(source)) == 2
    batch = library.form(source, b"a.jpg", b"b.jpg")
    server.disconnect(name)
    with library.catalog.read() as conn:
        assert batches.get(conn, batch.key) is not None


def test_a_lease_that_was_lost_is_told_to_whoever_checks_it(library: Library) -> None:
    with library.catalog.write() as conn:
        old = leases.acquire(conn, "x", "one", 0.01)
    time.sleep(0.05)
    with library.catalog.write() as conn:
        assert leases.acquire(conn, "x", "two", 60) is not None
        assert old is not None
        with pytest.raises(LeaseLost):
            leases.check(conn, old)
