"""Several arrays in one pass: the same results, and what follows when a pass fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mirror_realm_assets.enhance import batches
from mirror_realm_assets.enhance.batches import Batches, equal_runs
from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
SPEC = MODELS["realesr-animevideov3"]


@pytest.fixture(scope="module")
def loaded(models_dir: Path) -> Iterator[Upscaler]:
    with Upscaler(SPEC, models_dir, device="cpu", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture
def upscaler(loaded: Upscaler, monkeypatch: pytest.MonkeyPatch) -> Upscaler:
    """The engine as it is on a GPU: eight at once, and one pass ahead."""
    monkeypatch.setitem(batches.MOST, "cpu", 8)
    monkeypatch.setitem(batches.AHEAD, "cpu", 1)
    monkeypatch.setattr(loaded, "_batches", Batches(loaded._network, 8))
    return loaded


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Sequence[Picture]], None]], list[int]]:
    """Lets a check of the arrays come before each pass of the network; gives how many there were in each."""

    def watched(check: Callable[[Sequence[Picture]], None]) -> list[int]:
        counts: list[int] = []
        real = Network._begin

        def begin(self: Network, descriptor: Any, pictures: Sequence[Picture]) -> Any:
            counts.append(len(pictures))
            check(pictures)
            return real(self, descriptor, pictures)

        monkeypatch.setattr(Network, "_begin", begin)
        return counts

    return watched


def no_check(_pictures: Sequence[Picture]) -> None:
    pass


def too_many_above(most: int) -> Callable[[Sequence[Picture]], None]:
    def check(pictures: Sequence[Picture]) -> None:
        if len(pictures) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check


def crops(photos: dict[str, Picture], count: int, side: int = 32) -> list[Picture]:
    return [photos[("coffee", "astronaut", "chelsea")[n % 3]][n : n + side, n : n + side] for n in range(count)]


def made(upscaler: Upscaler, pictures: list[Picture], outscale: float | None = None) -> list[Picture]:
    prepared = [upscaler.prepare(picture, outscale) for picture in pictures]
    rows = upscaler.enlarged(prepared)
    return [np.concatenate(list(upscaler.finished(one, each))) for one, each in zip(prepared, rows, strict=True)]


def apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_batch_is_what_each_is_alone(loaded: Upscaler, photos: dict[str, Picture]) -> None:
    pictures = crops(photos, 4)
    together = loaded._network.begin(pictures).results()
    assert len({picture.tobytes() for picture in together}) == 4
    for one, picture in zip(together, pictures, strict=True):
        assert apart(one, loaded._network.run(picture)) <= 1


def test_a_batch_of_sixteen_bits_stays_deep(loaded: Upscaler, photos: dict[str, Picture]) -> None:
    deep = [picture.astype(np.uint16) * 257 for picture in crops(photos, 2, 16)]
    for one, picture in zip(loaded._network.begin(deep).results(), deep, strict=True):
        assert one.dtype == np.uint16 and apart(one, loaded._network.run(picture)) <= 257


def test_a_batch_of_different_shapes_is_refused(loaded: Upscaler) -> None:
    with pytest.raises(ValueError, match="one shape"):
        loaded._network.begin([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])


def test_equal_pictures_are_enlarged_in_one_pass(
    upscaler: Upscaler, photos: dict[str, Picture], passes: Callable[..., list[int]]
) -> None:
    pictures = crops(photos, 4)
    expected = [upscaler._network.run(picture) for picture in pictures]
    counts = passes(no_check)
    assert upscaler.at_once(upscaler.prepare(pictures[0])) == 8
    assert all(apart(one, other) <= 1 for one, other in zip(made(upscaler, pictures), expected, strict=True))
    assert counts == [4]


def test_tiles_of_one_shape_go_together_and_leave_the_picture_the_same(
    upscaler: Upscaler, photos: dict[str, Picture], passes: Callable[..., list[int]]
) -> None:
    picture = photos["chelsea"][:64, :64]
    expected = [upscaler._network.run(picture[:24, :24]), upscaler._network.run(picture[8:40, 8:40])]
    counts = passes(no_check)
    calls: list[int] = []
    done: list[int] = []
    tiled = upscaler.upscale(
        picture,
        tile=16,
        halo=8,
        between_tiles=lambda: calls.append(len(counts)),
        on_progress=lambda found: done.append(found.done),
    )
    assert apart(tiled[:64, :64], expected[0][:64, :64]) <= 1
    assert apart(tiled[64:128, 64:128], expected[1][32:96, 32:96]) <= 1
    assert sum(counts) == 16 and max(counts) == 2
    assert calls == list(range(1, len(counts)))  # before each pass but the first
    assert done == list(range(17))


def test_a_batch_that_is_too_large_is_halved_and_that_is_remembered(
    upscaler: Upscaler, photos: dict[str, Picture], passes: Callable[..., list[int]]
) -> None:
    pictures = crops(photos, 8, 16)
    expected = [upscaler._network.run(picture) for picture in pictures]
    counts = passes(too_many_above(2))
    found = made(upscaler, pictures)
    assert all(apart(one, other) <= 1 for one, other in zip(found, expected, strict=True))
    assert counts == [8, 4, 2, 2, 2, 2]
    assert upscaler.at_once(upscaler.prepare(pictures[0])) == 2
    assert upscaler.at_once(upscaler.prepare(photos["coffee"])) == 8


def test_memory_for_not_even_one_fails_each_with_its_own_error(
    upscaler: Upscaler, photos: dict[str, Picture], passes: Callable[..., list[int]]
) -> None:
    passes(too_many_above(0))
    prepared = [upscaler.prepare(picture) for picture in crops(photos, 2, 16)]
    for rows in upscaler.enlarged(prepared):
        with pytest.raises(Failed) as caught:
            list(rows)
        assert caught.value.code == "out_of_memory"


def test_a_bad_picture_fails_alone(
    upscaler: Upscaler, photos: dict[str, Picture], passes: Callable[..., list[int]]
) -> None:
    pictures = crops(photos, 4, 16)
    pictures[2] = np.full_like(pictures[2], 7)

    def check(those: Sequence[Picture]) -> None:
        if any((one == 7).all() for one in those):
            raise RuntimeError("no kernel")

    counts = passes(check)
    rows = upscaler.enlarged([upscaler.prepare(picture) for picture in pictures])
    for number in (0, 1, 3):
        assert np.concatenate(list(rows[number])).shape == (64, 64, 3)
    with pytest.raises(Failed, match="no kernel") as caught:
        list(rows[2])
    assert caught.value.code == "model_failed"
    assert counts[0] == 4 and set(counts[1:]) == {1}


def test_what_waits_for_nothing_is_not_asked_for() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in (1, 1, 1, 2, 2, 3):
            asked.append(number)
            yield number

    runs = equal_runs(numbers(), key=lambda number: number, most=lambda number: 2)
    assert next(runs) == [1, 1] and asked == [1, 1]
    assert list(runs) == [[1], [2, 2], [3]]


@pytest.mark.parametrize(("fitting", "expected"), [(0, 1), (99, 1), (300, 2), (450, 4), (10_000, 8)])
def test_as_many_go_together_as_fit(fitting: int, expected: int) -> None:
    assert Batches(None, 8).at_once(10, 10, fitting) == expected  # type: ignore[arg-type]
