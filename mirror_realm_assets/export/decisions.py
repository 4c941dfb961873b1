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

    def holds(self, entry: Entry) -> bool:
        """Whether the file of an entry is there as it was written."""


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


def decide(claims: Sequence[Entry], wanted: Wanted | None, is_meant: Callable[[Entry], bool], look: Look) -> Decision:
    """What to do about one name.

    Args:
        claims: what the manifest, and a run that was ended, say about it; the manifest first.
        wanted: what is to be there.
        is_meant: whether this run is about an entry's source and kind.
        look: at the folder.
    """
    mine = next((claim for claim in claims if look.holds(claim)), None)
    listed = bool(claims) and mine == claims[0]
    if wanted is None:
        return _unwanted(claims, mine, listed, is_meant, look)
    if mine is None:
        if not look.exists(wanted.entry.name):
            return Decision(Act.WRITE, wanted, None, news=bool(claims))
        if not claims:
            return Decision(Act.FOREIGN, wanted)
        old = replace(claims[0], edited=True)
        return Decision(Act.EDITED, wanted, old, news=old != claims[0])
    if (mine.name, mine.sha256) != (wanted.entry.name, wanted.entry.sha256):
        return Decision(Act.WRITE, wanted, mine, news=True)
    kept = replace(wanted.entry, mtime_ns=mine.mtime_ns, link=mine.link)
    return Decision(Act.SAME, wanted, kept, news=not listed or kept != mine)


def _unwanted(
    claims: Sequence[Entry], mine: Entry | None, listed: bool, is_meant: Callable[[Entry], bool], look: Look
) -> Decision:
    if not is_meant(claims[0]):
        return Decision(Act.CARRY, None, mine, news=not listed) if mine else Decision(Act.FORGET, news=True)
    if mine is not None:
        return Decision(Act.REMOVE, None, mine, news=True)
    act = Act.LEAVE if look.exists(claims[0].name) else Act.FORGET
    return Decision(act, None, claims[0], news=True)
