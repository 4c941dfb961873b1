"""A folder that changes all the time by a seeded script, and what really lies in it, found without our code."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

_MANY, _FEW = 45, 15


class ChangingFolder:
    """Creates, overwrites, copies, renames and deletes pictures.

    Args:
        folder: the watched folder.
        seed: of everything that is decided by chance.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.done: dict[str, int] = {}
        self._random = random.Random(seed)  # noqa: S311 - which change comes next, no secret
        self._number = 0
        self._seed = seed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        for name in ("a", "b", "b/c"):
            (folder / name).mkdir(exist_ok=True)

    def change(self) -> None:
        """One change."""
        files = self._files()
        kinds = ["create"] * (1 if len(files) > _MANY else 4)
        if len(files) > _FEW:
            kinds += ["overwrite", "replace", "rename", "move", "copy", "slow"]
            kinds += ["delete"] * (5 if len(files) > _MANY else 1)
        kind = self._random.choice(kinds)
        self.done[kind] = self.done.get(kind, 0) + 1
        getattr(self, f"_{kind}")(files)

    def start(self, longest_pause: float = 1.0) -> None:
        """Change now and then, in a thread."""
        self._stop.clear()

        def go() -> None:
            while not self._stop.wait(self._random.uniform(0, longest_pause)):
                self.change()

        self._thread = threading.Thread(target=go, name="changing-folder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No change comes after this."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def digests(self) -> dict[bytes, str]:
        """What lies in the folder: sha256 by relative path."""
        found = {}
        for place, _folders, names in os.walk(os.fsencode(self.folder)):
            for name in names:
                path = os.path.join(place, name)  # noqa: PTH118 - raw bytes
                with open(path, "rb") as file:  # noqa: PTH123
                    found[os.path.relpath(path, os.fsencode(self.folder))] = hashlib.sha256(file.read()).hexdigest()
        return found

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.png") if path.is_file())

    def _picture(self) -> bytes:
        """A PNG that no other call makes."""
        self._number += 1
        pixels = np.random.default_rng((self._seed, self._number)).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((32, 24)).save(buffer, "PNG")
        return buffer.getvalue()

    def _new_path(self) -> Path:
        self._number += 1
        return self.folder / self._random.choice(("", "a", "b", "b/c")) / f"{self._number:05d}.png"

    def _create(self, _files: list[Path]) -> None:
        self._new_path().write_bytes(self._picture())

    def _slow(self, _files: list[Path]) -> None:
        data, path = self._picture(), self._new_path()
        with path.open("wb") as file:
            file.write(data[:700])
            file.flush()
            time.sleep(self._random.uniform(0, 0.6))
            file.write(data[700:])

    def _overwrite(self, files: list[Path]) -> None:
        self._random.choice(files).write_bytes(self._picture())

    def _replace(self, files: list[Path]) -> None:
        target = self._random.choice(files)
        draft = target.with_name(f".{target.name}.part")
        draft.write_bytes(self._picture())
        draft.rename(target)

    def _rename(self, files: list[Path]) -> None:
        old = self._random.choice(files)
        self._number += 1
        old.rename(old.with_name(f"{self._number:05d}-renamed.png"))

    def _move(self, files: list[Path]) -> None:
        self._random.choice(files).rename(self._new_path())

    def _copy(self, files: list[Path]) -> None:
        self._new_path().write_bytes(self._random.choice(files).read_bytes())

    def _delete(self, files: list[Path]) -> None:
        self._random.choice(files).unlink()
