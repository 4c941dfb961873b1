"""The table of all files for a spreadsheet or a notebook: one row for each place of each picture, as Parquet or CSV.

What belongs here: columns, and writing them a piece at a time, so that a million files need no more memory than a few.
What does not: choosing files, and where a table may be written (`cli.look`).
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mirror_realm_assets.catalog.listing import FileRow
from mirror_realm_assets.catalog.sources import display_path

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".parquet", ".csv")
_ROWS = 50_000  # of one piece, and of one row group; about 100 MB while it is written
_NUMBERS = ("part", "bytes", "width", "height")
_ORDER = ("media", "digest", "part", "source", "path", "path_b64", "location_state", "reason", "mime", "bytes",
          "width", "height")  # fmt: skip
_OF_FEATURE = ("status", "code", "reason", "attempts")
# A spreadsheet runs a cell that begins so as a formula, and a file may be called `=cmd|...`.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class _Writer(Protocol):
    def write(self, piece: pd.DataFrame) -> None: ...

    def close(self) -> None: ...


def columns(features: Sequence[str]) -> list[str]:
    """The columns of the table, in order."""
    return [*_ORDER, *(f"{feature}_{name}" for feature in features for name in _OF_FEATURE)]


def write(
    target: Path,
    files: Iterable[tuple[bytes, FileRow]],
    features: Sequence[str],
    on_progress: Callable[[int], None] = lambda _rows: None,
) -> int:
    """Write the table of `files` to `target`, replacing it only when everything was written.

    Args:
        target: ends in one of `FORMATS`, which decides the format.
        files: each with the root of its source.
        features: names of all features.
        on_progress: told how many rows are written.

    Returns:
        How many rows there are.

    Raises:
        OSError: the table cannot be written; then nothing is left behind.
    """
    rows = (row for root, file in files for row in _rows_of(root, file, features))
    count = 0
    with _beside(target) as unfinished:
        writer: _Writer = _Csv(unfinished) if target.suffix.lower() == ".csv" else _Parquet(unfinished, features)
        try:
            writer.write(_frame([], features))  # a table without rows has its columns
            while piece := list(islice(rows, _ROWS)):
                writer.write(_frame(piece, features))
                count += len(piece)
                on_progress(count)
        finally:
            writer.close()
    return count


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An unfinished file beside `target` that becomes it."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    unfinished = Path(name)
    try:
        yield unfinished
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o666 & ~umask)  # as any file a person makes; it was made for us alone
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _rows_of(root: bytes, file: FileRow, features: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a place, so that a filter on a path finds its file; `media` and `digest` tell what is the same file."""
    same: dict[str, Any] = {
        "media": file.media,
        "digest": file.digest,
        "part": file.part,
        "source": file.source,
        "reason": file.reason,
        "mime": file.mime,
        "bytes": file.bytes,
        "width": file.width,
        "height": file.height,
    }
    for feature in features:
        found = file.features[feature]
        same.update({f"{feature}_{name}": found[name] for name in _OF_FEATURE})
    for path, state in zip(file.paths, file.path_states, strict=True):
        full = os.path.join(root, path)  # noqa: PTH118 - bytes
        yield same | {"path": display_path(full), "path_b64": _base64(full), "location_state": state}


def _base64(path: bytes) -> str | None:
    """The exact bytes of a path that is no UTF-8."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return base64.b64encode(path).decode()
    return None


def _frame(rows: list[dict[str, Any]], features: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    numbers = {*_NUMBERS, *(f"{feature}_attempts" for feature in features)}
    names = columns(features)
    frame = pd.DataFrame.from_records(rows, columns=names)
    return frame.astype({name: "Int64" if name in numbers else "string" for name in names})


class _Csv:
    """UTF-8, a header, empty for what is unknown; an apostrophe before what a spreadsheet would take for a formula."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._header = True

    def write(self, piece: pd.DataFrame) -> None:
        texts = piece.select_dtypes("string")
        harmless = texts.apply(lambda column: column.where(~column.str.startswith(_FORMULA, na=False), "'" + column))
        piece.assign(**{str(name): harmless[name] for name in texts.columns}).to_csv(
            self._file, index=False, header=self._header, lineterminator="\n"
        )
        self._header = False

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A row group a piece; every value as it is."""

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = {*_NUMBERS, *(f"{feature}_attempts" for feature in features)}
        fields = [(name, pa.int64() if name in numbers else pa.string()) for name in columns(features)]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, piece: pd.DataFrame) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pandas(piece, schema=self._schema, preserve_index=False))

    def close(self) -> None:
        self._writer.close()
