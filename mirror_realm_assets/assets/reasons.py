"""Why files were refused or failed, as a table of a materialization.

What belongs here: rows and words for people. What does not: the reasons themselves (`errors`). Events are kept for
years and copied into backups, so no path and no file name stands in one: a reason that seems to hold a path is told by
its code alone, and `mirror-realm files` shows the rest.
"""

import re
from collections.abc import Iterable

import dagster as dg

from mirror_realm_assets.errors import REASONS

_MAX_ROWS = 20
# An absolute path at the beginning of a word. A key of the store and a mime type have their slash inside.
_PATH = re.compile(r"(?:^|[\s'\"`(\[{=<:,])(?:~?[/\\]|[A-Za-z]:\\)[^\s/]")
# What a decoder says of one file only, so that files with one fault stand in one row.
_OF_ONE_FILE = re.compile(r"\s*\(\d+ bytes not processed\)")
_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn("status", description="refused: the file's fault; failed: ours or the machine's"),
        dg.TableColumn("code", description="as in `mirror-realm files --json` and the reference of errors"),
        dg.TableColumn("reason"),
        dg.TableColumn("files", "int"),
        dg.TableColumn("retried", description="without anybody's doing; a refused file is, when it or a limit changes"),
        dg.TableColumn("remedy", description="what a person can do"),
    ]
)

Refusal = tuple[tuple[str, str, str], int]  # status, code and reason of some files, and how many they are


def refusals_table(refusals: Iterable[Refusal]) -> dg.TableMetadataValue:
    """The table: the most frequent reasons first, at most 20 rows, the rest counted together in the last one."""
    merged: dict[tuple[str, str, str], int] = {}
    for (status, code, reason), count in refusals:
        key = (status, code, words_of(code, reason))
        merged[key] = merged.get(key, 0) + count
    rows = sorted(merged.items(), key=lambda row: (-row[1], row[0]))
    shown = rows if len(rows) <= _MAX_ROWS else rows[: _MAX_ROWS - 1]
    rest = rows[len(shown) :]
    records = [_record(status, code, reason, count) for (status, code, reason), count in shown]
    if rest:
        files = sum(count for _row, count in rest)
        told = {"status": "", "code": "", "reason": f"{len(rest)} more reasons", "retried": "", "remedy": ""}
        records.append(dg.TableRecord(told | {"files": files}))
    return dg.MetadataValue.table(records, _SCHEMA)


def words_of(code: str, reason: str) -> str:
    """A reason for people, without a path and as text that is no markup; the code's own words when there is none."""
    if not reason or _PATH.search(reason):
        return code.replace("_", " ").capitalize() + "."
    return plain(_OF_ONE_FILE.sub("", reason))


def plain(text: str) -> str:
    """Text as text: the UI renders cells and words, and a reason may quote what a file says."""
    return text.replace("<", "‹").replace(">", "›")


def _record(status: str, code: str, reason: str, files: int) -> dg.TableRecord:
    known = REASONS.get(code)
    return dg.TableRecord(
        {
            "status": status,
            "code": code,
            "reason": reason,
            "files": files,
            "retried": _retried(status, code),
            "remedy": known.remedy if known else "",
        }
    )


def _retried(status: str, code: str) -> str:
    if status == "refused":
        return "no"
    known = REASONS.get(code)
    if known is None or not known.retry.retryable:
        return "no, by `mirror-realm retry`"
    return f"yes, {known.retry.max_attempts} tries in all"
