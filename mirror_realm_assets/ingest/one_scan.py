"""One scan of a source: from a walk to what is journalled, and what a walk proves about files that are not there.

What belongs here: the order of one scan, and the rules of absence. What does not: walking and comparing (`scan`), what
is remembered between scans (`folder_watch`).

A share that vanishes, lists empty, lists partly or answers with errors must never cost anything. So absence is believed
only after a complete walk of a root that is proved to be the one it was, and only of files that a direct look does not
find either. The first such scan makes a file `missing`, the next one `deleted`. Many deletions at once wait for a
person.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.catalog.known import KnownRow
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.ingest.root_identity import is_same, may_be_same
from mirror_realm_assets.ingest.scan import Difference, Entry, Walk

if TYPE_CHECKING:
    from mirror_realm_assets.ingest.folder_watch import FolderWatch

# So many files of a source may be deleted in one scan without a person: a share, or a number if that is more.
_CAP_SHARE, _CAP_FILES = 0.1, 100
# Known files that are looked at to know a root again, and how many of them have to be as they were: one where device
# and inode are those recorded; half of them where the device has another number.
_SAMPLE, _SAMPLE_SHARE = 20, 0.5
# Files that look changed at an equal size: when they are more than a share of the source, so many are read first.
_SUSPECT_SHARE, _SUSPECT_FILES = 0.05, 50
_AT_ONCE = 500  # new files that are looked up together
_JOURNAL_ROWS, _JOURNAL_SECONDS = 2000, 5.0
_MAX_ERRORS = 1000
NOTHING = "nothing new"


@dataclass
class Scanned:
    """What one look at a source found.

    Attributes:
        files: in all.
        taken: newly journalled: new, changed, or back.
        moved: of those, files that are known under another path.
        restless: still changing.
        missing: not there any more.
        deleted: not there for the second time.
        held: would be deleted, but they are so many that a person has to confirm it.
        unreliable: looked changed and, by a sample of them that was read, have the bytes that they had.
        odd: links and the like, seen for the first time.
        sidecars: read, or not there any more.
        errors: why the scan is partial, or proves no absence.
    """

    files: int = 0
    taken: int = 0
    moved: int = 0
    restless: int = 0
    missing: int = 0
    deleted: int = 0
    held: int = 0
    unreliable: int = 0
    odd: int = 0
    sidecars: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def changes(self) -> str:
        """What changed, in words."""
        counts = (
            (self.taken - self.moved - self.unreliable, "new or changed"),
            (self.moved, "moved"),
            (self.missing, "gone"),
            (self.deleted, "deleted"),
            (self.odd, "not read"),
            (self.sidecars, "sidecars new, changed or gone"),
            (self.unreliable, "with another time or inode and, by a sample, the same bytes"),
        )
        return ", ".join(f"{count} {what}" for count, what in counts if count) or NOTHING

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        held = f"{self.held} files are not there, too many to be deleted without `sources confirm-deletions`"
        parts = [held] if self.held else []
        if self.errors:
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            parts.append(f"the scan is partial, so nothing counts as gone: {self.errors[0]}{more}")
        return "; ".join(parts)

    def then(self, later: Scanned) -> Scanned:
        """Both as one: what was done adds up, what is so is as it was seen last."""
        added = ("taken", "moved", "missing", "deleted", "unreliable", "odd", "sidecars")
        return replace(later, **{name: getattr(self, name) + getattr(later, name) for name in added})


class OneScan:
    """A scan that runs once.

    Args:
        folder: the source's memory.
        clock: monotonic seconds.
    """

    def __init__(self, folder: FolderWatch, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._report = Scanned()
        self._waited_for = folder.restless
        self._seen_again: set[bytes] = set()
        self._taken_early: set[bytes] = set()  # between two folders, before the walk came to them again
        self._sample: set[bytes] = set()  # of a new source, until they rest
        self._fresh: list[Entry] = []
        self._suspects: list[tuple[Entry, KnownRow]] = []
        self._resting: list[Sighting] = []
        self._absent: list[Difference] = []
        self._left: set[bytes] = set()  # by files that were moved
        self._generation: int | None = None
        self._proved = False  # that what is not there is gone
        self._written_at = clock()

    def run(self) -> Scanned:
        """Walk, compare, journal; see `FolderWatch.scan`."""
        folder, report = self._folder, self._report
        self._begin_with_a_sample()
        walk = folder.walk(self._between_folders)
        for found in folder.differences(walk):
            if found.entry is None:
                self._absent.append(found)
            elif found.known is None and found.path not in self._waited_for:
                self._fresh.append(found.entry)
                if len(self._fresh) >= _AT_ONCE:
                    self._sort_out_fresh()
            elif found.known is not None and self._is_suspect(found.entry, found.known):
                self._suspects.append((found.entry, found.known))
            else:
                self._consider(found.entry)
        self._sort_out_fresh()
        self._write()  # moves go first: what was at a path may be known under another one by now
        self._settle_suspects()
        folder.forget(self._waited_for - self._seen_again)
        report.files = walk.files
        report.errors = walk.errors[:_MAX_ERRORS]
        self._write()
        odd = folder.new_odd(walk.odd)
        if odd:
            report.odd = len(odd)
            self._generation = folder.journal(odd, self._generation)
        self._settle_absence(walk)
        report.sidecars = folder.settle_sidecars(walk, proved=self._proved and not report.held and not report.errors)
        report.restless = len(folder.restless)
        return report

    # --- files that are there ---

    def _begin_with_a_sample(self) -> None:
        for entry in self._folder.sample_of_new(self._clock):
            if found := self._folder.resting(entry, self._clock()):
                self._resting.append(found)
                self._taken_early.add(entry.path)
            else:
                self._sample.add(entry.path)
        self._write()

    def _between_folders(self, _walk: Walk) -> None:
        at = self._clock()
        for path in self._folder.due(at):
            self._look_again(path, at)
        sampled = bool(self._sample) and self._sample <= self._taken_early
        if sampled:
            self._sample = set()  # it goes first, and does not wait for more
        if sampled or len(self._resting) >= _JOURNAL_ROWS or at - self._written_at >= _JOURNAL_SECONDS:
            self._sort_out_fresh()
            self._write()

    def _look_again(self, path: bytes, at: float) -> None:
        try:
            entry = self._folder.look(path)
        except OSError:
            return  # the walk will say so
        if entry is None:
            self._folder.forget([path])
        elif found := self._folder.resting(entry, at):
            self._resting.append(found)
            self._taken_early.add(path)

    def _sort_out_fresh(self) -> None:
        """New files are taken if they are known by another path, and have to rest otherwise."""
        moved = self._folder.moves(self._fresh)
        for entry in self._fresh:
            if entry.path in moved:
                found = moved[entry.path]
                self._resting.append(found)
                self._report.moved += 1
                if found.moved_from is not None:
                    self._left.add(found.moved_from)
            else:
                self._consider(entry)
        self._fresh = []

    @staticmethod
    def _is_suspect(entry: Entry, old: KnownRow) -> bool:
        """Whether a known path is looked at last.

        Another file may lie there, and what was there may have been moved. Or size and bytes are as before, and only
        what tells of changes is wrong: after a restored backup, or on a drive that shifts times.
        """
        return old[3] == "present" and (old[1] == entry.size or (old[5] is not None and old[5] != entry.inode))

    def _settle_suspects(self) -> None:
        same_size = [entry for entry, old in self._suspects if old[1] == entry.size]
        many = len(same_size) > max(_SUSPECT_FILES, _SUSPECT_SHARE * self._folder.counts()) if same_size else False
        if many and self._folder.have_known_bytes(random.sample(same_size, _SUSPECT_FILES)):
            self._resting += [Sighting("kept", *entry) for entry in same_size]
            self._report.unreliable = len(same_size)
            self._suspects = [(entry, old) for entry, old in self._suspects if old[1] != entry.size]
        for entry, old in self._suspects:
            as_before = (old[1], old[2]) == (entry.size, entry.mtime_ns)
            self._consider(entry, "replaced" if as_before else "seen")

    def _consider(self, entry: Entry, kind: str = "seen") -> None:
        self._seen_again.add(entry.path)
        if entry.path in self._taken_early:
            return  # and if it has changed since, the next scan sees it
        if found := self._folder.resting(entry, self._clock(), kind):
            self._resting.append(found)

    def _write(self) -> None:
        self._written_at = self._clock()
        if self._resting:
            self._generation = self._folder.journal(self._resting, self._generation)
            self._report.taken += len(self._resting)
            self._resting = []

    # --- files that are not ---

    def _settle_absence(self, walk: Walk) -> None:
        folder, report = self._folder, self._report
        if not walk.complete:
            return
        recorded = folder.source.root_identity
        if recorded is not None and not self._is_proved(walk):
            report.errors.append(
                "This is not the folder that it was: another one is mounted, or nothing is. If it is right "
                "nevertheless, say so with `sources confirm-deletions`."
            )
            return
        self._proved = recorded is not None
        gone = self._gone() if recorded is not None else []
        missing = [found for found in gone if found.known and found.known[3] not in ("missing", "deleted")]
        again = [found for found in gone if found.known and found.known[3] == "missing"]
        ripe = [found for found in again if found.known and found.known[4] < (self._generation or _NEXT)]
        deleted = self._allowed(ripe)
        if missing or deleted:
            sightings = [Sighting("missing", found.path) for found in missing]
            sightings += [Sighting("deleted", found.path) for found in deleted]
            self._generation = folder.journal(sightings, self._generation)
            point("scan.absence_journalled")
        report.missing, report.deleted = len(missing), len(deleted)
        # What a person has confirmed holds until everything that it is about is deleted, which takes two scans.
        used_up = folder.source.deletions_confirmed and not missing and len(ripe) == len(again)
        folder.end(walk.identity, held=report.held, used_up=used_up)

    def _is_proved(self, walk: Walk) -> bool:
        """Whether the root is the one it was; asked only when something depends on it."""
        recorded = self._folder.source.root_identity
        if recorded is None:
            return False
        if self._folder.source.deletions_confirmed:
            return True  # a person has looked
        same = is_same(recorded, walk.identity)
        if same and not self._absent:
            return True
        if not same and not may_be_same(recorded, walk.identity):
            return False
        sample = self._folder.sample(_SAMPLE)
        if same and len(sample) < _SAMPLE:
            return True  # all files of a small folder may well be renamed or replaced
        there = sum(self._is_as_it_was(path, old.size, old.mtime_ns) for path, old in sample.items())
        return not sample or (there >= 1 if same else there >= _SAMPLE_SHARE * len(sample))

    def _is_as_it_was(self, path: bytes, size: int, mtime_ns: int) -> bool:
        try:
            entry = self._folder.look(path)
        except OSError:
            return False
        return entry is not None and (entry.size, entry.mtime_ns) == (size, mtime_ns)

    def _gone(self) -> list[Difference]:
        """The absent files that a direct look does not find either; none when it contradicts the listing."""
        gone: list[Difference] = []
        listed_less = 0
        for found in self._absent:
            if found.path in self._left or (found.known and found.known[3] == "deleted"):
                continue
            try:
                there = self._folder.look(found.path) is not None
            except OSError as error:
                self._report.errors.append(f"{error.strerror}")
                return []
            if there:
                listed_less += 1
            else:
                gone.append(found)
        if listed_less:
            self._report.errors.append(f"{listed_less} files are there that their folders did not list.")
            return []
        if gone and not self._report.files:
            self._report.errors.append("The folder lists nothing at all, so nothing is taken for gone.")
            return []
        return gone

    def _allowed(self, ripe: list[Difference]) -> list[Difference]:
        """What may be deleted; above the cap nothing, and it is said how much waits for a person."""
        if not ripe or self._folder.source.deletions_confirmed:
            return ripe
        if len(ripe) > max(_CAP_FILES, int(_CAP_SHARE * (self._folder.counts() + len(ripe)))):
            self._report.held = len(ripe)
            return []
        return ripe


# Of a scan that has written nothing yet: its generation is going to be later than any that is applied.
_NEXT = 2**61
