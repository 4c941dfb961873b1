"""What is to be done about each name: a function of what was exported, what is wanted, and what lies there.

What belongs here: that decision, and its form on a line. What does not: doing it (`exporting`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Protocol

from mirror_realm_assets.export.entries import Entry, Wanted, wanted_of


class Act(StrEnum):
    """What is done about a name."""

    SAME = "same"  # it is as it should be
    CARRY = "carry"  # it is of a source or kind that this run is not about
    WRITE = "write"
    REMOVE = "remove"
    EDITED = "edited"  # somebody changed it: it is kept
    FOREIGN = "foreign"  # something that is not ours has the name: it is kept
    FORGET = "forget"  # it is not there any more, and not wanted
    LEAVE = "leave"  # somebody changed it, and it is not wanted any more: it is theirs now
    NAMELESS = "nameless"  # every name that it could have is another file's


class Look(Protocol):
    """What a decision has to know of the folder."""

    def exists(self, name: str) -> bool:
        """Whether anything has that name."""

    def held(self, entry: Entry, *, read: bool = False) -> Entry | None:
        """An entry whose file is there as it was written, with the time that it has now; else None."""


@dataclass(frozen=True)
class Decision:
    """What is done about a name.

    Attributes:
        act: what.
        wanted: what is to be there.
        old: what the manifest says of what is there, or was.
        news: whether the manifest changes by it, before anything is done.
    """

    act: Act
    wanted: Wanted | None = None
    old: Entry | None = None
    news: bool = False

    def as_json(self) -> str:
        """One line."""
        wanted = self.wanted.as_json() if self.wanted else None
        old = asdict(self.old) if self.old else None
        return json.dumps([self.act, wanted, old, self.news])


def decision_of(line: str) -> Decision:
    """What `Decision.as_json` wrote."""
    act, wanted, old, news = json.loads(line)
    return Decision(Act(act), wanted_of(wanted) if wanted else None, Entry(**old) if old else None, news)


@dataclass(frozen=True)
class Claims:
    """What is known to be ours under one name.

    Attributes:
        listed: what the manifest says.
        unfinished: what a run that was ended says.
    """

    listed: Entry | None
    unfinished: Sequence[Entry] = ()

    @property
    def all(self) -> list[Entry]:
        """Both, the manifest's first."""
        return [*([self.listed] if self.listed else []), *self.unfinished]


def decide(claims: Claims, wanted: Wanted | None, is_meant: Callable[[Entry], bool], look: Look) -> Decision:
    """What to do about one name.

    Args:
        claims: on it; at least one where nothing is wanted.
        wanted: what is to be there.
        is_meant: whether this run is about an entry's source and kind.
        look: at the folder.
    """
    # Both versions of a file whose replacement was interrupted may have the same size and time.
    read = len({claim.sha256 for claim in claims.all}) > 1
    mine = next((held for claim in claims.all if (held := look.held(claim, read=read))), None)
    if wanted is None:
        return _unwanted(claims, mine, is_meant, look)
    if mine is None:
        return _not_mine(claims, wanted, look)
    if (mine.name, mine.sha256) != (wanted.entry.name, wanted.entry.sha256):
        return Decision(Act.WRITE, wanted, mine, news=True)
    kept = replace(wanted.entry, mtime_ns=mine.mtime_ns, link=mine.link)
    return Decision(Act.SAME, wanted, kept, news=kept != claims.listed)


def _not_mine(claims: Claims, wanted: Wanted, look: Look) -> Decision:
    known = [claim for claim in claims.all if claim.name == wanted.entry.name]
    if not look.exists(wanted.entry.name):
        return Decision(Act.WRITE, wanted, None, news=claims.listed is not None)
    if not known:
        return Decision(Act.FOREIGN, wanted)
    old = replace(known[0], edited=True)
    return Decision(Act.EDITED, wanted, old, news=old != claims.listed)


def _unwanted(claims: Claims, mine: Entry | None, is_meant: Callable[[Entry], bool], look: Look) -> Decision:
    first = claims.all[0]
    if not is_meant(first):
        news = mine is None or mine != claims.listed
        return Decision(Act.FORGET if mine is None else Act.CARRY, None, mine, news)
    if mine is not None:
        return Decision(Act.REMOVE, None, mine, news=True)
    return Decision(Act.LEAVE if look.exists(first.name) else Act.FORGET, None, first, news=True)
