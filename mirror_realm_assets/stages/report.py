"""What a stage did to a batch, in numbers that fit an event."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.wants import Recipe

_MAX_PICTURES = 8


@dataclass
class StageReport:
    """Counts of one run of one stage; what was done before is counted apart, so that "nothing to do" shows.

    Attributes:
        batch, feature: what was worked on.
        counts: findings of this run by status.
        refused: reasons of refusals and failures by code.
        open_items: items of this feature that are still open afterwards.
        seconds: wall time.
        pixels, size: pixels and bytes of the pictures worked on.
        recipes: the recipes that were run, by digest.
        used: what the worker worked with, for people: model, device, precision, pictures at once.
        stored: sizes of the objects that were written, by key.
        skipped: why nothing was done at all, or None.
        stopped: why it ended before the batch was through, or None.
        pictures: small pictures for previews.
    """

    batch: str
    feature: str
    items: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    open_items: int = 0
    seconds: float = 0.0
    pixels: int = 0
    size: int = 0
    recipes: dict[str, Recipe] = field(default_factory=dict)
    used: dict[str, str | int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    skipped: str | None = None
    stopped: str | None = None
    pictures: list[tuple[bytes, ...]] = field(default_factory=list, repr=False)

    @property
    def done(self) -> int:
        """Findings of this run."""
        return sum(self.counts.values())

    def add(self, finding: Finding, pixels: int, size: int, pictures: tuple[bytes, ...]) -> None:
        """Count one finding."""
        self.counts[finding.status] += 1
        self.pixels += pixels
        self.size += size
        if finding.code and finding.status in ("failed", "refused"):
            self.refused[(finding.status, finding.code, finding.reason or "")] += 1
        if pictures and len(self.pictures) < _MAX_PICTURES:
            self.pictures.append(pictures)
