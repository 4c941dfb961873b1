"""What a person asks of an export, and what came of it.

What belongs here: these values. What does not: carrying them out (`exporting`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.export.entries import ENHANCED, Entry
from mirror_realm_assets.export.placing import Link
from mirror_realm_assets.export.selection import DEFAULT_TEMPLATE

SHOWN = 1000
"""So many of the files that were kept or failed are named one by one."""


@dataclass(frozen=True)
class Order:
    """What a person asks for.

    Attributes:
        folder: where to.
        source: of one source, or None for all.
        template: of the names.
        kinds: `enhanced`, `original`, or both.
        link: see `placing.Placer`.
        dry_run: only say what would be done.
        into_existing: whether other files may lie there.
    """

    folder: Path
    source: str | None = None
    template: str = DEFAULT_TEMPLATE
    kinds: tuple[str, ...] = (ENHANCED,)
    link: Link = "auto"
    dry_run: bool = False
    into_existing: bool = False


@dataclass(frozen=True)
class Failure:
    """A file that could not be exported."""

    entry: Entry
    code: str
    reason: str


@dataclass
class Outcome:
    """What a run did, or would do.

    Attributes:
        root: the folder.
        written: files whose bytes were copied; of a dry run all that would be put in place.
        linked: files that share their bytes with the store or an original.
        unchanged: files that were as they should be.
        removed: files that are not wanted any more.
        kept: files that somebody changed, or that are not ours.
        kept_files: the first of them, each with why.
        failures: files that could not be exported.
        failed: the first of them.
    """

    root: Path
    written: int = 0
    linked: int = 0
    unchanged: int = 0
    removed: int = 0
    kept: int = 0
    kept_files: list[tuple[str, str]] = field(default_factory=list)
    failures: int = 0
    failed: list[Failure] = field(default_factory=list)

    def keep(self, name: str, why: str) -> None:
        """Count a file that is kept."""
        self.kept += 1
        if len(self.kept_files) < SHOWN:
            self.kept_files.append((name, why))

    def fail(self, entry: Entry, error: MirrorRealmError) -> None:
        """Count a file that could not be exported."""
        self.failures += 1
        if len(self.failed) < SHOWN:
            self.failed.append(Failure(entry, error.code, str(error)))
