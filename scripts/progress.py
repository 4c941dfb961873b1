"""How far the work on the photos is, from the counts of the ledger.

What belongs here: plain arithmetic. What does not: reading the ledger, printing.
"""

from __future__ import annotations

from mirror_realm_assets.catalog.status import SourceStatus
from mirror_realm_assets.cli.output import human_seconds


def progress(found: SourceStatus, feature: str) -> tuple[int, int, bool]:
    """How many pictures are done, of how many, and whether nothing is left to be done."""
    counts = found.features[feature]
    open_ = counts["pending"] + counts["running"]
    total = open_ + counts["ok"] + counts["failed"] + counts["refused"]
    return counts["ok"], total, bool(found.files) and not open_


class Pace:
    """How long the rest will take, once two are done: before the first one, models had to be loaded."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def left(self, done: int, total: int, at: float) -> str:
        """In words; empty as long as it cannot be told."""
        if self._first is None:
            if done:
                self._first = (done, at)
            return ""
        first, since = self._first
        if not first < done < total:
            return ""
        return f"about {human_seconds((at - since) / (done - first) * (total - done))} left"
