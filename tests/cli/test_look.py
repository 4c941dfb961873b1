"""status, files, file and search: what people and scripts see of a library."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest
from cli_home import HOSTILE, Home, run, run_json, run_lines
from lab import Lab

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.pipeline import standard_stages

STATUSES = {"ok", "empty", "failed", "refused", "pending", "running", "not_wanted"}
FEATURES = {"raw_media", "embeddings", "enhanced_images"}
FILE_KEYS = {
    "media", "digest", "part", "source", "paths", "location_state", "reason", "mime", "bytes", "width", "height",
    "features",
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
    assert set(found) == {"sources"}
    demo = found["sources"]["demo"]
    assert {"files", "bytes", "batches", "locations", "features", "index"} <= set(demo)
    assert (demo["files"], demo["batches"], demo["locations"]) == (2, 1, {"present": 2})
    assert set(demo["features"]) == FEATURES
    assert all(set(counts) == STATUSES for counts in demo["features"].values())
    assert (demo["features"]["raw_media"]["ok"], demo["features"]["raw_media"]["refused"]) == (1, 1)
    assert demo["features"]["embeddings"]["pending"] == 1
    assert set(demo["index"]) == {"vectors", "tombstones", "segments", "model", "recall_at_10"}
    assert run_json("status", "--source", "demo") == found


def test_status_for_people_names_the_reason_of_a_pause_as_text(home: Home) -> None:
    with home.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused", "systemic: [red]\x1b[31mno memory")
    result = run("status")
    assert result.exit_code == 0
    assert "paused: systemic: [red]\\x1b[31mno memory" in result.stdout
    assert "\x1b" not in result.output


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


# --- file ---


def test_one_file_by_path_and_by_digest_with_its_history(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = home.lab.picture("a.png")
    home.read()
    by_path = run_json("file", str(picture))
    assert set(by_path) == FILE_KEYS | {"history", "batches"}
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


# --- search ---


def test_search_needs_a_picture(home: Home, tmp_path: Path) -> None:
    assert "Give a picture" in run("search", "cats").stderr
    assert run("search").exit_code == 1
    missing = run("search", "--like", str(tmp_path / "[red]none.png"))
    assert missing.exit_code == 1
    assert "Traceback" not in missing.output
    words = tmp_path / "words.png"
    words.write_text("no picture")
    assert run("search", "--like", str(words)).exit_code == 1
    assert run("search", "--like", str(words), "-k", "0").exit_code == 2


@pytest.mark.parametrize("command", [("status",), ("files",), ("search", "--like", "x.png")])
def test_an_unknown_source_is_an_error(home: Home, command: tuple[str, ...]) -> None:
    result = run(*command, "--source", "nobody")
    assert result.exit_code == 1
    assert "There is no source 'nobody'." in result.stderr
    assert result.stdout == ""
