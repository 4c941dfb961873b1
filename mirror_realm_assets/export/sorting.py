"""Sorting more lines than memory should hold.

What belongs here: records of a key and a payload, sorted in pieces that go through unnamed temporary files. What does
not: what the records say. A process that is killed leaves nothing behind: the files have no names.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

Record = tuple[str, str]
_RECORDS = 50_000  # in memory at once: about 50 MB of export records


class Scratch:
    """Temporary files of one run.

    Args:
        folder: on whose disk they lie.
        records: how many are sorted in memory at once.
    """

    def __init__(self, folder: Path, records: int = _RECORDS) -> None:
        self._folder = folder
        self._records = records

    def sorted(self, records: Iterable[Record]) -> Iterator[Record]:
        """`records` in the order of key and payload; neither may hold a line end, nor a key a tab.

        Raises:
            OSError: there is no room for the temporary files.
        """
        source = iter(records)
        with ExitStack() as stack:
            pieces: list[Iterable[Record]] = []
            while piece := sorted(islice(source, self._records)):
                pieces.append(piece if len(piece) < self._records and not pieces else self._spilled(stack, piece))
            yield from heapq.merge(*pieces)

    def spool(self) -> Spool:
        """A place for lines that are read again."""
        return Spool(self._file())

    def _spilled(self, stack: ExitStack, piece: list[Record]) -> Iterator[Record]:
        file = stack.enter_context(self._file())
        file.writelines(f"{key}\t{payload}\n" for key, payload in piece)
        file.seek(0)
        return _records(file)

    def _file(self) -> IO[str]:
        return tempfile.TemporaryFile("w+", dir=self._folder, encoding="utf-8", newline="\n")


class Spool:
    """Lines that are written once and read as often as is needed; closed by whoever asked for it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Add a line, without its end."""
        self._file.write(f"{line}\n")

    def lines(self) -> Iterator[str]:
        """All lines; nothing may be added meanwhile."""
        self._file.flush()
        self._file.seek(0)
        for line in self._file:
            yield line.rstrip("\n")

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


def _records(file: IO[str]) -> Iterator[Record]:
    for line in file:
        key, _tab, payload = line.rstrip("\n").partition("\t")
        yield key, payload
