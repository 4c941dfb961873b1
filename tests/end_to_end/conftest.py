"""Homes for whole-way tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from running_home import RunningHome


@pytest.fixture
def new_home(tmp_path: Path, models_dir: Path) -> Iterator[Callable[..., RunningHome]]:
    """Makes homes that are gone, with all their processes, after the test."""
    made: list[RunningHome] = []

    def make(*options: str, **env: str) -> RunningHome:
        made.append(RunningHome(tmp_path / f"home-{len(made)}", models_dir, options, **env))
        return made[-1]

    yield make
    for home in made:
        home.close()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints one line about how a long test went, also when output is captured."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")

    return say


@pytest.fixture
def drop(photos: dict[str, npt.NDArray[np.uint8]]) -> Callable[..., Path]:
    """Saves one of the shared photographs, small and made unique by a number, as JPEG."""
    from PIL import Image

    def save(folder: Path, number: int = 0, *, side: int = 32, name: str | None = None) -> Path:
        names = sorted(photos)
        picture = Image.fromarray(photos[names[number % len(names)]]).resize((side, side))
        pixels = np.asarray(picture).copy()
        pixels[0, 0] = (number % 256, number // 256 % 256, 7)
        pixels = np.roll(pixels, number // len(names), axis=1)
        target = folder / (name or f"photo-{number:03d}.jpg")
        hidden = folder / f".{target.name}.part"
        Image.fromarray(pixels).save(hidden, "JPEG", quality=95)
        hidden.rename(target)
        return target

    return save
