"""Watching sources: polling, with native events where the file system sends them, into the journal.

What belongs here: when a file rests and is taken. What does not: forming batches (`batching`); the watcher writes only
the journal.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mirror_realm_assets.catalog import files, leases, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import Known, Sighting
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest import scan
from mirror_realm_assets.ingest.scan import Entry, Walk
from mirror_realm_assets.settings import Settings

Say = Callable[[str], None]

# A poll of a big tree must not keep a disk busy: it pauses ten times as long as it took.
_POLL_SHARE = 10


def own_folders(settings: Settings) -> set[tuple[int, int]]:
    """Device and inode of the folders that hold what we make."""
    found = set()
    store = Path(settings.store_url.removeprefix("file://"))
    for folder in (settings.home, settings.dagster_home, store):
        try:
            seen = folder.stat()
        except OSError:
            continue
        found.add((seen.st_dev, seen.st_ino))
    return found


@dataclass
class Scanned:
    """What one look at a source found: files in all, newly taken, still changing, gone, odd, and errors."""

    files: int = 0
    taken: int = 0
    restless: int = 0
    missing: int = 0
    odd: int = 0
    errors: list[str] = field(default_factory=list)


class FolderWatch:
    """The watcher's memory of one source: which files it has seen and is waiting for to rest."""

    def __init__(self, catalog: Catalog, settings: Settings, source: Source) -> None:
        self._catalog = catalog
        self._settings = settings
        self._source = source
        self._restless: dict[bytes, tuple[Entry, float]] = {}
        self._known: dict[bytes, Known] | None = None

    def is_of(self, source: Source) -> bool:
        """Whether it was begun with the folder and the policy that the source has now; others begin a new watch."""
        return (self._source.root, self._source.policy) == (source.root, source.policy)

    def scan(self, clock: Callable[[], float] = time.monotonic) -> Scanned:
        """Walk the source once and journal what rests.

        A file rests when two looks, at least `quiet_seconds` apart on the monotonic clock, saw the same size and
        mtime. Its mtime alone says nothing: clocks of servers differ, and copies keep old times.

        Raises:
            SetupError: `folder_missing`; nothing is journalled then.
        """
        found = scan.walk(self._source.root, self._source.policy.ignore, own_folders(self._settings))
        known = self._load_known()
        resting: list[Entry] = []
        restless: dict[bytes, tuple[Entry, float]] = {}
        at = clock()
        for entry in scan.changed(found, known):
            before = self._restless.get(entry.path)
            same = before is not None and (before[0].size, before[0].mtime_ns) == (entry.size, entry.mtime_ns)
            since = before[1] if same and before else at
            if self._settings.quiet_seconds == 0 or (same and at - since >= self._settings.quiet_seconds):
                resting.append(entry)
            else:
                restless[entry.path] = (entry, since)
        self._restless = restless
        gone = scan.missing_sightings(found, known, self._source.root_identity)
        odd = scan.odd_sightings(found, known)
        self._journal([scan.sighting(entry) for entry in resting] + gone + odd, complete=found)
        return Scanned(
            files=len(found.entries),
            taken=len(resting),
            restless=len(restless),
            missing=len(gone),
            odd=len(odd),
            errors=found.errors,
        )

    def take(self, path: bytes) -> bool:
        """Take one file at once, because its writer has closed it; returns whether it was journalled."""
        known = self._load_known()
        found = scan.look_at(self._source.root, path, self._source.policy.ignore, own_folders(self._settings))
        if found is None:
            return False
        old = known.get(path)
        if old and (old.size, old.mtime_ns) == (found.size, found.mtime_ns) and old.state != "missing":
            return False
        self._journal([scan.sighting(found)])
        self._restless.pop(path, None)
        return True

    def _load_known(self) -> dict[bytes, Known]:
        if self._known is None:
            with self._catalog.read() as conn:
                self._known = files.known(conn, self._source.id)
        return self._known

    def _journal(self, sightings: list[Sighting], complete: Walk | None = None) -> None:
        known = self._load_known()
        first = complete is not None and complete.complete and self._source.root_identity is None
        if not sightings and not first:
            return
        with self._catalog.write() as conn:
            generation = sources.begin_scan(conn, self._source.id)
            files.write_journal(conn, self._source.id, generation, sightings)
            if complete is not None and complete.complete:
                sources.end_scan(conn, self._source.id, complete.identity)
        if first and complete is not None:
            with self._catalog.read() as conn:
                self._source = sources.by_id(conn, self._source.id)
        states = {"seen": "present", "missing": "missing", "ignored": "ignored", "unreadable": "unreadable"}
        for seen in sightings:
            known[seen.path] = Known(seen.size, seen.mtime_ns, seen.inode, states[seen.kind])


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
                    due[source.id] = time.monotonic() + _scan_once(watches[source.id], source, settings, say)
            _take_closed(events, watches, settings.watch_seconds, stop, say)
    finally:
        native.close()


def _mine(catalog: Catalog, settings: Settings, worker_id: str) -> list[Source]:
    """The active sources whose watching this process holds the lease of."""
    with catalog.read() as conn:
        active = [source for source in sources.all_sources(conn) if source.active]
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


def _scan_once(watched: FolderWatch, source: Source, settings: Settings, say: Say) -> float:
    """One scan; returns the seconds until the next."""
    began = time.monotonic()
    try:
        found = watched.scan()
    except MirrorRealmError as error:
        say(f"{source.name}: {error}")
        return max(settings.watch_seconds, 10.0)
    if found.taken or found.missing or found.odd:
        say(f"{source.name}: {found.taken} new or changed, {found.missing} gone, {found.odd} not read")
    if found.errors:
        say(f"{source.name}: the scan is partial, {len(found.errors)} folders could not be read: {found.errors[0]}")
    return max(settings.watch_seconds, _POLL_SHARE * (time.monotonic() - began))


def _take_closed(
    events: queue.Queue[tuple[int, bytes]],
    watches: dict[int, FolderWatch],
    seconds: float,
    stop: threading.Event,
    say: Say,
) -> None:
    """Take files whose writers closed them, for the length of one pause between two polls."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        try:
            source_id, path = events.get(timeout=min(left, 0.2))
        except queue.Empty:
            continue
        if source_id in watches and watches[source_id].take(path):
            say(f"taken: {sources.display_path(path)!r}")
