"""What a process learns of this machine's memory, and what the next one makes of it."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.remembered import (
    Attempt,
    Bound,
    Key,
    Record,
    RememberedTiles,
    bound,
    buried,
    is_proven,
    worked,
)
from mirror_realm_assets.enhance.tiling import SMALLEST_TILE
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.weights.registry import MODELS

SPEC = MODELS["realesr-animevideov3"]
SHAPE = (512, 64)
KEY = Key(SPEC.name, "cpu", "fp32", SHAPE)
OTHER_SHAPE = replace(KEY, shape=(400, 300))
OTHER_MODEL = replace(KEY, model="another")
attempts = st.builds(Attempt, st.integers(1, 5000), st.integers(1, 10**7), st.integers(1, 10**11), st.floats(0, 10**6))


@given(attempts, st.integers(1, 10**12))
def test_a_failure_halves_the_tile_as_long_as_not_twice_the_memory_is_free(failed: Attempt, free: int) -> None:
    records = {str(KEY): Record(failed=failed)}
    found = bound(records, KEY, free, failed.at)
    assert found == (Bound() if free >= 2 * failed.free else Bound(tile=max(1, failed.tile // 2)))
    other = bound(records, OTHER_SHAPE, free, failed.at)
    assert other.tile is None and (other.pixels is None or other.pixels < failed.pixels)
    assert bound(records, OTHER_MODEL, free, failed.at) == Bound()
    assert bound(records, KEY, free, failed.at + 8 * 24 * 3600) == Bound(), "a week later another try is due"


@given(attempts, st.integers(1, 10**7), st.integers(1, 10**11))
def test_what_worked_proves_smaller_tiles_and_more_memory(fits: Attempt, pixels: int, free: int) -> None:
    records = {str(KEY): Record(fits=fits)}
    proven = fits.pixels >= pixels and fits.free <= free
    assert is_proven(records, KEY, pixels, free) is is_proven(records, OTHER_SHAPE, pixels, free) is proven
    assert not is_proven(records, OTHER_MODEL, pixels, free)


@given(attempts, attempts)
def test_success_refutes_failures_of_tiles_no_larger(failed: Attempt, fits: Attempt) -> None:
    assert (worked(Record(failed=failed), fits).failed is None) is (fits.tile >= failed.tile)


@pytest.mark.parametrize(
    ("alive", "same_boot", "age", "outcome"),
    [
        (True, True, 0, "goes on"),
        (False, True, 0, "failed"),
        (False, False, 0, "nothing"),  # a power cut
        (None, False, 60, "goes on"),  # of another machine
        (None, False, 10**6, "nothing"),
    ],
)
def test_only_the_dead_of_a_running_machine_count(alive: bool | None, same_boot: bool, age: int, outcome: str) -> None:
    trying = Attempt(256, 40_000, 10**9, 1000.0)
    after = buried(Record(trying=trying), alive, same_boot, 1000.0 + age)
    assert after == {"goes on": Record(trying=trying), "failed": Record(failed=trying), "nothing": Record()}[outcome]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"tiles": 3}', b'{"tiles": {"a": {"fits": {"tile": -1}}}}', b"\xff"]
)
def test_a_file_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiles.json"
    path.write_bytes(content)
    remembered = RememberedTiles(path)
    assert remembered.bound(KEY, 10**9) == Bound()
    fail(remembered, 256)
    assert remembered.bound(KEY, 10**9) == Bound(tile=128)


def test_a_place_that_cannot_be_written_to_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    remembered = RememberedTiles(tmp_path / "absent" / "tiles.json")
    with remembered.trial(KEY, 256, 40_000, 10**9).running():
        pass
    fail(remembered, 256)
    assert remembered.bound(KEY, 10**9) == Bound()


def fail(remembered: RememberedTiles, tile: int, key: Key = KEY) -> None:
    with suppress(Failed), remembered.trial(key, tile, 40_000, 10**9).running():
        raise Failed("out_of_memory", "Memory ran out.")


def test_another_error_says_nothing_of_memory(tmp_path: Path) -> None:
    remembered = RememberedTiles(tmp_path / "tiles.json")
    with suppress(KeyboardInterrupt), remembered.trial(KEY, 256, 40_000, 10**9).running():
        raise KeyboardInterrupt
    assert remembered.bound(KEY, 10**9) == Bound()


def write_many(path: Path, height: int) -> None:
    for width in range(20):
        fail(RememberedTiles(path), 256, replace(KEY, shape=(height, width)))


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    spawn = multiprocessing.get_context("fork")
    both = [spawn.Process(target=write_many, args=(path, height)) for height in (1, 2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    shapes = [(height, width) for height in (1, 2) for width in range(20)]
    found = RememberedTiles(path)
    assert all(found.bound(replace(KEY, shape=shape), 10**9).tile == 128 for shape in shapes)


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror_realm_assets.enhance.remembered._MOST_RECORDS", 10)
    path = tmp_path / "tiles.json"
    write_many(path, 1)
    bounds = [RememberedTiles(path).bound(replace(KEY, shape=(1, width)), 10**9).tile for width in range(20)]
    assert bounds == [None] * 10 + [128] * 10


# --- In an upscaler ---


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Replaces the network by plain enlargement that has no memory for tiles higher than a limit."""

    def limited(highest: int) -> list[int]:
        seen: list[int] = []

        def run(self: Network, descriptor: object, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
            seen.append(picture.shape[0])
            if picture.shape[0] > highest:
                raise MemoryError
            return picture.repeat(4, axis=0).repeat(4, axis=1)

        monkeypatch.setattr(Network, "_run", run)
        return seen

    return limited


def enlarge(models_dir: Path, file: Path, tile: int | None = None) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    with Upscaler(SPEC, models_dir, device="cpu", precision="fp32", remembered=RememberedTiles(file)) as upscaler:
        assert upscaler.upscale(picture, tile=tile).shape == (2048, 256, 3)


def test_what_did_not_fit_is_not_tried_again(
    models_dir: Path, tmp_path: Path, plain: Callable[[int], list[int]]
) -> None:
    seen = plain(300)
    enlarge(models_dir, tmp_path / "tiles.json")
    assert seen[0] == 512 and max(seen[2:]) <= 300
    seen.clear()
    enlarge(models_dir, tmp_path / "tiles.json")
    assert max(seen) <= 300


def test_a_given_tile_is_neither_changed_nor_remembered(
    models_dir: Path, tmp_path: Path, plain: Callable[[int], list[int]]
) -> None:
    seen = plain(600)
    fail(RememberedTiles(tmp_path / "tiles.json"), 512)
    before = (tmp_path / "tiles.json").read_bytes()
    enlarge(models_dir, tmp_path / "tiles.json", tile=512)
    assert seen == [512] and (tmp_path / "tiles.json").read_bytes() == before


KILLED = """
import os, signal, sys, numpy as np
from pathlib import Path
from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.remembered import RememberedTiles
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.registry import MODELS
def run(self, descriptor, picture):
    print(max(picture.shape), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Network._run = run
remembered = RememberedTiles(Path(sys.argv[2]))
with Upscaler(MODELS["realesr-animevideov3"], Path(sys.argv[1]), device="cpu", precision="fp32", remembered=remembered) as one:
    one.upscale(np.zeros((512, 64, 3), np.uint8))
"""  # noqa: E501 - a program


def test_a_tile_in_which_a_process_was_killed_is_halved_down_to_the_smallest(
    models_dir: Path, tmp_path: Path, plain: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiles.json"
    done = subprocess.run([sys.executable, "-c", KILLED, str(models_dir), str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["512"])
    seen = plain(10_000)
    enlarge(models_dir, path)
    assert max(seen) == 256 + 18
    # The same again, but at the floor, and where not even that is reckoned to fit.
    while (bounded := RememberedTiles(path).bound(KEY, 10**9).tile or 1000) > SMALLEST_TILE // 2:
        fail(RememberedTiles(path), min(bounded, 512))
    monkeypatch.setattr("mirror_realm_assets.enhance.upscale.free_memory", lambda device: 20_000_000)
    with pytest.raises(Failed) as caught:
        enlarge(models_dir, path)
    assert caught.value.code == "out_of_memory"
