"""Garbage collection: what no row and no intent names goes to the trash, and what was there long enough goes for good.

What belongs here: the decision what to collect, and in what order it is asked. What does not: moving files (`local`),
and which keys are named (`catalog`, through `References`).

An object is collected when it is older than a day by the store's own clock *and* unnamed, asked twice: for a whole
chunk, and for the key alone in the very moment of the move, when no writer can finish one (`Store.trash`). Nothing is
ever put back by the machine: a person can, as long as it is in the trash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from mirror_realm_assets.store.interface import Entry, Store, Swept

# A writer that lost its intent, a backup being restored, a person trying things: a day lets each of them finish.
MIN_AGE = timedelta(hours=24)
TRASH_AGE = timedelta(days=7)

_CHUNK = 500
_MAX_SAMPLE = 1000
_NOTHING = Swept()


class References(Protocol):
    """What the ledger knows of keys."""

    def named(self, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that a row or a live intent names.

        Intents have to be looked up *before* rows, or both in one snapshot: a write that is recorded between the two
        look-ups would otherwise be seen by neither.
        """
        ...


class Lease(AbstractContextManager[object], Protocol):
    """The right to collect this store, held from entering to leaving."""

    def renew(self) -> None:
        """Hold it longer.

        Raises:
            LeaseLost: another has it now.
        """
        ...


@dataclass(frozen=True)
class GcReport:
    """What a collection did, or would do.

    Attributes:
        dry_run: whether nothing was changed.
        scanned: objects looked at.
        kept: of these, named or too young.
        trashed: of these, moved to the trash.
        trashed_bytes: their size.
        trashed_keys: the first thousand of their keys.
        unfinished: drafts of dead writers, deleted.
        purged: what left the trash for good.
    """

    dry_run: bool
    scanned: int = 0
    kept: int = 0
    trashed: int = 0
    trashed_bytes: int = 0
    trashed_keys: tuple[str, ...] = ()
    unfinished: Swept = _NOTHING
    purged: Swept = _NOTHING


def collect(
    store: Store,
    refs: References,
    *,
    lease: Lease,
    dry_run: bool = False,
    min_age: timedelta = MIN_AGE,
    unfinished_age: timedelta = MIN_AGE,
    trash_age: timedelta = TRASH_AGE,
    on_progress: Callable[[GcReport], None] | None = None,
) -> GcReport:
    """Collect the garbage of a store.

    Args:
        store: the store.
        refs: what is named.
        lease: held meanwhile and renewed at every chunk; collecting twice at once would be safe, but useless.
        dry_run: report only.
        min_age: what was written less than this ago is not looked at.
        unfinished_age: how old a draft has to be before its writer is taken for dead; apart from `min_age`, because a
            draft has no name that could be asked for.
        trash_age: how long the trash keeps things.
        on_progress: called with the counts so far after every chunk.

    Returns:
        The counts.

    Raises:
        LeaseLost: another collector took over; what was moved until then stays in the trash.
    """
    report = GcReport(dry_run)
    with lease:
        before = store.clock() - min_age
        for chunk in _chunks(store.list()):
            lease.renew()
            report = _collect(store, refs, chunk, before, report)
            if on_progress:
                on_progress(report)
        lease.renew()
        return replace(
            report,
            unfinished=store.sweep_unfinished(unfinished_age, dry_run=dry_run),
            purged=store.empty_trash(trash_age, dry_run=dry_run, needed=lambda key: key in refs.named([key])),
        )


def _collect(store: Store, refs: References, chunk: Sequence[Entry], before: datetime, report: GcReport) -> GcReport:
    old = [entry for entry in chunk if entry.modified < before]
    named = refs.named([entry.key for entry in old]) if old else set()
    gone = [
        entry
        for entry in old
        if entry.key not in named
        and (report.dry_run or store.trash(entry.key, unless=lambda key: _needed(store, refs, key, before)))
    ]
    sample = report.trashed_keys + tuple(entry.key for entry in gone)
    return replace(
        report,
        scanned=report.scanned + len(chunk),
        kept=report.kept + len(chunk) - len(gone),
        trashed=report.trashed + len(gone),
        trashed_bytes=report.trashed_bytes + sum(entry.size for entry in gone),
        trashed_keys=sample[:_MAX_SAMPLE],
    )


def _needed(store: Store, refs: References, key: str, before: datetime) -> bool:
    """Whether the object was written again or named since the listing; also asked when it is in the trash already."""
    entry = store.head(key)
    return (entry is not None and entry.modified >= before) or key in refs.named([key])


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
