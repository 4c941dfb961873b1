"""Reasons of refusals and failures as a table: capped, in words, and without a path."""

from __future__ import annotations

import pytest

from mirror_realm_assets.assets.reasons import refusals_table, words_of


def test_the_most_frequent_reasons_come_first_and_the_rest_is_counted_together() -> None:
    refusals = [(("failed", "model_failed", f"reason {n:02d}"), n) for n in range(1, 41)]
    rows = [record.data for record in refusals_table(refusals).records]
    assert len(rows) == 20
    assert [row["files"] for row in rows[:3]] == [40, 39, 38]
    assert rows[-1]["reason"] == "21 more reasons"
    assert sum(int(str(row["files"])) for row in rows) == sum(range(1, 41))


@pytest.mark.parametrize(
    ("status", "code", "retried"),
    [
        ("refused", "corrupt", "no"),
        ("failed", "io_error", "yes, 5 tries in all"),
        ("failed", "original_gone", "no, by `mirror-realm retry`"),
    ],
)
def test_a_row_says_whether_it_is_retried(status: str, code: str, retried: str) -> None:
    (record,) = refusals_table([((status, code, "It is so."), 3)]).records
    assert record.data["retried"] == retried


@pytest.mark.parametrize(
    "reason",
    [
        "FileNotFoundError: [Errno 2] No such file: '/home/anna/holiday.jpg'",
        "No space left for /mnt/photos/store.",
        "cannot open C:\\Users\\anna\\a.jpg",
        "cannot open ~/a.jpg",
        "",
    ],
)
def test_a_path_never_reaches_an_event(reason: str) -> None:
    assert words_of("io_error", reason) == "Io error."


@pytest.mark.parametrize(
    "reason", ["It is image/heic with 10/16 bits.", "The store could not serve objects/ab/cd.jpg: no space."]
)
def test_a_reason_without_a_path_is_told_as_it_is(reason: str) -> None:
    assert words_of("io_error", reason) == reason


def test_reasons_that_differ_in_their_paths_alone_are_one_row() -> None:
    refusals = [(("failed", "disk_full", f"No space left for /mnt/{n}."), 2) for n in range(30)]
    (record,) = refusals_table(refusals).records
    assert record.data["files"] == 60


def test_files_with_one_fault_stand_in_one_row_though_the_decoder_counts_their_bytes() -> None:
    reasons = [f"Its end is missing: image file is truncated{end}" for end in ("", " (8 bytes not processed)")]
    (record,) = refusals_table([(("refused", "truncated", reason), 2) for reason in reasons]).records
    assert (record.data["files"], record.data["reason"]) == (4, reasons[0])
