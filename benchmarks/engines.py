"""One engine in a process of its own, told when to enhance the picture: what `enhance` compares.

In one process an engine would work with what the other's start set: how malloc keeps memory, how long threads spin. The
package `RealESRGANer` finds here what its script finds in a shell, ours what `mirror-realm` starts its programs with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.enhance.reference import ReferenceUpscaler
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.hardware import START_ENVIRONMENT, Precision
from mirror_realm_assets.weights.registry import MODELS

MODEL = MODELS["realesrgan-x4plus"]
SIDE = 160
STOCK = "stock"
OURS: tuple[Precision, ...] = ("fp32", "bf16")
KINDS: tuple[str, ...] = (STOCK, *OURS)


def photo(side: int) -> npt.NDArray[np.uint8]:
    """A square of a photograph, `(side, side, 3)`."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[40 : 40 + side, 140 : 140 + side])


class Engine:
    """A process that has loaded its model; close it by `with`.

    Args:
        kind: one of `KINDS`.
        models: folder of the weights.
    """

    def __init__(self, kind: str, models: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mirror-realm-engine-")
        self._made = Path(self._folder.name) / "made.npy"
        environment = {name: value for name, value in os.environ.items() if name not in START_ENVIRONMENT}
        if kind != STOCK:
            environment |= START_ENVIRONMENT
        command = [sys.executable, "-m", __name__, kind, str(models), str(self._made)]
        self._process = subprocess.Popen(  # noqa: S603 - this module
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> Path:
        """Have the picture enhanced; where it lies, as an array in a file.

        Raises:
            RuntimeError: the process ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the engine's process has no pipes")
        print("go", file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise RuntimeError(f"the engine ended with status {self._process.wait()}")
        return self._made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # which closes what it reads, and waits
        self._folder.cleanup()


def main(kind: str, models: str, made: str) -> None:
    """Load, then enhance once for each line that is read; a line is written when it is done."""
    picture = photo(SIDE)
    if kind == STOCK:
        with ReferenceUpscaler(MODEL, Path(models), device="cpu", threads=2) as stock:
            _serve(lambda: stock.upscale(picture), made)
    else:
        precision = next(one for one in OURS if one == kind)
        with Upscaler(MODEL, Path(models), device="cpu", precision=precision, threads=2) as ours:
            _serve(lambda: ours.upscale(picture, tile=SIDE), made)


def _serve(enhance: Callable[[], npt.NDArray[np.uint8]], made: str) -> None:
    for _go in sys.stdin:
        np.save(made, enhance())
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
