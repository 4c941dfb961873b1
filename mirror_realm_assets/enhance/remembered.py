"""Which tiles a machine's memory has held, and which were too much for it, from one process to the next.

What belongs here: the record, what follows from it, and its file. What does not: reckoning (`memory`), and running out
of memory within a process, which `upscale` meets by smaller tiles at once.

The kernel ends a process that wants too much without a word. So before a tile of a size that nothing speaks for, it is
written down that it is tried; a note that outlives its process says that this tile was too much. What was learnt holds
for as much memory as was free then: with less, a proven tile is tried anew, and with twice as much, so is a failed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.liveness import ProcessIdentity, identity, is_alive

# A failure may have been another program's doing, or a person's who ended the process.
_FORGOTTEN_SECONDS = 7 * 24 * 3600.0
# Nobody can tell whether a process of another machine lives; no tile takes so long.
_LOST_SECONDS = 24 * 3600.0
_MOST_RECORDS = 200


@dataclass(frozen=True)
class Key:
    """What a record is about.

    Attributes:
        model: digest of the weights.
        device: where the network runs.
        precision: in which number format.
        shape: height and width of the pictures.
    """

    model: str
    device: str
    precision: str
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.model}/{self.device}/{self.precision}/{self.shape[0]}x{self.shape[1]}"

    @property
    def network(self) -> str:
        """The part that pictures of other shapes share."""
        return f"{self.model}/{self.device}/{self.precision}/"


@dataclass(frozen=True)
class Attempt:
    """One size of tile.

    Attributes:
        tile: longest side of a tile's core in pixels.
        pixels: the most pixels that a padded tile has.
        free: bytes that were free before.
        at: seconds since 1970.
        batch: how many tiles went through the network at once.
    """

    tile: int
    pixels: int
    free: int
    at: float
    batch: int = 1


@dataclass(frozen=True)
class Record:
    """What is known of one `Key`.

    Attributes:
        fits: what worked last.
        failed: what was too much.
        trying: what a process had begun when it was written.
        process: that process.
    """

    fits: Attempt | None = None
    failed: Attempt | None = None
    trying: Attempt | None = None
    process: ProcessIdentity | None = None


@dataclass(frozen=True)
class Bound:
    """How large a tile may be: its longest side and its padded pixels; None where nothing speaks against any."""

    tile: int | None = None
    pixels: int | None = None


def buried(record: Record, alive: bool | None, same_boot: bool, at: float) -> Record:
    """A record in which what a dead process tried counts as failed.

    Args:
        record: as it was read.
        alive: whether the process that tries lives; None if that cannot be told.
        same_boot: whether the machine has run on since: a power cut is no fault of a tile.
        at: now, in seconds since 1970.
    """
    if record.trying is None or alive or (alive is None and at - record.trying.at < _LOST_SECONDS):
        return record
    return replace(record, trying=None, process=None, failed=record.trying if same_boot else record.failed)


def bound(records: Mapping[str, Record], key: Key, free: int, at: float) -> Bound:
    """How large a tile may be by what failed before: half of that, for any shape the model was used with.

    Args:
        records: by `str` of their keys; of dead processes `buried`.
        key: model, device, precision, and the picture's shape.
        free: bytes that are free now; with twice as many as at a failure, that says nothing any more.
        at: now, in seconds since 1970.
    """
    tile, pixels = None, None
    for name, record in records.items():
        failed = record.failed
        if failed is None or not name.startswith(key.network):
            continue
        if free >= 2 * failed.free or at - failed.at > _FORGOTTEN_SECONDS:
            continue
        if name == str(key):
            tile = max(1, failed.tile // 2)
        else:
            pixels = min(failed.pixels // 2, failed.pixels if pixels is None else pixels)
    return Bound(tile, pixels)


def is_proven(records: Mapping[str, Record], key: Key, pixels: int, free: int) -> bool:
    """Whether as large a tile of the same network worked, with no more memory than is free now."""
    known = (record.fits for name, record in records.items() if name.startswith(key.network))
    return any(fits is not None and fits.pixels >= pixels and fits.free <= free for fits in known)


def worked(record: Record, attempt: Attempt) -> Record:
    """The record after a tile came through: smaller failures than this one are refuted."""
    failed = record.failed
    return Record(fits=attempt, failed=failed if failed is not None and failed.tile > attempt.tile else None)


class RememberedTiles:
    """The records of a machine, in a small file. Safe with several processes: a lock, and a file that is replaced.

    What cannot be read counts as nothing known, and a file that cannot be written is gone without.

    Args:
        path: of the file, whose folder exists; it is made at the first need.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def bound(self, key: Key, free: int) -> Bound:
        """How large a tile may be with `free` bytes free, by what was too much before."""
        return bound(self._read(), key, free, self._clock())

    def trial(self, key: Key, tile: int, pixels: int, free: int) -> Trial:
        """What a picture's tiles of one size are run within, so that the next process knows how it ended.

        Args:
            key: model, device, precision, and the picture's shape.
            tile: longest side of a tile's core.
            pixels: the most pixels that a padded tile has.
            free: bytes that are free now.
        """
        return Trial(self, key, Attempt(tile, pixels, free, self._clock()))

    def is_proven(self, key: Key, attempt: Attempt) -> bool:
        """Whether nothing need be written down: as much worked before, with no more memory."""
        return is_proven(self._read(), key, attempt.pixels, attempt.free)

    def change(self, key: Key, change: Callable[[Record], Record]) -> None:
        """Replace a record by what `change` makes of it. A file that cannot be written stays as it is."""
        with contextlib.suppress(OSError), self._locked():
            records = self._read()
            record = change(records.pop(str(key), Record()))
            if record != Record():
                records[str(key)] = record  # at the end: what was used last is dropped last
            kept = dict(list(records.items())[-_MOST_RECORDS:])
            told = {"tiles": {name: asdict(each) for name, each in kept.items()}}
            write_atomically(self._path, json.dumps(told).encode())

    def _read(self) -> dict[str, Record]:
        """All records, those of dead processes buried."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            records = {name: _record(value) for name, value in found["tiles"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
        at = self._clock()
        return {name: self._buried(record, at) for name, record in records.items()}

    def _buried(self, record: Record, at: float) -> Record:
        if record.process is None:
            return record
        return buried(record, is_alive(record.process), record.process.boot_id == identity().boot_id, at)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the kernel frees the lock however a process ends."""
        with self._path.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Trial:
    """Tiles of one size, of one picture: `with trial.running(): ...` around each."""

    def __init__(self, remembered: RememberedTiles, key: Key, attempt: Attempt) -> None:
        self._remembered = remembered
        self._key = key
        self._attempt = attempt
        self._is_known = remembered.is_proven(key, attempt)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run one tile within this. That memory ran out is remembered; of another error nothing is.

        The first tile says it for all: they are of one size within a pixel.
        """
        noted, attempt = not self._is_known, self._attempt
        if noted:
            self._change(lambda record: replace(record, trying=attempt, process=identity()))
        try:
            yield
        except BaseException as error:
            if isinstance(error, MirrorRealmError) and error.code == "out_of_memory":
                self._change(lambda record: Record(fits=record.fits, failed=attempt))
            elif noted:
                self._change(lambda record: replace(record, trying=None, process=None))
            raise
        if noted:
            self._change(lambda record: worked(record, attempt))
            self._is_known = True

    def _change(self, change: Callable[[Record], Record]) -> None:
        self._remembered.change(self._key, change)


def _record(value: Mapping[str, Any]) -> Record:
    process = value.get("process")
    return Record(
        fits=_attempt(value.get("fits")),
        failed=_attempt(value.get("failed")),
        trying=_attempt(value.get("trying")),
        process=ProcessIdentity(**process) if process else None,
    )


def _attempt(value: Mapping[str, Any] | None) -> Attempt | None:
    """One attempt of the file.

    Raises:
        ValueError: numbers that make no sense.
    """
    if value is None:
        return None
    attempt = Attempt(**value)
    numbers = (attempt.tile, attempt.pixels, attempt.free, attempt.batch)
    if not all(isinstance(number, int) and number > 0 for number in numbers) or not isinstance(attempt.at, float | int):
        raise ValueError("not an attempt")
    return attempt
