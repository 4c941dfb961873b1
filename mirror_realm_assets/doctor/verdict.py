"""One thing that was looked at, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the check, stable: scripts may look for it.
        level: `fail` keeps something from working, `warn` makes it worse than it could be.
        found: what is so, for people.
        remedy: what a person can do; empty when nothing needs to be done.
        group: what it belongs to, for people.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""
    group: str = ""


def rate(name: str, found: str, *, warn: str = "", fail: str = "", group: str = "") -> Finding:
    """A finding whose level follows from the remedy that is needed, if any."""
    return Finding(name, "fail" if fail else "warn" if warn else "ok", found, fail or warn, group)
