"""status, files and file: what people and scripts see of a library."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from cli_home import HOSTILE, Home, run, run_json, run_lines
from click.testing import CliRunner
from lab import Lab

from mirror_realm_assets.catalog import progress, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.files import location_failed
from mirror_realm_assets.catalog.listing import FileRow
from mirror_realm_assets.cli import look
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.file_table import columns, write
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.pipeline import standard_stages

STATUSES = {"ok", "empty", "failed", "refused", "pending", "running", "not_wanted"}
FEATURES = {"raw_media", "embeddings", "enhanced_images", "archived_media"}
FILE_KEYS = {
    "media", "digest", "part", "source", "paths", "location_state", "reason", "mime", "bytes", "width", "height",
    "features", "stack",
}  # fmt: skip


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(lab)


def lines(*arguments: str) -> list[dict[str, object]]:
    return run_lines("files", *arguments)


# --- status ---


def test_status_has_the_shape_of_the_contract(home: Home) -> None:
    home.lab.picture("a.png")
    home.put(b"words.jpg")
    home.read()
    found = run_json("status")
    assert set(found) == {"sources", "running", "free_bytes", "up"}
    demo = found["sources"]["demo"]
    assert {"files", "bytes", "batches", "locations", "features", "index"} <= set(demo)
    assert (demo["files"], demo["batches"], demo["locations"]) == (2, 1, {"present": 2})
    assert set(demo["features"]) == FEATURES
    assert all(set(counts) == STATUSES for counts in demo["features"].values())
    assert (demo["features"]["raw_media"]["ok"], demo["features"]["raw_media"]["refused"]) == (1, 1)
    assert demo["features"]["embeddings"]["pending"] == 1
    assert set(demo["index"]) == {"vectors", "tombstones", "segments", "model", "recall_at_10"}
    assert demo["lanes"]["enhance"] == {"pictures_per_second": None, "seconds_left": None}
    assert (demo["last_failure"], demo["index_error"], found["running"], found["up"]) == (None, None, [], False)
    assert run_json("status", "--source", "demo")["sources"] == found["sources"]


def test_status_for_people_names_the_reason_of_a_pause_as_text(home: Home) -> None:
    with home.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused", "systemic: [red]\x1b[31mno memory")
    result = run("status")
    assert result.exit_code == 0
    assert "paused: systemic: [red]\\x1b[31mno memory" in result.stdout
    assert "\x1b" not in result.output


def test_a_limit_that_was_raised_shows_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the next sweep has formed batches for it."""
    home.lab.picture("a.png", size=(64, 48))
    monkeypatch.setenv("MIRROR_REALM_MAX_PIXELS", "100")
    home.lab.settings = home.lab.settings.model_copy(update={"max_pixels": 100})
    home.read()
    counts = run_json("status")["sources"]["demo"]["features"]
    assert (counts["raw_media"]["refused"], counts["embeddings"]["pending"]) == (1, 0)
    monkeypatch.delenv("MIRROR_REALM_MAX_PIXELS")
    counts = run_json("status")["sources"]["demo"]["features"]
    assert (counts["raw_media"]["pending"], counts["embeddings"]["pending"]) == (1, 1)
    assert lines()[0]["features"]["raw_media"]["status"] == "pending"  # type: ignore[index]


def test_a_failure_is_named_with_its_file_and_where_to_see_more(home: Home) -> None:
    home.put(b"[red].jpg")
    home.lab.form(standard_stages(home.lab.settings))
    with home.lab.catalog.write() as conn:
        location_id = conn.execute(sa.select(t.locations.c.id)).scalar_one()
        location_failed(conn, location_id, "io_error", "The disk \x1b[31m is ill.", None)
    failure = run_json("status")["sources"]["demo"]["last_failure"]
    assert (failure["feature"], failure["code"], failure["path"]) == ("raw_media", "io_error", "[red].jpg")
    told = run("status").stdout
    assert "last failure: raw_media of [red].jpg: io_error" in told
    assert "mirror-realm files --source demo --status failed" in told
    assert "\x1b" not in told


def test_speed_is_told_of_work_that_goes_on_and_unknown_of_other() -> None:
    at = datetime(2026, 5, 1, tzinfo=UTC)
    ended = [(at - timedelta(seconds=n), 2.0) for n in range(0, 20, 2)]
    assert progress.speed(ended, at) == pytest.approx(0.5)
    assert progress.speed(ended[:1], at) is None
    assert progress.speed(ended, at + timedelta(minutes=5)) is None
    counts = {"a": {"pending": 10, "running": 0}, "b": {"pending": 0, "running": 0}}
    assert progress.seconds_left(counts, ["a", "b"], {"a": 0.5}) == 20
    assert progress.seconds_left(counts, ["a"], {"a": None}) is None
    assert progress.seconds_left(counts, ["b"], {}) == 0


def test_watching_without_a_terminal_says_what_changed_and_an_interrupt_ends_it_well(home: Home) -> None:
    home.lab.picture("a.png")
    program = subprocess.Popen(
        [sys.executable, "-m", "mirror_realm_assets.cli", "status", "--watch"], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith("demo: 0 files; raw_media nothing;")
    home.lab.form(standard_stages(home.lab.settings))
    assert program.stdout.readline().startswith("demo: 1 files; raw_media 1 pending;")
    program.send_signal(signal.SIGINT)
    assert program.wait(20) == 0
    assert program.stdout.read() == ""


def test_watching_waits_for_a_catalog_that_does_not_answer_for_a_while(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(look, "_WATCH_SECONDS", 0.05)
    readings = look._readings(home.lab.settings, home.lab.services, None)
    assert set(next(readings).sources) == {"demo"}
    with contextlib.closing(
        sqlite3.connect(home.lab.settings.home / "catalog.sqlite", check_same_thread=False)
    ) as other:
        other.execute("ALTER TABLE sources RENAME TO away")
        threading.Timer(0.5, lambda: other.execute("ALTER TABLE away RENAME TO sources")).start()
        assert set(next(readings).sources) == {"demo"}
    assert "The catalog does not answer just now" in capsys.readouterr().err


# --- files ---


def test_a_line_a_file_with_the_keys_of_the_contract(home: Home) -> None:
    picture = home.lab.picture("a.png")
    home.put(b"words.jpg")
    (home.lab.folder / "link.png").symlink_to("/etc/passwd")
    home.read()
    home.lab.picture("new.png", 5)
    home.lab.form(standard_stages(home.lab.settings))
    found = {str(row["paths"]): row for row in lines()}
    assert len(found) == 4
    assert all(set(row) == FILE_KEYS for row in found.values())
    good = found[str([str(picture)])]
    assert good["digest"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert (good["source"], good["part"], good["location_state"], good["mime"]) == ("demo", 0, "present", "image/png")
    assert (good["width"], good["height"], good["bytes"]) == (32, 24, picture.stat().st_size)
    features = good["features"]
    assert isinstance(features, dict)
    assert set(features) == FEATURES
    assert set(features["raw_media"]) == {"status", "reason", "code", "attempts", "output", "recipe"}
    states = {path: row["features"]["raw_media"]["status"] for path, row in found.items()}  # type: ignore[index]
    folder = home.lab.folder
    assert states == {
        str([str(picture)]): "ok",
        str([f"{folder}/words.jpg"]): "refused",
        str([f"{folder}/link.png"]): "refused",
        str([f"{folder}/new.png"]): "pending",
    }
    assert found[str([f"{folder}/link.png"])]["location_state"] == "ignored"
    assert found[str([f"{folder}/new.png"])]["digest"] is None


def test_files_are_chosen_by_feature_and_status(home: Home) -> None:
    home.lab.picture("a.png")
    home.put(b"words.jpg")
    home.read()

    def names(*arguments: str) -> list[str]:
        return [Path(path).name for row in lines(*arguments) for path in row["paths"]]  # type: ignore[attr-defined]

    assert names("--status", "refused") == ["words.jpg"]
    assert names("--feature", "embeddings", "--status", "pending") == ["a.png"]
    assert names("--feature", "raw_media", "--status", "pending") == []
    assert names("--source", "demo", "--status", "ok") == ["a.png"]


@pytest.mark.parametrize("with_files", [False, True])
def test_an_unknown_feature_is_an_error_and_no_empty_answer(home: Home, with_files: bool) -> None:
    if with_files:
        home.lab.picture("a.png")
        home.read()
    result = run("files", "--feature", "nonsense")
    assert result.exit_code == 1
    assert "There is no feature 'nonsense'." in result.stderr
    assert "embeddings" in result.stderr


def test_hostile_names_stay_text_and_json_keeps_every_byte(home: Home) -> None:
    paths = {home.put(name, b"no picture " + name) for name in HOSTILE}
    home.read()
    for command in (("files",), ("files", "--json"), ("status",)):
        result = run(*command)
        assert result.exit_code == 0, result.stderr
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in result.output.replace("\n", "")), command
    people = run("files").stdout
    for shown in ("<img onerror=alert(1)>.jpg", "[red].jpg", "a\\x1b[31mb.jpg", "\\udcff\\udcfe.jpg", ":smile:.jpg"):
        assert shown in people
    rows = lines()
    kept = {base64.b64decode(b64) for row in rows for b64 in row.get("paths_b64", [])}  # type: ignore[attr-defined]
    assert kept == {path for path in paths if b"\xff" in path}
    plain = {path for row in rows if "paths_b64" not in row for path in row["paths"]}  # type: ignore[attr-defined]
    assert {os.fsencode(path) for path in plain} | kept == paths


# --- files --export ---


def table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_has_a_row_for_each_place_and_the_statuses_of_its_file(home: Home, tmp_path: Path, suffix: str) -> None:
    picture = home.lab.picture("a.png")
    home.put(b"b.png", picture.read_bytes())
    home.put(b"\xff.jpg")
    home.read()
    target = tmp_path / f"files{suffix}"
    result = run("files", "--export", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"3 rows are in {target}" in result.stderr
    found = table(target).set_index("path")
    assert list(found.columns) == [name for name in columns(list(standard(home))) if name != "path"]
    assert {Path(path).name for path in found.index} == {"a.png", "b.png", "\\udcff.jpg"}
    good, odd = found.loc[str(picture)], found.loc[f"{home.lab.folder}/\\udcff.jpg"]
    assert (good["raw_media_status"], int(good["width"]), good["location_state"]) == ("ok", 32, "present")
    assert base64.b64decode(odd["path_b64"]).endswith(b"/\xff.jpg")
    assert found["digest"].value_counts().max() == 2
    assert run("files", "--export", str(target), "--status", "refused").exit_code == 0
    assert list(table(target)["raw_media_status"]) == ["refused"]


def standard(home: Home) -> list[str]:
    return [stage.feature for stage in standard_stages(home.lab.settings)]


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path: Path) -> None:
    row = FileRow(None, None, 0, "=1+1", [b"a.jpg"], "present", "@SUM(A1)", None, 1, None, None, {}, ["present"])
    assert write(tmp_path / "a.csv", [(b"-1", row)], []) == 1
    found = table(tmp_path / "a.csv").iloc[0]
    assert (found["source"], found["reason"], found["path"]) == ("'=1+1", "'@SUM(A1)", "'-1/a.jpg")
    assert write(tmp_path / "a.parquet", [(b"-1", row)], []) == 1
    assert table(tmp_path / "a.parquet").iloc[0]["source"] == "=1+1"


def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[bytes, FileRow]]:
        yield b"/", FileRow(None, None, 0, "a", [b"a"], "present", None, None, 1, None, None, {}, ["present"])
        raise OSError("gone")

    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(OSError, match="gone"):
        write(tmp_path / "a.csv", broken(), [])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_table_is_never_written_into_a_source_or_in_another_format(home: Home, tmp_path: Path) -> None:
    (tmp_path / "way in").symlink_to(home.lab.folder)
    for folder in (home.lab.folder, tmp_path / "way in"):
        result = run("files", "--export", str(folder / "a.csv"))
        assert result.exit_code == 1
        assert "never written to" in result.stderr
    assert list(home.lab.folder.iterdir()) == []
    assert run("files", "--export", str(tmp_path / "a.xlsx")).exit_code == 2
    assert run("files", "--export", str(tmp_path / "none" / "a.csv")).exit_code == 1


# --- file ---


def test_one_file_by_path_and_by_digest_with_its_history(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = home.lab.picture("a.png")
    home.read()
    by_path = run_json("file", str(picture))
    assert FILE_KEYS | {"history", "batches", "places", "others", "image_digest", "exif", "taken_at"} <= set(by_path)
    assert (by_path["sidecars"], by_path["stack"]) == ([], None)
    assert run_json("file", by_path["digest"]) == by_path
    monkeypatch.chdir(home.lab.folder)
    assert run_json("file", "../photos/./a.png") == by_path
    assert [version["digest"] for version in by_path["history"]] == [by_path["digest"]]
    (batch,) = by_path["batches"]
    assert batch["kind"] == "ingest"
    assert {item["feature"]: item["outcome"] for item in batch["items"]}["raw_media"] == "ok"
    words = run("file", str(picture))
    assert words.exit_code == 0
    assert by_path["digest"] in words.stdout


def test_the_same_bytes_in_two_sources_and_the_first_digits_of_a_digest(home: Home, tmp_path: Path) -> None:
    picture = home.lab.picture("a.png")
    more = tmp_path / "more"
    more.mkdir()
    (more / "copy.png").write_bytes(picture.read_bytes())
    with home.lab.catalog.write() as conn:
        other = sources.add(conn, "more", os.fsencode(more), {})
    FolderWatch(home.lab.catalog, home.lab.settings, other).scan()
    home.read()
    found = run_json("file", str(picture))
    assert [each["source"] for each in found["others"]] == ["more"]
    assert {place["path"] for place in found["places"]} == {str(picture), str(more / "copy.png")}
    assert run_json("file", found["digest"][:8]) == found
    assert run_json("file", found["image_digest"])["digest"] == found["digest"]
    assert run("file", found["digest"][:7]).exit_code == 1
    assert str(more / "copy.png") in run("file", str(picture)).stdout


def test_a_file_that_was_deleted_is_still_known(home: Home) -> None:
    picture, kept = home.lab.picture("a.png", 1), home.lab.picture("b.png", 2)
    home.read()
    picture.unlink()
    home.read()
    found = run_json("file", str(picture))
    assert (found["location_state"], found["places"][0]["state"]) == ("missing", "missing")
    assert run_json("file", str(kept))["location_state"] == "present"


def test_what_is_refused_says_what_to_do(home: Home) -> None:
    path = os.fsdecode(home.put(b"empty.jpg", b""))
    home.read()
    told = run("file", path).stdout
    assert "raw_media is refused: empty_file" in told
    assert "Copy the file again" in told


def test_a_file_of_any_name_is_found_by_its_path(home: Home) -> None:
    paths = [os.fsdecode(home.put(name, b"no picture " + name)) for name in HOSTILE]
    home.read()
    for path in paths:
        assert run_json("file", path)["features"]["raw_media"]["status"] == "refused"
        words = run("file", path)
        assert words.exit_code == 0
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in words.output.replace("\n", ""))


def test_a_folder_registered_by_a_roundabout_path_is_found_too(home: Home, tmp_path: Path) -> None:
    picture = home.lab.picture("a.png")
    with home.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "removed")
        sources.add(conn, "demo", os.fsencode(tmp_path / "photos" / ".." / "photos"), {})
    home.read()
    assert run_json("file", str(picture))["source"] == "demo"


def test_an_unknown_file_is_an_error(home: Home) -> None:
    for unknown in ("/nowhere/a.png", "0" * 64, "\udcff"):
        result = run("file", unknown)
        assert result.exit_code == 1
        assert "Nothing is known of" in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("command", [("status",), ("files",), ("search", "--like", __file__)])
def test_an_unknown_source_is_an_error(home: Home, command: tuple[str, ...]) -> None:
    result = run(*command, "--source", "nobody")
    assert result.exit_code == 1
    assert "There is no source 'nobody'." in result.stderr
    assert result.stdout == ""


def test_the_counts_fit_into_80_columns(home: Home) -> None:
    home.lab.picture("a.png")
    home.put(b"words.jpg")
    home.read()
    text = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["status"]).stdout
    (title,) = [line for line in text.splitlines() if line.strip().startswith("demo  ")]
    assert "2 files" in title
    assert "1 batch" in title
    for feature in FEATURES:
        assert any(line.split()[:1] == [feature] for line in text.splitlines()), text
    counted, _colon, _words = text.partition("demo: ")
    assert max(map(len, counted.splitlines())) <= 80
