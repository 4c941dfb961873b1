"""Watching sources: polling, with native events where the file system sends them, into the journal.

What belongs here: the loop over all sources. What does not: when a file rests and is taken (`folder_watch`), forming
batches (`batching`); the watcher writes only the journal, and what sidecars say.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from mirror_realm_assets.catalog import leases, sources
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.one_scan import NOTHING
from mirror_realm_assets.settings import Settings

Say = Callable[[str], None]

# A poll of a big tree must not keep a disk and a core busy: it pauses ten times as long as it took, and thirty times
# where native events tell what is new and the poll found nothing that another look has to settle.
_POLL_SHARE, _TOLD_POLL_SHARE = 10, 30
_DEBOUNCE_SECONDS, _LONGEST_DEBOUNCE_SECONDS, _MOST_WAITING = 0.1, 1.0, 1000


def watch(
    catalog: Catalog,
    settings: Settings,
    worker_id: str,
    stop: threading.Event,
    say: Say,
) -> None:
    """Watch all active sources until `stop` is set.

    Args:
        catalog: the ledger.
        settings: of this process.
        worker_id: whose leases keep a second watcher off the same source.
        stop: set to end.
        say: told what happens, for the log.
    """
    from mirror_realm_assets.ingest.native import NativeEvents

    watches: dict[int, FolderWatch] = {}
    due: dict[int, float] = {}
    troubles: dict[int, str] = {}
    events: queue.Queue[tuple[int, bytes]] = queue.Queue(maxsize=100_000)
    native = NativeEvents(events, say)
    try:
        while not stop.is_set():
            active = _mine(catalog, settings, worker_id)
            same = {s.id for s in active if s.id in watches and watches[s.id].is_of(s)}
            for source_id in set(watches) - same:
                del watches[source_id]
                native.forget(source_id)
            for source in active:
                if source.id not in watches:
                    watches[source.id] = FolderWatch(catalog, settings, source)
                    native.add(source)
                if time.monotonic() >= due.get(source.id, 0):
                    pause = _scan_once(
                        watches[source.id], source, settings, say, troubles, told=native.covers(source.id)
                    )
                    due[source.id] = time.monotonic() + pause
            native.check({source_id: watched.folders for source_id, watched in watches.items()})
            _take_closed(events, watches, settings.watch_seconds, stop, say)
    finally:
        native.close()


def _mine(catalog: Catalog, settings: Settings, worker_id: str) -> list[Source]:
    """The active sources whose watching this process holds the lease of."""
    with catalog.read() as conn:
        at = now(conn)
        active = [source for source in sources.all_sources(conn) if source.active and not source.is_quiet(at)]
        names = {source.id: f"watch/{source.name}" for source in active}
        held = {source.id for source in active if leases.holder(conn, names[source.id]) == worker_id}
    mine = []
    for source in active:
        if source.id not in held:
            with catalog.write() as conn:
                if leases.acquire(conn, names[source.id], worker_id, settings.lease_seconds) is None:
                    continue
        mine.append(source)
    return mine


def _scan_once(
    watched: FolderWatch, source: Source, settings: Settings, say: Say, troubles: dict[int, str], *, told: bool
) -> float:
    """One scan; returns the seconds until the next. Trouble is said once, until it is another or over.

    Args:
        watched: the source's.
        source: what is scanned.
        settings: of this process.
        say: told what was found.
        troubles: the last of each source.
        told: native events tell of new files, so polls may be fewer.
    """
    began = time.monotonic()
    share = _POLL_SHARE
    try:
        found = watched.scan()
        trouble, pause = found.trouble, settings.watch_seconds
        if told and not trouble and found.changes == NOTHING and not found.restless:
            share = _TOLD_POLL_SHARE
        if found.changes != NOTHING:
            say(f"{source.name}: {found.changes}")
    except MirrorRealmError as error:
        trouble, pause = str(error), max(settings.watch_seconds, 10.0)
    if trouble != troubles.get(source.id, ""):
        say(f"{source.name}: {trouble or 'the trouble is over'}")
    troubles[source.id] = trouble
    return max(pause, share * (time.monotonic() - began))


def _take_closed(
    events: queue.Queue[tuple[int, bytes]],
    watches: dict[int, FolderWatch],
    seconds: float,
    stop: threading.Event,
    say: Say,
) -> None:
    """Take files whose writers closed them, for the length of one pause between two polls.

    A program that closes a file several times in quick succession (most that write tags do) makes one version, not
    several: a file is taken a moment after its last event, and not later than a second after its first.
    """
    end = time.monotonic() + seconds
    closed: dict[tuple[int, bytes], tuple[float, float]] = {}  # first and last event
    while not stop.is_set() and ((left := end - time.monotonic()) > 0 or closed):
        if left > 0:
            with contextlib.suppress(queue.Empty):
                one = events.get(timeout=min(left, _DEBOUNCE_SECONDS / 2 if closed else 0.2))
                at = time.monotonic()
                closed[one] = (closed[one][0] if one in closed else at, at)
        else:
            stop.wait(_DEBOUNCE_SECONDS / 2)  # what came late waits for the time after the next poll
        at = time.monotonic()
        for (source_id, path), (first, last) in list(closed.items()):
            if at - last < _DEBOUNCE_SECONDS and at - first < _LONGEST_DEBOUNCE_SECONDS and len(closed) < _MOST_WAITING:
                continue
            del closed[source_id, path]
            if source_id in watches and watches[source_id].take(path):
                say(f"taken: {sources.display_path(path)!r}")
