"""Native file system events (inotify through watchdog): a file whose writer has closed it rests at once.

What belongs here: turning events into `(source, path)`. What does not: deciding what to do with them. Events are only a
shortcut: whatever they miss, the next poll sees.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.installation import on_network

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch


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
        self._watches: dict[int, ObservedWatch] = {}

    def add(self, source: Source) -> None:
        """Begin to watch a source, unless its policy or its file system forbids; polling goes on in any case."""
        if source.policy.watch == "poll" or (
            source.policy.watch == "auto" and on_network(Path(os.fsdecode(source.root)))
        ):
            return
        if self._observer is None:
            self._observer = _observer()
            self._observer.start()
        try:
            handler = _handler(source.id, source.root, self._events)
            self._watches[source.id] = self._observer.schedule(handler, os.fsdecode(source.root), recursive=True)
        except OSError as error:
            # The limit of inotify watches, most often: polling finds everything, a little later.
            self._say(f"{source.name}: no native events ({error.strerror}); polling alone")

    def forget(self, source_id: int) -> None:
        """Stop watching a source."""
        watched = self._watches.pop(source_id, None)
        if watched is not None and self._observer is not None:
            self._observer.unschedule(watched)

    def close(self) -> None:
        """Stop watching everything."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


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


def _handler(source_id: int, root: bytes, events: queue.Queue[tuple[int, bytes]]):  # type: ignore[no-untyped-def]
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
                    return  # the next poll sees it

    return Handler()
