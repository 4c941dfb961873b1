"""The sidecars of a source under watch: noticing those that came, changed or went, and reading them.

What belongs here: what is remembered between two scans, and what is written into the ledger. What does not: the walk,
which tells of the sidecars of a folder in passing (`scan`), and what one says (`sidecars`).

A walk only writes down which sidecars have to be read. They are read when it is over, for a bounded time: a million of
them must not keep the first pictures waiting. One that is not there any more is forgotten as soon as a scan proves
anything; should it come back, reading it again costs next to nothing, so it needs no second look and no person.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog import sidecars as ledger
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sidecars import Reading, Seen
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest import sidecars

if TYPE_CHECKING:
    from mirror_realm_assets.ingest.scan import Entry

_COMPARE_NAMES, _COMPARE_FOLDERS = 2000, 200  # compared with the ledger together
_READ_AT_ONCE = 200  # of one transaction
_RELOAD_SECONDS = 3600.0


class SidecarWatch:
    """The watcher's memory of the sidecars of one source.

    Args:
        catalog: the ledger.
        source_id: the source.
        clock: monotonic seconds.
    """

    def __init__(self, catalog: Catalog, source_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._source_id = source_id
        self._clock = clock
        # Folders with known sidecars: of all others an empty look is no question to the ledger.
        self._folders: set[bytes] = set()
        self._loaded_at: float | None = None
        self._visited: list[tuple[bytes, Sequence[Entry]]] = []
        self._names = 0
        self._gone: dict[bytes, list[int]] = {}
        self._emptied: set[bytes] = set()

    def begin(self) -> Callable[[bytes, Sequence[Entry]], None]:
        """A walk begins; returns what it has to tell of each folder that it looks into: its prefix and sidecars."""
        self._visited, self._names, self._gone, self._emptied = [], 0, {}, set()
        if self._loaded_at is None or self._clock() - self._loaded_at >= _RELOAD_SECONDS:
            self._loaded_at = self._clock()
            with self._catalog.read() as conn:
                self._folders = ledger.folders(conn, self._source_id)
        return self._folder

    def _folder(self, prefix: bytes, entries: Sequence[Entry]) -> None:
        if entries or prefix in self._folders:
            self._visited.append((prefix, entries))
            self._names += len(entries)
            if self._names >= _COMPARE_NAMES or len(self._visited) >= _COMPARE_FOLDERS:
                self._compare()

    def _compare(self) -> None:
        if not self._visited:
            return
        with self._catalog.read() as conn:
            known = ledger.in_folders(conn, self._source_id, [prefix for prefix, _entries in self._visited])
        fresh: list[Seen] = []
        for prefix, entries in self._visited:
            for entry in entries:
                old = known.pop(entry.path, None)
                if old is None or (old.size, old.mtime_ns) != (entry.size, entry.mtime_ns):
                    fresh.append(Seen(entry.path, entry.size, entry.mtime_ns))
            (self._folders if entries else self._emptied).add(prefix)
        for old in known.values():
            self._gone.setdefault(old.folder, []).append(old.id)
        if fresh:
            with self._catalog.write() as conn:
                ledger.note(conn, self._source_id, fresh)
        self._visited, self._names = [], 0

    def end(self, folders: Collection[bytes], *, proved: bool) -> tuple[int, set[bytes]]:
        """A walk is over.

        Args:
            folders: prefixes of all folders that it saw.
            proved: whether what it did not see is gone.

        Returns:
            How many sidecars were forgotten, and folders that have to be looked into again, because nothing is proved.
        """
        self._compare()
        if not proved:
            return 0, set(self._gone)
        left = [prefix for prefix in self._folders if prefix not in folders]
        gone = [row for rows in self._gone.values() for row in rows]
        if left:
            with self._catalog.read() as conn:
                gone += [old.id for old in ledger.in_folders(conn, self._source_id, left).values()]
        if gone:
            with self._catalog.write() as conn:
                ledger.forget(conn, gone)
        self._folders.difference_update(left, self._emptied)
        return len(gone), set()

    def read(self, root: bytes, seconds: float) -> int:
        """Read sidecars that wait for it, for so long; returns how many were read."""
        end = self._clock() + seconds
        done = 0
        while self._clock() < end:
            with self._catalog.read() as conn:
                waiting = ledger.waiting(conn, self._source_id, _READ_AT_ONCE)
            if not waiting:
                break
            readings = [_read(root, each) for each in waiting]
            with self._catalog.write() as conn:
                ledger.record(conn, readings)
            done += sum(each.state != "waiting" for each in readings)
        return done


def _read(root: bytes, waiting: ledger.Waiting) -> Reading:
    try:
        found = sidecars.read(root, waiting.path, waiting.kind)
    except MirrorRealmError as error:
        return Reading(waiting.id, "waiting", code=error.code, reason=error.message)
    refused = found.refused
    if refused is not None:
        return Reading(waiting.id, "refused", found.size, found.mtime_ns, code=refused.code, reason=refused.message)
    return Reading(waiting.id, "read", found.size, found.mtime_ns, found.values)
