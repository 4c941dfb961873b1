"""kill -9 of everything, at any moment and at every named point, while a folder changes: nothing is lost or done twice.

`MIRROR_REALM_SEED` repeats the plan of a run: which changes, victims and points follow each other. What is hit at one
moment depends on the machine, as the moments of the real world do. `MIRROR_REALM_KILLS` changes how many there are in
the long one, in hundreds.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash_home import CrashHome
from crash_oracle import Killed

Tell = Callable[[str], None]


def seed() -> int:
    return int(os.environ.get("MIRROR_REALM_SEED") or random.SystemRandom().randrange(10**6))


def crash_round(base: Path, seed: int, tell: Tell, *, ingests: int, ups: int) -> Killed:
    """One home: `ingest` killed so many times and settled, then `up` and its processes, and settled again."""
    killed = Killed()
    home = CrashHome(base, seed, killed)
    began = time.monotonic()
    try:
        home.ingest_round(ingests, seed)
        settled = home.settle_by_ingest()
        words = f"{ingests} kills of ingest ({settled}; {home.check()})"
        home.up_round(ups, seed)
        settled = home.settle()
        words += f", {ups} under up ({settled}; {home.check()})"
        assert home.stop() == 0
        tell(f"seed {seed}: {words}; {time.monotonic() - began:.0f} s in all; the folder: {home.changing.done}")
    except BaseException:
        home.keep(base / "kept")
        raise
    finally:
        home.close()
    return killed


def told(found: Counter[tuple[str, str]], seconds: float) -> str:
    """Kills by victim, and where."""
    lines = [f"{found.total()} kills in {seconds:.0f} s"]
    for victim in sorted({victim for victim, _where in found}):
        mine = Counter({where: count for (who, where), count in found.items() if who == victim})
        lines.append(f"{victim} {mine.total()}: " + ", ".join(f"{where} {n}" for where, n in sorted(mine.items())))
    return "\n    ".join(lines)


@pytest.mark.timeout(600)
def test_case_b6_thirty_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path, tell: Tell) -> None:
    chosen, began = seed(), time.monotonic()
    tell(f"MIRROR_REALM_SEED={chosen}")
    killed = crash_round(tmp_path / "home", chosen, tell, ingests=16, ups=14)
    assert killed.total >= 30
    tell(told(killed.by, time.monotonic() - began))


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_case_b6_a_thousand_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path, tell: Tell) -> None:
    """In homes of a hundred kills, two at a time: much of a home's time is waiting."""
    chosen, began = seed(), time.monotonic()
    homes = int(os.environ.get("MIRROR_REALM_KILLS") or 1000) // 100
    tell(f"MIRROR_REALM_SEED={chosen}")
    found: Counter[tuple[str, str]] = Counter()

    def one(number: int) -> Killed:
        try:
            return crash_round(tmp_path / f"home-{number}", chosen + number, tell, ingests=60, ups=40)
        except BaseException:
            tell(f"home-{number}, seed {chosen + number}, failed; the home beside it is seen through first")
            tell(traceback.format_exc())
            raise

    pool = ThreadPoolExecutor(2)
    try:
        for killed in pool.map(one, range(homes)):
            found += killed.by
            tell(told(found, time.monotonic() - began))
    finally:
        pool.shutdown(cancel_futures=True)
    assert found.total() >= 100 * homes
