"""Killing a writer, and a collector, between every two steps of their work.

The steps are those that the code announces: an uninterrupted run lists them, then one child is killed at each.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from store_home import FreeLease, Home

from mirror_realm_assets.catalog import intents
from mirror_realm_assets.store import StoredObject, Writer, keys
from mirror_realm_assets.store.gc import collect
from mirror_realm_assets.store.local import no_step

Step = Callable[[str], None]

BIG = b"0123456789" * 150_000  # two chunks: it can be torn
DERIVED = keys.derived_key("proxy", "cd" * 32, 0, "ef" * 32, "webp")
ORIGINAL = keys.original_key(hashlib.sha256(BIG).hexdigest())
STRAY = keys.derived_key("proxy", "12" * 32, 0, "ef" * 32, "webp")
DAY = timedelta(hours=24)


def write(home: Home, step: Step = no_step) -> list[StoredObject]:
    """The whole write of two objects, as a stage does it."""
    store, ledger = home.store(step), home.ledger()
    with Writer(store, ledger).writing([DERIVED, ORIGINAL]) as writing:
        step("announced")
        made = [writing.put(DERIVED, b"small")]
        step("between")
        made.append(writing.put_file(ORIGINAL, io.BytesIO(BIG)))
        step("published")
        ledger.record(made, writing.intent_ids, step)
    step("recorded")
    ledger.catalog.close()
    return made


def collect_stray(home: Home, step: Step = no_step) -> None:
    ledger = home.ledger()
    collect(home.store(step), ledger, lease=FreeLease(), min_age=DAY)
    ledger.catalog.close()


def steps_of(work: Callable[[Home, Step], object], home: Home) -> list[str]:
    names: list[str] = []
    work(home, names.append)
    return names


def killed_at(n: int, work: Callable[[Home, Step], object], home: Home) -> None:
    """Do `work` in a child that is killed at its `n`-th step, and see that it was."""
    child = os.fork()
    if child == 0:
        left = n

        def step(name: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        try:
            work(home, step)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check_named(home: Home) -> set[str]:
    """No named object is missing or torn; returns their keys."""
    store, ledger = home.store(), home.ledger()
    named = ledger.objects()
    for key, sha256 in named.items():
        store.read(key, sha256)
    ledger.catalog.close()
    return set(named)


def check_collection(home: Home) -> None:
    """Live intents protect; when they are retired, exactly what is unnamed goes."""
    store, ledger = home.store(), home.ledger()
    named, announced = set(ledger.objects()), ledger.announced()
    there = {entry.key for entry in store.list()}
    young = collect(store, ledger, lease=FreeLease())
    assert (young.trashed, young.unfinished.count) == (0, 0)
    home.age(25)
    assert collect(store, ledger, lease=FreeLease()).trashed == len(there - named - announced)
    assert {entry.key for entry in store.list()} == there & (named | announced)
    intents.retire(ledger.catalog, timedelta(0))
    home.age(25)
    collect(store, ledger, lease=FreeLease())
    assert {entry.key for entry in store.list()} == named
    assert not [name for name in home.tree() if name.endswith(".part")]
    ledger.catalog.close()


def check_repeat(home: Home) -> None:
    made = write(home)
    assert {one.key: one.sha256 for one in made}.items() <= home.ledger().objects().items()
    check_named(home)


def test_a_write_killed_anywhere_loses_nothing_and_can_be_repeated(new_home: Callable[[str], Home]) -> None:
    names = steps_of(write, new_home("whole"))
    assert len(names) > 20
    fates = set()
    for n in range(len(names)):
        home = new_home(f"killed-{n}")
        killed_at(n, write, home)
        fates.add(len(check_named(home)))
        check_repeat(home.copy(home.path.with_name(f"repeated-{n}")))
        check_collection(home)
        check_repeat(home)
    assert fates == {0, 2}  # both objects are named, or none


def test_a_repeated_write_killed_anywhere_keeps_what_was_recorded(home: Home, tmp_path: Path) -> None:
    write(home)
    names = steps_of(write, home)
    assert names
    for n in range(len(names)):
        again = home.copy(tmp_path / f"killed-{n}")
        killed_at(n, write, again)
        assert check_named(again) == {DERIVED, ORIGINAL}
        check_collection(again)


def test_a_collection_killed_anywhere_loses_nothing_and_can_be_repeated(home: Home, tmp_path: Path) -> None:
    write(home)
    home.store().put(STRAY, b"stray")
    home.age(25)
    names = steps_of(collect_stray, home.copy(tmp_path / "whole"))
    assert names
    for n in range(len(names)):
        again = home.copy(tmp_path / f"killed-{n}")
        killed_at(n, collect_stray, again)
        assert check_named(again) == {DERIVED, ORIGINAL}
        root = again.path / "store"
        assert (root / STRAY).exists() != (root / "trash" / STRAY).exists()
        again.age(25)
        collect_stray(again)
        assert (root / "trash" / STRAY).read_bytes() == b"stray"
        assert check_named(again) == {DERIVED, ORIGINAL}
