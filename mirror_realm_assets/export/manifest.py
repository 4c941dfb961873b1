"""The manifest of an exported folder, and the record of what an unfinished run was about to do.

What belongs here: these two files, their form, and writing them whole. What does not: what stands in them (`entries`).

The manifest never names what is not there: what a run will replace or remove is taken out of it before, and what it
writes comes in afterwards. In between both stand in the other file, by which the next run knows them as ours.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.export.entries import Entry, entry_of
from mirror_realm_assets.export.folder import WORK, sync

MANIFEST = "mirror-realm-export.jsonl"
"""Stands in every exported folder: a head, then a line for each file."""
_UNFINISHED = "unfinished.jsonl"
_LAYOUT = 1


class Manifest:
    """The manifest in a folder.

    Args:
        root: the folder.
        library: identity of the catalog.
    """

    def __init__(self, root: Path, library: str) -> None:
        self.path = root / MANIFEST
        self._work = root / WORK
        self._unfinished = self._work / _UNFINISHED
        self._library = library

    def check(self) -> None:
        """See that the manifest is one of this library, if there is one.

        Raises:
            SetupError: `invalid_argument`.
        """
        if os.path.lexists(self.path):
            head = self._head()
            if head.get("library") != self._library:
                raise SetupError(
                    "invalid_argument",
                    f"{self.path} was written by another library.",
                    remedy="Export to another folder: what the other one exported would be removed here.",
                )

    def listed(self) -> Iterator[Entry]:
        """What the manifest names.

        Raises:
            SetupError: `invalid_argument` when a line is none of ours.
        """
        yield from _read(self.path)

    def unfinished(self) -> Iterator[Entry]:
        """What an unfinished run was about to do, or had done; the same file may be named twice.

        Raises:
            SetupError: `invalid_argument` when a line is none of ours.
        """
        yield from _read(self._unfinished)

    def begin(self, lines: Iterable[str]) -> None:
        """Make the work folder, with a record of what was ours and of what is about to be.

        Args:
            lines: of entries.

        Raises:
            OSError: it cannot be written.
            SetupError: `export_failed` when something else has the folder's name.
        """
        if self._work.is_symlink():
            raise SetupError("export_failed", f"{self._work} is a link.", remedy="Take it away.")
        self._work.mkdir(exist_ok=True)
        for draft in self._work.glob("*.part"):
            draft.unlink(missing_ok=True)
        self._write(self._unfinished, lines)
        sync(self._work.parent)

    def write(self, lines: Iterable[str]) -> None:
        """Replace the manifest, at once.

        Args:
            lines: of entries.

        Raises:
            OSError: it cannot be written; then the old one stays.
        """
        self._write(self.path, lines)

    def end(self) -> None:
        """The run is done: the manifest says everything."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _write(self, target: Path, lines: Iterable[str]) -> None:
        draft = self._work / f"{target.name}.part"
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            head = {"layout": _LAYOUT, "written_by": "mirror-realm export", "library": self._library}
            file.write(json.dumps(head) + "\n")
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        sync(target.parent)

    def _head(self) -> dict[str, object]:
        try:
            with self.path.open(encoding="utf-8") as file:
                head = json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise _unreadable(self.path) from error
        if not isinstance(head, dict) or head.get("layout") != _LAYOUT:
            raise _unreadable(self.path)
        return head


def _read(path: Path) -> Iterator[Entry]:
    if not os.path.lexists(path):
        return
    with path.open(encoding="utf-8") as file:
        try:
            next(file)
            for line in file:
                yield entry_of(line)
        except (ValueError, TypeError, StopIteration) as error:
            raise _unreadable(path) from error


def _unreadable(path: Path) -> SetupError:
    return SetupError(
        "invalid_argument",
        f"{path} cannot be read as a manifest of this version.",
        remedy="Put back what was there, or export to another folder.",
    )
