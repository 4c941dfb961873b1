"""A whole run: what is there against what is wanted, then writing, removing, and the manifest.

What belongs here: the order of these steps. What does not: each step (`selection`, `decisions`, `placing`, `manifest`).

Everything that grows with the library goes through temporary files, one line a file. Files are removed last, and not
while what should take their place could not be written: an original on a drive that is away is not lost by a new
template.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import Rule
from mirror_realm_assets.errors import Failed, SetupError, as_error
from mirror_realm_assets.export import target
from mirror_realm_assets.export.decisions import Act, Claims, Decision, decide, decision_of
from mirror_realm_assets.export.entries import Entry, Wanted, wanted_of
from mirror_realm_assets.export.folder import WORK, Folder, told
from mirror_realm_assets.export.manifest import Manifest
from mirror_realm_assets.export.naming import key_of
from mirror_realm_assets.export.order import Order, Outcome
from mirror_realm_assets.export.placing import Placer
from mirror_realm_assets.export.selection import Selection
from mirror_realm_assets.export.sorting import Record, Scratch, Spool
from mirror_realm_assets.stages.services import Services

_REMEMBERED = 100_000  # files that could not be placed; with more of them nothing is removed
_WANTED, _LISTED, _UNFINISHED = "0", "1", "2"
_KEPT = {Act.EDITED: "edited", Act.LEAVE: "edited", Act.FOREIGN: "not_ours"}


def export(
    services: Services, rule: Rule, order: Order, on_progress: Callable[[str], None] = lambda _text: None
) -> Outcome:
    """Bring a folder up to date with the library.

    Args:
        services: settings, catalog and store.
        rule: of the feature `enhanced_images`.
        order: what is asked for.
        on_progress: told how far it is.

    Raises:
        SetupError: `invalid_argument`, `folder_missing`, `not_found`, `already_running`; `export_failed` when the
            folder cannot be written to, or went away.
        Failed: `disk_full`. What was done until then counts, and the next run goes on.
    """
    selection = Selection(order.template, order.kinds, rule)
    with services.catalog.read() as conn:
        known = sources.all_sources(conn)
        chosen = [sources.get(conn, order.source)] if order.source else known
    root = target.check(order.folder, services.settings, known, into_existing=order.into_existing)
    run = _Run(services, selection, order, root, chosen, on_progress)
    if order.dry_run:
        return run.rehearse()
    with target.locked(root):
        try:
            return run.perform()
        except OSError as error:
            found = told(error)
            raise SetupError(found.code, found.message, remedy=found.remedy) from error


class _Run:
    """One run over one folder."""

    def __init__(
        self,
        services: Services,
        selection: Selection,
        order: Order,
        root: Path,
        chosen: list[Source],
        on_progress: Callable[[str], None],
    ) -> None:
        self._services = services
        self._selection = selection
        self._order = order
        self._chosen = chosen
        self._tell = on_progress
        self._folder = Folder(root)
        self._manifest = Manifest(root, services.catalog.uuid())
        self._scratch = Scratch(services.settings.home)
        self._outcome = Outcome(root)
        self._unplaced: set[tuple[str, str, str]] = set()

    def rehearse(self) -> Outcome:
        """Say what would be done."""
        self._manifest.check()
        for decision in self._decisions():
            self._count(decision)
            self._outcome.written += decision.act is Act.WRITE
            self._outcome.removed += decision.act is Act.REMOVE
        return self._outcome

    def perform(self) -> Outcome:
        """Do it."""
        self._manifest.check()
        with closing(self._scratch.spool()) as plan, closing(self._scratch.spool()) as result:
            acts: Counter[Act] = Counter()
            news = not self._manifest.path.exists()
            for decision in self._decisions():
                self._count(decision)
                acts[decision.act] += 1
                news = news or decision.news
                plan.write(decision.as_json())
            changes = acts[Act.WRITE] + acts[Act.REMOVE]
            if news or changes:
                self._manifest.begin(_ours(plan))
            if news:
                self._manifest.write(_standing(plan))
            if changes:
                self._carry_out(plan, result, acts[Act.WRITE])
                self._folder.sync()
                self._manifest.write(itertools.chain(_standing(plan), result.lines()))
            self._manifest.end()
        return self._outcome

    # --- deciding ---

    def _decisions(self) -> Iterator[Decision]:
        records = itertools.chain(self._claimed(), self._wanted())
        grouped = itertools.groupby(self._scratch.sorted(records), key=lambda record: record[0])
        for number, (_key, group) in enumerate(grouped):
            self._tell(f"{number} names compared")
            yield from self._of_name([payload for _key, payload in group])

    def _of_name(self, payloads: list[str]) -> Iterator[Decision]:
        """The decision on one name; more than one file is wanted under it only when that is none."""
        wanted = [wanted_of(each[1:]) for each in payloads if each[0] == _WANTED]
        nameless = [each for each in wanted if not each.entry.name]
        if nameless:
            yield from (Decision(Act.NAMELESS, each) for each in nameless)
            return
        listed = [Entry(**json.loads(each[1:])) for each in payloads if each[0] == _LISTED]
        unfinished = [Entry(**json.loads(each[1:])) for each in payloads if each[0] == _UNFINISHED]
        claims = Claims(listed[0] if listed else None, [*listed[1:], *unfinished])
        yield decide(claims, wanted[0] if wanted else None, self._is_meant, self._folder)

    def _claimed(self) -> Iterator[Record]:
        for mark, entries in ((_LISTED, self._manifest.listed()), (_UNFINISHED, self._manifest.unfinished())):
            for entry in entries:
                yield key_of(entry.name), mark + json.dumps(asdict(entry))

    def _wanted(self) -> Iterator[Record]:
        found = self._selection.wanted(self._services.catalog, self._chosen, self._taken(), self._scratch)
        for number, wanted in enumerate(found):
            self._tell(f"{number} files of the library looked at")
            yield key_of(wanted.entry.name), _WANTED + wanted.as_json()

    def _taken(self) -> Iterator[str]:
        """Names of files that other runs exported and this one is not about."""
        for entry in itertools.chain(self._manifest.listed(), self._manifest.unfinished()):
            if not self._is_meant(entry) and self._folder.held(entry) is not None:
                yield entry.name

    def _is_meant(self, entry: Entry) -> bool:
        return entry.of in self._selection.kinds and self._order.source in (None, entry.source)

    def _count(self, decision: Decision) -> None:
        outcome = self._outcome
        if decision.act in (Act.SAME, Act.CARRY):
            outcome.unchanged += 1
        elif decision.act in _KEPT:
            outcome.keep(_name(decision), _KEPT[decision.act])
        elif decision.act is Act.NAMELESS and decision.wanted is not None:
            outcome.fail(decision.wanted.entry, Failed("name_taken", "Other files have every name it could have."))
        if decision.act in (Act.EDITED, Act.FOREIGN, Act.NAMELESS) and decision.wanted is not None:
            self._not_placed(decision.wanted)

    # --- doing ---

    def _carry_out(self, plan: Spool, result: Spool, writes: int) -> None:
        placer = Placer(self._services, self._folder, self._order.link)
        removals = 0
        with closing(self._scratch.spool()) as later:
            for decision in map(decision_of, plan.lines()):
                if decision.act is Act.WRITE:
                    self._write(placer, decision, result)
                    done = self._outcome.written + self._outcome.linked
                    self._tell(f"{done} of {writes} files written")
                elif decision.act is Act.REMOVE:
                    later.write(decision.as_json())
                    removals += 1
            for decision in map(decision_of, later.lines()):
                self._remove(decision, result)
                self._tell(f"{self._outcome.removed} of {removals} files removed")

    def _write(self, placer: Placer, decision: Decision, result: Spool) -> None:
        wanted, old = decision.wanted, decision.old
        if wanted is None:
            return
        try:
            entry = placer.place(wanted, old)
        except Exception as error:
            self._failed(wanted.entry, error)
            self._not_placed(wanted)
            if old is not None and self._folder.held(old) is not None:
                result.write(old.as_json())
            return
        result.write(entry.as_json())
        if entry.link == "copy":
            self._outcome.written += 1
        else:
            self._outcome.linked += 1

    def _remove(self, decision: Decision, result: Spool) -> None:
        old = decision.old
        if old is None:
            return
        if len(self._unplaced) > _REMEMBERED or old.identity in self._unplaced:
            result.write(old.as_json())
            self._outcome.unchanged += 1
            return
        try:
            if self._folder.remove(old):
                self._outcome.removed += 1
            else:
                self._outcome.keep(old.name, _KEPT[Act.LEAVE])
        except OSError as error:
            self._failed(old, told(error))
            result.write(old.as_json())

    def _failed(self, entry: Entry, error: Exception) -> None:
        """Record a file's failure, unless every other one would fail as well."""
        found = as_error(error)
        if found.code == "disk_full":
            raise found
        if found.code == "export_failed" and not (self._outcome.root / WORK).is_dir():
            raise SetupError("export_failed", f"The folder {self._outcome.root} is not there any more.") from error
        self._outcome.fail(entry, found)

    def _not_placed(self, wanted: Wanted) -> None:
        if len(self._unplaced) <= _REMEMBERED:
            self._unplaced.add(wanted.entry.identity)


def _standing(plan: Spool) -> Iterator[str]:
    """Lines of what is there and stays, which is all that the manifest may name before anything is done."""
    for decision in map(decision_of, plan.lines()):
        if decision.act in (Act.SAME, Act.CARRY, Act.EDITED) and decision.old is not None:
            yield decision.old.as_json()


def _ours(plan: Spool) -> Iterator[str]:
    """Lines of what is ours and of what is about to be, whatever happens."""
    for decision in map(decision_of, plan.lines()):
        if decision.act in (Act.FOREIGN, Act.LEAVE, Act.FORGET, Act.NAMELESS):
            continue
        if decision.old is not None and (decision.news or decision.act is Act.WRITE):
            yield decision.old.as_json()
        if decision.act is Act.WRITE and decision.wanted is not None:
            yield decision.wanted.entry.as_json()


def _name(decision: Decision) -> str:
    return decision.wanted.entry.name if decision.wanted else decision.old.name if decision.old else ""
