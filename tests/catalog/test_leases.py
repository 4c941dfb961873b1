"""Leases and workers: one holder at a time, and nobody writes for another."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from library import RAW, Library, seen

from mirror_realm_assets.catalog import items, leases, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.errors import LeaseLost
from mirror_realm_assets.liveness import ProcessIdentity, identity


def _take(catalog: Catalog, owner: str, seconds: float = 60, name: str = "x") -> Lease | None:
    with catalog.write() as conn:
        return leases.acquire(conn, name, owner, seconds)


def _let_it_run_out(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(t.leases.update().values(until=now(conn) - timedelta(seconds=1)))


def test_a_lease_has_one_owner(catalog: Catalog) -> None:
    held = _take(catalog, "a")
    assert held == Lease("x", "a", 1)
    assert _take(catalog, "b") is None
    assert _take(catalog, "b", name="y") is not None
    with catalog.read() as conn:
        assert leases.holder(conn, "x") == "a"
        assert leases.holder(conn, "unknown") is None


def test_taking_what_one_holds_renews_it_under_the_same_token(catalog: Catalog) -> None:
    assert _take(catalog, "a", 1) == _take(catalog, "a", 1000)
    with catalog.read() as conn:
        until = conn.execute(sa.select(t.leases.c.until)).scalar_one()
        assert until > now(conn) + timedelta(seconds=900)


def test_the_token_grows_with_every_owner(catalog: Catalog) -> None:
    tokens = []
    for owner in ("a", "b", "b", "a"):
        lease = _take(catalog, owner)
        assert lease is not None
        tokens.append(lease.token)
        _let_it_run_out(catalog)
    assert tokens == [1, 2, 3, 4]


def test_a_lease_that_ran_out_is_taken_by_another_and_its_old_owner_may_not_write(catalog: Catalog) -> None:
    old = _take(catalog, "a")
    assert old is not None
    _let_it_run_out(catalog)
    with pytest.raises(LeaseLost), catalog.write() as conn:
        leases.check(conn, old)
    new = _take(catalog, "b")
    assert new is not None
    with catalog.write() as conn:
        leases.check(conn, new)
        assert not leases.renew(conn, old, 60)
        leases.release(conn, old)
        leases.check(conn, new)
    with pytest.raises(LeaseLost), catalog.write() as conn:
        leases.check(conn, old)


def test_the_same_worker_is_fenced_by_its_own_older_token(catalog: Catalog) -> None:
    old = _take(catalog, "a")
    _let_it_run_out(catalog)
    assert _take(catalog, "a") != old
    assert old is not None
    with pytest.raises(LeaseLost), catalog.write() as conn:
        leases.check(conn, old)


def test_a_released_lease_is_free_at_once(catalog: Catalog) -> None:
    held = _take(catalog, "a")
    assert held is not None
    with catalog.write() as conn:
        assert leases.renew(conn, held, 60)
        leases.release(conn, held)
        assert not leases.renew(conn, held, 60)
        assert leases.holder(conn, "x") is None
    assert _take(catalog, "b") == Lease("x", "b", 2)


@pytest.mark.parametrize("state", ["new", "released", "expired"])
def test_exactly_one_of_eight_threads_wins(catalog: Catalog, state: str) -> None:
    if state != "new":
        held = _take(catalog, "before")
        assert held is not None
        if state == "expired":
            _let_it_run_out(catalog)
        else:
            with catalog.write() as conn:
                leases.release(conn, held)
    won: list[Lease | None] = []
    start = threading.Barrier(8)

    def take(n: int) -> None:
        start.wait()
        won.append(_take(catalog, f"w{n}"))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert len([lease for lease in won if lease]) == 1


def _process_takes(url: str, n: int, start: object, won: object) -> None:
    catalog = Catalog(url)
    with catalog.read() as conn:
        now(conn)
    start.wait(60)  # type: ignore[attr-defined]
    won.put(_take(catalog, f"w{n}") is not None)  # type: ignore[attr-defined]
    catalog.close()


def test_exactly_one_of_eight_processes_wins(catalog: Catalog) -> None:
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as shared:
        start, won = shared.Barrier(8), shared.Queue()
        url = catalog.url.render_as_string(hide_password=False)
        processes = [context.Process(target=_process_takes, args=(url, n, start, won)) for n in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert sorted(won.get_nowait() for _ in processes) == [False] * 7 + [True]


def _worker(library: Library, process: ProcessIdentity, run_id: str | None = None) -> str:
    with library.catalog.write() as conn:
        return workers.register(conn, "run", process, run_id)


def test_a_heartbeat_prolongs_live_leases_and_running_items_and_revives_nothing(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "one"), seen(b"b", "two"))
    batch = library.form(source, b"a", b"b", of=[RAW])
    worker = _worker(library, identity(), "run-1")
    _take(library.catalog, worker, 60, "ran-out")
    _let_it_run_out(library.catalog)
    _take(library.catalog, worker, 60, "live")
    with library.catalog.write() as conn:
        items.claim(conn, items.open_work(conn, batch, source, [], {})[:1], worker, 1)
        workers.beat(conn, worker, 1000, "raw_media")
        later = now(conn) + timedelta(seconds=900)
        until = {row.name: row.until for row in conn.execute(sa.select(t.leases))}
        item_until = conn.execute(sa.select(t.batch_items.c.lease_until).order_by(t.batch_items.c.n)).scalars().all()
        assert until["live"] > later > until["ran-out"]
        assert item_until[0] > later
        assert item_until[1] is None
        assert [row.doing for row in workers.open_workers(conn, ["run-1"])] == ["raw_media"]
        assert workers.open_workers(conn, ["run-2"]) == []


def test_a_worker_that_ends_in_good_order_frees_its_leases(library: Library) -> None:
    worker = _worker(library, identity(), "run-1")
    _take(library.catalog, worker)
    with library.catalog.write() as conn:
        workers.end(conn, worker)
        assert workers.open_workers(conn) == []
        assert [row.id for row in workers.of_runs(conn, ["run-1"])] == [worker]
    assert _take(library.catalog, "next") is not None


def test_a_killed_process_is_buried_its_leases_are_free_and_the_living_keep_theirs(library: Library) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=-1)
    assert child.stdout is not None
    child.stdout.readline()
    dead = _worker(library, identity(child.pid), "run-dead")
    alive = _worker(library, identity(), "run-alive")
    elsewhere = _worker(library, ProcessIdentity("another-host", "boot", child.pid, 1), "run-elsewhere")
    _take(library.catalog, dead, name="of-dead")
    _take(library.catalog, alive, name="of-alive")
    _take(library.catalog, elsewhere, name="of-elsewhere")
    assert workers.bury_the_dead(library.catalog) == []
    child.kill()
    child.wait()
    child.stdout.close()
    assert [row.id for row in workers.bury_the_dead(library.catalog)] == [dead]
    assert workers.bury_the_dead(library.catalog) == []
    with library.catalog.read() as conn:
        assert leases.holder(conn, "of-dead") is None
        assert leases.holder(conn, "of-alive") == alive
        assert leases.holder(conn, "of-elsewhere") == elsewhere  # only its lease's end frees it


def test_a_heartbeat_does_not_wait_for_items_that_are_being_recorded(library: Library) -> None:
    if library.catalog.is_sqlite:
        return  # one writer at a time
    source = library.source()
    library.sight(source, seen(b"a", "one"))
    batch = library.form(source, b"a", of=[RAW])
    worker = _worker(library, identity())
    with library.catalog.write() as conn:
        items.claim(conn, items.open_work(conn, batch, source, [], {}), worker, 60)
    with library.catalog.write() as conn:
        conn.execute(t.batch_items.update().values(progress=0.5))
        began = time.monotonic()
        with library.catalog.write() as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            workers.beat(other, worker, 60)
        assert time.monotonic() - began < 2
