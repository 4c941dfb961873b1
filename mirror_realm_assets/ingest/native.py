"""Native file system events (inotify through watchdog): a file whose writer has closed it rests at once.

What belongs here: turning events into `(source, path)`, and noticing that events are lost. What does not: deciding what
to do with them. Events are only a shortcut: whatever they miss (too many at once, more folders than the system watches,
a network drive), the next poll sees, because polling never stops.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.installation import on_network

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

_COUNT_SECONDS = 60.0


class NativeEvents:
    """Watches the roots of sources; events of several sources go into one queue.

    Args:
        events: receives `(source id, path relative to the root)`.
        say: told when a source cannot be watched natively.
    """

    def __init__(self, events: queue.Queue[tuple[int, bytes]], say: Callable[[str], None]) -> None:
        self._events = events
        self._say = say
        self._observer: BaseObserver | None = None
        self._watches: dict[int, tuple[ObservedWatch, str]] = {}
        self._lost = threading.Event()
        self._counted_at = time.monotonic()
        self._few = False

    def add(self, source: Source) -> None:
        """Begin to watch a source, unless its policy or its file system forbids; polling goes on in any case."""
        if source.policy.watch == "poll" or (
            source.policy.watch == "auto" and on_network(Path(os.fsdecode(source.root)))
        ):
            return
        if self._observer is None:
            self._observer = _observer()
            self._observer.start()
        before = _inotify_fds()
        try:
            handler = _handler(source.id, source.root, self._events, self._lost)
            watched = self._observer.schedule(handler, os.fsdecode(source.root), recursive=True)
        except OSError as error:
            # The limit of inotify watches, most often: polling finds everything, a little later. watchdog leaves its
            # descriptor behind with all the watches it got, which nobody else could have then.
            for fd in _inotify_fds() - before:
                os.close(fd)
            self._say(f"{source.name}: no native events ({error.args[-1]}); polling alone")
        else:
            self._watches[source.id] = (watched, source.name)

    def check(self, folders: Mapping[int, int]) -> None:
        """Say what is lost: events that were too many, sources whose events ended, new folders that are not watched.

        Args:
            folders: how many folders each source was last seen to have.
        """
        if self._lost.is_set():
            self._lost.clear()
            self._say("more native events than can be handled; the next poll finds what they were about")
        if self._observer is None:
            return
        living = {emitter.watch for emitter in self._observer.emitters if emitter.is_alive()}
        for source_id, (watched, name) in list(self._watches.items()):
            if watched not in living:
                self.forget(source_id)
                self._say(f"{name}: native events ended; polling alone")
        if time.monotonic() >= self._counted_at + _COUNT_SECONDS:
            self._counted_at = time.monotonic()
            self._count(sum(count for source_id, count in folders.items() if source_id in self._watches))

    def covers(self, source_id: int) -> bool:
        """Whether new files of a source are told of, in all its folders and as far as is known."""
        return source_id in self._watches and not self._few and not self._lost.is_set()

    def _count(self, folders: int) -> None:
        """A folder that is new while the system's limit is reached is left out without a word: so we count."""
        watched = _watched_folders()
        few = watched is not None and watched < folders
        if few and not self._few:
            self._say(
                f"only {watched} of {folders} folders send native events (the limit of inotify watches); polling "
                "finds what is new in the others"
            )
        self._few = few

    def forget(self, source_id: int) -> None:
        """Stop watching a source."""
        watched = self._watches.pop(source_id, None)
        if watched is not None and self._observer is not None:
            with contextlib.suppress(KeyError):  # it ended by itself
                self._observer.unschedule(watched[0])

    def close(self) -> None:
        """Stop watching everything."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


def _watched_folders() -> int | None:
    """How many folders this process watches by inotify, as the kernel tells; None where it does not."""
    try:
        return sum(Path(f"/proc/self/fdinfo/{fd}").read_text().count("inotify wd:") for fd in _inotify_fds())
    except OSError:
        return None


def _inotify_fds() -> set[int]:
    """This process's descriptors of inotify, where the system lists descriptors."""
    found = set()
    with contextlib.suppress(OSError):
        for link in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                if "inotify" in str(link.readlink()):
                    found.add(int(link.name))
    return found


def _observer() -> BaseObserver:
    """The system's observer; inotify's with "full" events, because a file moved in from elsewhere is told as new else.

    A new file may still be written to, a moved one is whole.
    """
    from watchdog.observers import Observer
    from watchdog.utils import UnsupportedLibcError

    try:
        from watchdog.observers.inotify import InotifyObserver
    except (ImportError, UnsupportedLibcError):
        return Observer()
    return InotifyObserver(generate_full_events=True)


def _handler(  # type: ignore[no-untyped-def]
    source_id: int, root: bytes, events: queue.Queue[tuple[int, bytes]], lost: threading.Event
):
    from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler

    prefix = root.rstrip(b"/") + b"/"

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if isinstance(event, FileClosedEvent):
                path = os.fsencode(event.src_path)
            elif isinstance(event, FileMovedEvent):
                path = os.fsencode(event.dest_path)
            else:
                return
            if path.startswith(prefix):
                try:
                    events.put_nowait((source_id, path[len(prefix) :]))
                except queue.Full:
                    lost.set()

    return Handler()
