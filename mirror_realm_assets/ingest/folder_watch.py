"""One source under watch: what is remembered between two scans, and what is written into the journal.

What belongs here: when a file rests, which files were moved, what was journalled. What does not: the order of one scan
(`one_scan`), the loop over all sources (`watch`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from mirror_realm_assets.catalog import files, known, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import STATE_OF, Known, Sighting
from mirror_realm_assets.catalog.known import KnownRow
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.ingest import scan
from mirror_realm_assets.ingest.one_scan import OneScan, Scanned
from mirror_realm_assets.ingest.originals import read_verified
from mirror_realm_assets.ingest.scan import AWAY, Difference, Entry, Folder, Walk
from mirror_realm_assets.ingest.sidecar_watch import SidecarWatch
from mirror_realm_assets.installation import on_network
from mirror_realm_assets.settings import Settings

_MOVABLE = ("present", "missing", "unreadable")
# Of rows that are journalled and not applied: later than any.
_LAST = 2**62
# How long folders that are as they were are not compared with the ledger.
_COMPARE_SECONDS = 3600.0
_SAMPLE_SECONDS = 60.0
_MAX_WAITING = 10_000  # rows of the journal
_SIDECAR_SECONDS = 10.0  # of one scan; what is left is read after the next one


def own_folders(settings: Settings) -> set[tuple[int, int]]:
    """Device and inode of the folders that hold what we make."""
    found = set()
    for folder in (settings.home, settings.dagster_home, settings.store_folder):
        if folder is None:
            continue
        try:
            seen = folder.stat()
        except OSError:
            continue
        found.add((seen.st_dev, seen.st_ino))
    return found


class FolderWatch:
    """The watcher's memory of one source: which files it has seen and is waiting for to rest.

    Args:
        catalog: the ledger.
        settings: of this process.
        source: the source.
        disk: has `scandir`, `stat` and `lstat`; the system's own by default.
    """

    def __init__(self, catalog: Catalog, settings: Settings, source: Source, disk: Any = os) -> None:
        self._catalog = catalog
        self._settings = settings
        self._source = source
        self._disk = disk
        self._restless: dict[bytes, tuple[Entry, float, str]] = {}
        # What was journalled and may not be applied yet: size, mtime and state by path, and new paths by old ones.
        self._written: dict[bytes, tuple[int, int, str]] = {}
        self._moved: dict[bytes, bytes] = {}
        # What the last walk saw, the generation that the ledger had then, and when all of it was compared.
        self._folders: dict[bytes, Folder] = {}
        self._generation = -1
        self._compared_at = 0.0
        self._much_waits = False  # in the journal
        self._sampled = False
        self._sidecars = SidecarWatch(catalog, source.id)
        # On network drives inodes change with a mount and are used again.
        self._inodes_hold = not on_network(Path(os.fsdecode(source.root)))

    def is_of(self, source: Source) -> bool:
        """Whether it was begun with the folder and the policy that the source has now; others begin a new watch."""
        return (self._source.root, self._source.policy) == (source.root, source.policy)

    def scan(self, clock: Callable[[], float] = time.monotonic) -> Scanned:
        """Walk the source once and journal what rests, while the walk goes on.

        A file rests when two looks, at least `quiet_seconds` apart on the monotonic clock, saw the same size and
        mtime. Its mtime alone says nothing: clocks of servers differ, and copies keep old times. A file that is known
        under another path, with the same inode, size and mtime, was moved and rests.

        Raises:
            SetupError: `folder_missing`; nothing is journalled then.
        """
        return OneScan(self, clock).run()

    def take(self, path: bytes) -> bool:
        """Take one file at once, because its writer has closed it; returns whether it was journalled."""
        try:
            entry = self.look(path)
        except OSError:
            return False  # the next scan says why
        if entry is None:
            return False
        written = self._written.get(path)
        with self._catalog.read() as conn:
            old = known.at(conn, self._source.id, path)
        before = written or ((old.size, old.mtime_ns, old.state) if old else None)
        if before and before[:2] == (entry.size, entry.mtime_ns) and before[2] not in AWAY:
            return False
        moved = self.moves([entry]) if before is None else {}
        self.journal([moved.get(path) or scan.sighting(entry)])
        self._restless.pop(path, None)
        return True

    # --- what a scan uses ---

    @property
    def source(self) -> Source:
        """As the ledger said when the last scan began."""
        return self._source

    def walk(self, on_folder: Callable[[Walk], None], *, sidecars: bool = True) -> Walk:
        """A new walk over the source's folder; one without sidecars does not look for any."""
        return Walk(
            self._source.root,
            self._source.policy.ignore,
            own_folders(self._settings),
            disk=self._disk,
            on_folder=on_folder,
            on_sidecars=self._sidecars.begin() if sidecars else None,
        )

    def sample_of_new(self, clock: Callable[[], float]) -> list[Entry]:
        """Of a source that nothing is known of yet, once: the newest file of each folder.

        A first walk over millions of files takes long, over a network drive for hours, and finds the files of one
        folder after the other. People want to see something of everything soon.
        """
        if self._sampled:
            return []
        self._sampled = True
        if self._written or self.counts():
            return []
        walk = self.walk(lambda _walk: None, sidecars=False)
        return scan.newest_of_each_folder(walk, most=scan.SAMPLE_FILES, seconds=_SAMPLE_SECONDS, clock=clock)

    def look(self, path: bytes) -> Entry | None:
        """One file as a walk would take it; raises OSError when it cannot be looked at."""
        own = own_folders(self._settings)
        return scan.look_at(self._source.root, path, self._source.policy.ignore, own, self._disk)

    def differences(self, walk: Walk) -> Iterator[Difference]:
        """Where a walk differs from the ledger and from what was journalled and is not applied yet.

        A folder that is as it was when it agreed with the ledger is only looked at, as long as nobody else writes about
        this source, for an hour.
        """
        self._refresh()  # a person may have confirmed deletions
        self._forget_applied()
        quick = self._folders and self._generation == self._source.scan_generation
        if quick and time.monotonic() - self._compared_at < _COMPARE_SECONDS:
            found = self._changes(walk)
        else:
            self._generation, self._compared_at = self._source.scan_generation, time.monotonic()
            rows = known.in_order(self._catalog, self._source.id)
            found = scan.differences(walk, rows, inodes=self._inodes_hold)
        # What is journalled and not applied, by whomever, is not in the ledger that this is compared with.
        differing = self._waiting()
        for one in found:
            differing.add(_prefix(one.path))
            yield from self._beyond_what_was_written(one)
        self._remember(walk, differing | {_prefix(path) for path in self._written})

    def _changes(self, walk: Walk) -> Iterator[Difference]:
        told: set[bytes] = set()
        for changed in walk.changes(self._folders):
            with self._catalog.read() as conn:
                rows = known.in_folder(conn, self._source.id, changed.prefix)
                gone = [known.beneath(conn, self._source.id, folder) for folder in changed.gone]
            for one in scan.differences_in(changed.entries, rows, inodes=self._inodes_hold):
                told.add(one.path)
                yield one
            for row in (row for rows in gone for row in rows.values() if row[3] != "ignored"):
                told.add(row[0])
                yield Difference(row[0], None, row)
        with self._catalog.read() as conn:
            missing = known.missing(conn, self._source.id)
        # They are in folders that are as they were; whether they are really gone is looked at once more.
        for path, row in missing.items():
            if path not in told:
                yield from self._looked_at_again(path, row)

    def _looked_at_again(self, path: bytes, row: KnownRow) -> Iterator[Difference]:
        try:
            # It may have been back before that was said, and its folder compared.
            yield Difference(path, self.look(path), row)
        except OSError:
            return  # the walk met it too, or the next one will

    def _beyond_what_was_written(self, found: Difference) -> Iterator[Difference]:
        written = self._written.get(found.path)
        if written is None:
            yield found
        elif found.entry is not None and written != (found.entry.size, found.entry.mtime_ns, "present"):
            yield Difference(found.path, found.entry, (found.path, *written, _LAST, None))
        elif found.entry is None and written[2] not in AWAY:
            yield Difference(found.path, None, (found.path, *written, _LAST, None))

    def _waiting(self) -> set[bytes]:
        """Folders of which something is journalled; when that is much, nothing is remembered at all."""
        with self._catalog.read() as conn:
            paths = files.journal_paths(conn, self._source.id, _MAX_WAITING + 1)
        self._much_waits = len(paths) > _MAX_WAITING
        return {_prefix(path) for path in paths}

    def _remember(self, walk: Walk, differing: Iterable[bytes]) -> None:
        """Keep what a complete walk saw; folders that differed are compared again."""
        self._folders = walk.folders if walk.complete and not self._much_waits else {}
        self._look_again(differing)

    def _look_again(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            if prefix in self._folders:
                self._folders[prefix] = self._folders[prefix]._replace(fingerprint=scan.UNKNOWN)

    def moves(self, entries: Sequence[Entry]) -> dict[bytes, Sighting]:
        """Which of these new files are known under a path where nothing is any more."""
        if not self._inodes_hold or not entries:
            return {}
        with self._catalog.read() as conn:
            candidates = known.by_inode(conn, self._source.id, [entry.inode for entry in entries])
        found: dict[bytes, Sighting] = {}
        left: set[bytes] = set()  # a path is left once
        for entry in entries:
            for known_path, old in candidates.get((entry.device, entry.inode), ()):
                path = self._now_at(known_path)
                same = (old.size, old.mtime_ns) == (entry.size, entry.mtime_ns) and path != entry.path
                if same and old.state in _MOVABLE and path not in left and self._is_left(path, entry.inode):
                    left.add(path)
                    found[entry.path] = Sighting("moved", *entry, moved_from=path)
                    break
        return found

    def have_known_bytes(self, entries: Sequence[Entry]) -> bool:
        """Whether each of these files has the bytes that are known under its path; reads them all."""
        with self._catalog.read() as conn:
            digests = known.digests(conn, self._source.id, [entry.path for entry in entries])
        for entry in entries:
            digest = digests.get(entry.path)
            if digest is None:
                return False
            try:
                with read_verified(self._source.root, entry.path, digest, max_bytes=self._settings.max_file_bytes):
                    pass
            except MirrorRealmError:
                return False
        return True

    def _now_at(self, path: bytes) -> bytes:
        """Where a file has been moved to since the ledger was read."""
        while path in self._moved:
            path = self._moved[path]
        return path

    def _is_left(self, path: bytes, inode: int) -> bool:
        """Whether the file with that inode is not at `path` any more."""
        try:
            there = self.look(path)
        except OSError:
            return False
        return there is None or there.inode != inode

    def resting(self, entry: Entry, at: float, kind: str = "seen") -> Sighting | None:
        """The journal row for a file that rests now; otherwise it is remembered as restless since it last changed.

        Args:
            entry: as it is now.
            at: monotonic seconds.
            kind: of the row; one that is waited for keeps its kind.
        """
        before = self._restless.get(entry.path)
        same = before is not None and (before[0].size, before[0].mtime_ns) == (entry.size, entry.mtime_ns)
        since = before[1] if same and before else at
        kind = before[2] if same and before and kind == "seen" else kind
        if self._settings.quiet_seconds == 0 or (same and at - since >= self._settings.quiet_seconds):
            self._restless.pop(entry.path, None)
            return Sighting(kind, *entry)
        if not same:
            self._restless.pop(entry.path, None)  # to the end: they are in the order of their times
        self._restless[entry.path] = (entry, since, kind)
        return None

    def due(self, at: float) -> list[bytes]:
        """Restless files that have been left alone for long enough to be looked at again."""
        quiet = self._settings.quiet_seconds
        return [path for path, _waits in takewhile(lambda one: at - one[1][1] >= quiet, self._restless.items())]

    def forget(self, paths: Iterable[bytes]) -> None:
        """These restless files are not there any more."""
        for path in paths:
            self._restless.pop(path, None)

    @property
    def folders(self) -> int:
        """How many folders the last complete walk saw."""
        return len(self._folders)

    @property
    def restless(self) -> set[bytes]:
        """Files that are being waited for."""
        return set(self._restless)

    def journal(self, sightings: Sequence[Sighting], generation: int | None = None) -> int:
        """Write sightings into the journal, under a new generation unless one is given; returns it."""
        with self._catalog.write() as conn:
            if generation is None:
                generation = sources.begin_scan(conn, self._source.id)
                mine = generation == self._generation + 1
                self._generation = generation if mine else -1  # somebody else writes too: the next scan compares all
            files.write_journal(conn, self._source.id, generation, sightings)
            point("journal.before_commit")
        point("journal.after_commit")
        for seen in sightings:
            self._written[seen.path] = (seen.size, seen.mtime_ns, STATE_OF[seen.kind])
            if seen.moved_from is not None:
                self._written[seen.moved_from] = (0, 0, "deleted")
                self._moved[seen.moved_from] = seen.path
        return generation

    def new_odd(self, odd: Sequence[tuple[bytes, str]]) -> list[Sighting]:
        """Journal rows for links and other things that are not read, the first time they are seen."""
        if not odd:
            return []
        with self._catalog.read() as conn:
            there = known.which(conn, self._source.id, [path for path, _code in odd])
        return [
            Sighting("ignored", path, code=code)
            for path, code in odd
            if path not in there and path not in self._written
        ]

    def end(self, identity: Mapping[str, Any], *, held: int, used_up: bool) -> None:
        """A complete walk of the right root is over: remember what it is known by, and what is held back.

        Args:
            identity: of the root.
            held: how many deletions wait for a person.
            used_up: what a person has confirmed is deleted now.
        """
        source = self._source
        if (source.root_identity, source.held_deletions) == (identity, held) and not used_up:
            return
        with self._catalog.write() as conn:
            sources.end_scan(conn, source.id, identity, held=held, used_up=used_up)
        self._refresh()

    def settle_sidecars(self, walk: Walk, *, proved: bool) -> int:
        """A walk is over: forget sidecars that are gone, if that is proved, and read new ones; returns how many."""
        gone, unsettled = self._sidecars.end(walk.folders, proved=proved)
        self._look_again(unsettled)
        return gone + self._sidecars.read(self._source.root, _SIDECAR_SECONDS)

    def _refresh(self) -> None:
        with self._catalog.read() as conn:
            self._source = sources.by_id(conn, self._source.id)

    def counts(self) -> int:
        """How many files of the source the ledger holds to be there."""
        with self._catalog.read() as conn:
            return known.count(conn, self._source.id)

    def sample(self, size: int) -> dict[bytes, Known]:
        """Some files that the ledger holds to be there."""
        with self._catalog.read() as conn:
            return known.sample(conn, self._source.id, size)

    def _forget_applied(self) -> None:
        if self._written:
            with self._catalog.read() as conn:
                if not files.has_journal(conn, self._source.id):
                    self._written.clear()
                    self._moved.clear()


def _prefix(path: bytes) -> bytes:
    """The prefix of the folder in which a path lies."""
    folder, _slash, _name = path.rpartition(b"/")
    return folder + b"/" if folder else b""
