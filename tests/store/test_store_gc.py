from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from store_home import FreeLease, Home, Ledger

from mirror_realm_assets.catalog import intents
from mirror_realm_assets.errors import LeaseLost
from mirror_realm_assets.store import Store, Writer, keys
from mirror_realm_assets.store.gc import GcReport, collect

KEYS = [keys.derived_key("proxy", "cd" * 32, part, "ef" * 32, "webp") for part in range(3)]
processes = multiprocessing.get_context("forkserver")


def written(store: Store, ledger: Ledger, *wanted: str) -> None:
    with Writer(store, ledger).writing(wanted) as writing:
        made = [writing.put(key, key.encode()) for key in wanted]
    ledger.record(made, writing.intent_ids)


def test_only_what_is_old_and_unnamed_goes(home: Home, store: Store, ledger: Ledger, lease: FreeLease) -> None:
    named, unnamed, young = KEYS
    written(store, ledger, named)
    store.put(unnamed, b"nobody")
    home.age(25)
    store.put(young, b"nobody yet")
    report = collect(store, ledger, lease=lease)
    assert (report.scanned, report.kept, report.trashed, report.trashed_bytes) == (3, 2, 1, 6)
    assert report.trashed_keys == (unnamed,)
    assert [store.exists(key) for key in KEYS] == [True, False, True]
    assert lease.renewed


def test_trash_and_drafts_go_for_good_after_their_time(
    home: Home, store: Store, ledger: Ledger, lease: FreeLease
) -> None:
    store.put(KEYS[0], b"nobody")
    draft = home.path / "store" / "tmp" / "dead.part"
    draft.write_bytes(b"half")
    assert collect(store, ledger, lease=lease).unfinished.count == 0
    home.age(25)
    first = collect(store, ledger, lease=lease)
    assert (first.trashed, first.unfinished.count, first.unfinished.bytes, first.purged.count) == (1, 1, 4, 0)
    assert not draft.exists()
    home.age(24 * 6)
    assert collect(store, ledger, lease=lease).purged.count == 0
    home.age(25)
    assert collect(store, ledger, lease=lease).purged.count == 1
    assert not [name for name in home.tree() if name.endswith(".webp")]


def test_a_dry_run_reports_and_changes_nothing(home: Home, store: Store, ledger: Ledger, lease: FreeLease) -> None:
    written(store, ledger, KEYS[0])
    store.put(KEYS[2], b"trash")
    store.trash(KEYS[2])
    home.age(24 * 8)
    store.put(KEYS[1], b"nobody")
    (home.path / "store" / "tmp" / "dead.part").write_bytes(b"half")
    home.age(25)
    before = home.tree()
    would = collect(store, ledger, lease=lease, dry_run=True)
    assert home.tree() == before
    assert (would.trashed_keys, would.unfinished.count, would.purged.count) == ((KEYS[1],), 1, 1)
    did = collect(store, ledger, lease=lease)
    assert (did.scanned, did.kept, did.trashed_keys, did.unfinished, did.purged) == (
        would.scanned,
        would.kept,
        would.trashed_keys,
        would.unfinished,
        would.purged,
    )


class Racing(Ledger):
    """A ledger during whose first answer something else happens."""

    def __init__(self, ledger: Ledger, meanwhile: Callable[[], object]) -> None:
        super().__init__(ledger.catalog)
        self.meanwhile: Callable[[], object] | None = meanwhile

    def named(self, keys: Sequence[str]) -> set[str]:
        answer = super().named(keys)
        if self.meanwhile:
            self.meanwhile()
            self.meanwhile = None
        return answer


def test_a_writer_that_begins_between_listing_and_trashing_keeps_its_object(
    home: Home, store: Store, ledger: Ledger, lease: FreeLease
) -> None:
    def whole_write() -> None:
        written(store, ledger, KEYS[2])
        home.age(48)

    store.put(KEYS[0], KEYS[0].encode())
    store.put(KEYS[1], KEYS[1].encode())
    store.put(KEYS[2], KEYS[2].encode())
    home.age(48)
    for key, meanwhile in (
        (KEYS[0], lambda: ledger.begin([KEYS[0]])),  # announced only
        (KEYS[1], lambda: store.put(KEYS[1], KEYS[1].encode())),  # put again, without an intent
        (KEYS[2], whole_write),  # announced, put and named
    ):
        collect(store, Racing(ledger, meanwhile), lease=lease)
        assert store.exists(key)
        for other in KEYS:
            store.put(other, other.encode())
        home.age(48)


def _write_and_forget(home: Home, key: str, until: float) -> None:
    ledger, store = home.ledger(), home.store()
    rounds = 0
    while time.monotonic() < until or rounds < 10:  # however slow the machine is
        with Writer(store, ledger).writing([key]) as writing:
            made = writing.put(key, b"same bytes")
            assert store.read(made.key, made.sha256) == b"same bytes"
            ledger.record([made], writing.intent_ids)
        assert store.read(made.key, made.sha256) == b"same bytes"
        with ledger.catalog.write() as conn:
            intents.forget_objects(conn, [made.key])
        rounds += 1


def test_collecting_without_pause_never_takes_what_is_announced_or_named(
    home: Home, store: Store, ledger: Ledger, lease: FreeLease
) -> None:
    writers = [processes.Process(target=_write_and_forget, args=(home, key, time.monotonic() + 2)) for key in KEYS[:2]]
    for writer in writers:
        writer.start()
    taken = 0
    while any(writer.is_alive() for writer in writers):
        taken += collect(store, ledger, lease=lease, min_age=timedelta(hours=-1)).trashed
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert taken, "nothing raced"


def test_progress_is_told_in_chunks_and_a_lost_lease_stops(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(FreeLease):
        def renew(self) -> None:
            super().renew()
            if self.renewed == 3:
                raise LeaseLost("another")

    monkeypatch.setattr("mirror_realm_assets.store.gc._CHUNK", 1)
    for key in KEYS:
        store.put(key, b"nobody")
    told: list[GcReport] = []
    with pytest.raises(LeaseLost):
        collect(store, ledger, lease=Lost(), min_age=timedelta(hours=-1), on_progress=told.append)
    assert [report.trashed for report in told] == [1, 2]
    assert store.exists(KEYS[2])
