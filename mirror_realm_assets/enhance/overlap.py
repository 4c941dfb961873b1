"""Several pictures at once: one is decoded, another computed, earlier ones are encoded, stored and read back.

What belongs here: which thread does what, how much may wait, and the order of results. What does not: the steps
themselves (`steps`).

| thread | does |
| --- | --- |
| the stage's own | takes work, runs the network, announces writes in the catalog, gives results |
| one ahead | reads and decodes (the sandboxed decoder is a process of its own) |
| encoders | the final resize, faces, the encoding into a file without name |
| publishers | the writing to the store, and reading back |

Rows go to an encoder as they are computed, so that a picture of any size passes in bounded memory: `_WAITING` bytes of
rows over all pictures, 64 MB of gathered rows in each encoder (`codec`), decoded originals of 256 MB ahead. What is
computed faster than it can be encoded waits in the network's thread.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.enhance.batches import AHEAD, equal_runs
from mirror_realm_assets.enhance.steps import Picture, Steps
from mirror_realm_assets.stages.context import Stopped
from mirror_realm_assets.stages.flow import read_ahead
from mirror_realm_assets.stages.stage import Result
from mirror_realm_assets.store.interface import StoredObject
from mirror_realm_assets.store.writing import Writing
from mirror_realm_assets.weights.hardware import Device

if TYPE_CHECKING:
    from mirror_realm_assets.enhance.layers import Pixels

    _Read = tuple[Work, Picture | Exception]
    _Begun = tuple[Work, Picture | Exception, Iterator[Pixels]]

_WAITING = 512 << 20  # five results of 1080p at four times the width and height
# Pictures: on a GPU two full batches of small ones, the bytes bound large ones. All are marked running meanwhile.
_READ_AHEAD: dict[Device, int] = {"cpu": 2, "cuda": 16}
_MOST_ENCODERS = 4
_PUBLISHERS = 2
_BEHIND = 8  # pictures computed and not yet recorded: what a crash would cost
# After one that took so long to compute nothing is gained by going on before it is recorded, and much can be lost.
_LONG_SECONDS = 20.0


class _GivenUp(Exception):
    """The other side of a picture's rows will take or give no more."""


class _Room:
    """How many bytes of rows wait, over all pictures."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.changed = Condition()


class Rows:
    """Rows of one picture, from the thread that computes them to the one that encodes them."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._waiting: deque[Pixels] = deque()
        self._ended = self._broken = self._unwanted = False

    def put(self, rows: Pixels) -> None:
        """Hand rows over, having waited for room; alone they always have it.

        Raises:
            _GivenUp: nobody takes them any more.
        """
        room = self._room
        with room.changed:
            room.changed.wait_for(lambda: self._unwanted or not room.held or room.held + rows.nbytes <= room.most)
            if self._unwanted:
                raise _GivenUp
            self._waiting.append(rows)
            room.held += rows.nbytes
            room.changed.notify_all()

    def end(self, *, broken: bool = False) -> None:
        """No more come; `broken` when they are not the whole picture, so that the encoder gives it up."""
        with self._room.changed:
            self._ended, self._broken = True, self._broken or broken
            self._room.changed.notify_all()

    def refuse(self) -> None:
        """The encoder takes no more."""
        with self._room.changed:
            self._unwanted = True
            self._room.held -= sum(rows.nbytes for rows in self._waiting)
            self._waiting.clear()
            self._room.changed.notify_all()

    def __iter__(self) -> Iterator[Pixels]:
        """The encoder's side: rows as they come.

        Raises:
            _GivenUp: the rest does not come.
        """
        while True:
            with self._room.changed:
                self._room.changed.wait_for(lambda: self._waiting or self._ended)
                if self._broken:
                    raise _GivenUp
                if not self._waiting:
                    return
                rows = self._waiting.popleft()
                self._room.held -= rows.nbytes
                self._room.changed.notify_all()
            yield rows


@dataclass
class _Leaving:
    """One piece of work whose result is to come."""

    work: Work
    picture: Picture | None = None
    error: BaseException | None = None
    rows: Rows | None = None
    opened: ExitStack = field(default_factory=ExitStack)  # its file, and its intents once they are announced
    file: BinaryIO | None = None
    encoding: Future[None] | None = None
    writing: Writing | None = None
    publishing: Future[tuple[StoredObject, list[bytes]]] | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or (self.publishing is not None and self.publishing.done())


class _Behind:
    """What was computed, on its way to its result, in order. All methods are for the stage's own thread."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._room = _Room(_WAITING)
        self._leaving: deque[_Leaving] = deque()
        count = max(1, min(_MOST_ENCODERS, len(os.sched_getaffinity(0)) // 2))
        self._encoders = ThreadPoolExecutor(count, thread_name_prefix="encode")
        self._publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="publish")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._leaving:
            if one.rows is not None:
                one.rows.end(broken=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._publishers.shutdown(wait=True, cancel_futures=True)
        for one in self._leaving:  # nobody will record them: their intents end
            with suppress(_GivenUp), one.opened:
                raise _GivenUp

    def fail(self, work: Work, error: BaseException) -> None:
        """This one ends here."""
        self._leaving.append(_Leaving(work, error=error))

    def take(self, picture: Picture, rows: Iterable[Pixels]) -> None:
        """Compute a picture's rows, which are encoded meanwhile.

        Raises:
            Stopped: from between two tiles; the picture is as if it had not been begun.
        """
        channel = Rows(self._room)
        one = _Leaving(picture.work, picture, rows=channel)
        self._leaving.append(one)
        whole = False
        try:
            self._open(one, picture, channel)
            for part in rows:
                channel.put(part)
            whole = True
        except _GivenUp:
            whole = True  # the encoder knows the reason
        except Stopped:
            self._leaving.remove(one)
            raise
        except Exception as error:
            one.error = error
        finally:
            channel.end(broken=not whole)
            if not whole:
                self._drop(one)

    def ready(self, *, most: int = _BEHIND) -> Iterator[Result]:
        """Results that are there; waits only until no more than `most` are still to come."""
        self._announce()
        while self._leaving and (self._leaving[0].done or len(self._leaving) > most):
            first = self._leaving[0]
            if not first.done:
                self._settle(first)
            self._leaving.popleft()
            yield self._result(first)
            self._announce()

    def _open(self, one: _Leaving, picture: Picture, rows: Rows) -> None:
        folder = self._steps.context.services.scratch()
        one.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the next line closes it
        one.opened.callback(one.file.close)
        one.encoding = self._encoders.submit(self._encode, picture, rows, one.file)

    def _drop(self, one: _Leaving) -> None:
        """Wait until the encoder has let go of a picture that broke off, and close its file."""
        if one.encoding is not None:
            wait([one.encoding])
        one.opened.close()

    def _encode(self, picture: Picture, rows: Rows, file: BinaryIO) -> None:
        try:
            self._steps.encode(picture, rows, file)
        finally:
            rows.refuse()

    def _announce(self) -> None:
        """Announce what is encoded, here, where the catalog is written, and let it be published."""
        for one in self._leaving:
            if one.error is not None or one.publishing is not None or one.encoding is None or not one.encoding.done():
                continue
            try:
                one.encoding.result()
                writer = self._steps.context.writer
                writing = one.writing = one.opened.enter_context(writer.writing([_of(one).key]))
            except Exception as error:
                one.error = error
                continue
            one.publishing = self._publishers.submit(self._publish, _of(one), writing, one.file)

    def _publish(self, picture: Picture, writing: Writing, file: Any) -> tuple[StoredObject, list[bytes]]:
        stored = writing.put_file(picture.key, file)
        return stored, self._steps.verify(picture, stored)

    def _settle(self, one: _Leaving) -> None:
        if one.encoding is not None:
            wait([one.encoding])
        self._announce()
        if one.publishing is not None:
            wait([one.publishing])

    def _result(self, one: _Leaving) -> Result:
        try:
            with one.opened:  # an error ends the intents that were announced
                if one.error is not None:
                    raise one.error
                stored, pictures = one.publishing.result()  # type: ignore[union-attr] # it is done
                intents = one.writing.intent_ids  # type: ignore[union-attr] # so it was announced
                return self._steps.done(_of(one), stored, intents, pictures)
        except Exception as error:
            return self._steps.failed(one.work, error, one.picture.began if one.picture else None)


def _of(one: _Leaving) -> Picture:
    if one.picture is None:
        raise ValueError("what failed before it was read has no picture")
    return one.picture


def overlapping(works: Iterable[Work], steps: Steps) -> Iterator[Result]:
    """Results in the order of the work, from steps that overlap; see `stages.stage.Run`.

    When `Stopped` is raised between two tiles or pictures, what was computed before is still given. However it ends, no
    thread is left behind.
    """
    read = read_ahead(works, steps.read, threads=1, cost=_decoded_bytes, items=_READ_AHEAD[steps.model.device])
    with _Behind(steps) as behind, closing(read):  # type: ignore[type-var] # a generator
        try:
            for group in _groups(read, steps):
                for work, found, rows in group:
                    since = time.monotonic()
                    if isinstance(found, Exception):
                        behind.fail(work, found)
                    else:
                        behind.take(found, rows)
                    yield from behind.ready(most=0 if time.monotonic() - since > _LONG_SECONDS else _BEHIND)
            yield from behind.ready(most=0)
        except Stopped:
            steps.interrupt()
            yield from behind.ready(most=0)
            raise
        finally:
            steps.interrupt()


def _groups(read: Iterable[_Read], steps: Steps) -> Iterator[list[_Begun]]:
    """Work that was read, begun as far ahead as the device wants it, equal pictures together.

    Raises:
        Stopped: there was a reason to; what had been begun was given.
    """
    begun: deque[list[_Begun]] = deque()
    begun_any = False
    for equal in equal_runs(read, key=_kind, most=lambda one: _at_once(one, steps)):
        if begun_any and steps.context.reason_to_stop():
            yield from begun
            raise Stopped(steps.context.stopped)
        begun_any = True
        used = steps.context.used
        used["pictures_at_once"] = max(len(equal), int(used.get("pictures_at_once", 1)))
        begun.append(_begin(equal, steps))
        if len(begun) > AHEAD[steps.model.device]:
            yield begun.popleft()
    yield from begun


def _begin(equal: list[_Read], steps: Steps) -> list[_Begun]:
    found = [_with_faces(one, steps) for _work, one in equal]
    pictures = [one for one in found if isinstance(one, Picture)]
    rows: Iterator[Iterator[Pixels]] = iter(())
    if pictures:
        prepared = [picture.prepared for picture in pictures]
        rows = iter(steps.model.enlarged(prepared, between_tiles=steps.context.checkpoint))
    return [
        (work, one, next(rows) if isinstance(one, Picture) else iter(()))
        for (work, _read), one in zip(equal, found, strict=True)
    ]


def _with_faces(found: Picture | Exception, steps: Steps) -> Picture | Exception:
    if isinstance(found, Picture):
        try:
            steps.restore_faces(found)
        except Exception as error:
            return error
    return found


def _kind(one: _Read) -> tuple[Any, ...] | None:
    """What pictures that go through the network together have in common."""
    picture = one[1]
    return (picture.still.pixels.shape[:2], picture.still.pixels.dtype) if isinstance(picture, Picture) else None


def _at_once(one: _Read, steps: Steps) -> int:
    return steps.model.at_once(one[1].prepared) if isinstance(one[1], Picture) else 1


def _decoded_bytes(work: Work) -> int:
    return 4 * work.subject.pixels
