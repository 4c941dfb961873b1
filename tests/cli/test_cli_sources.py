"""The registry of sources on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_home import HOSTILE, Home, run, run_json, run_lines
from lab import Lab

from mirror_realm_assets.catalog import sources as registry
from mirror_realm_assets.resources.library import open_services

ESTIMATE = {
    "files", "bytes", "kinds", "too_large", "sampled", "search_seconds", "enhance_files", "enhance_seconds",
    "enhance_bytes", "not_wanted", "device", "precision", "seconds_per_megapixel", "rate_from", "search_bytes",
    "free_bytes", "fits",
}  # fmt: skip


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(lab)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "[red]more\x1b[31m"
    found.mkdir()
    (found / "a.png").write_bytes(b"x")
    return found


def test_add_registers_a_folder_with_its_options_and_prints_the_estimate(home: Home, folder: Path) -> None:
    found = run_json("sources", "add", "more", "--folder", str(folder), "--option", "enhance.max_pixels=5000",
                     "--option", "ignore=*.gif", "--option", "ignore=raw")  # fmt: skip
    assert set(found) == {"source", "estimate"}
    assert set(found["estimate"]) == ESTIMATE
    assert found["estimate"]["files"] == 1
    shown = run_json("sources", "show", "more")
    assert shown["options"]["enhance.max_pixels"] == 5000
    assert shown["options"]["ignore"] == ["*.gif", "raw"]
    assert (shown["name"], shown["state"], shown["kind"]) == ("more", "active", "folder")
    again = run_json("sources", "estimate", "more")
    assert again == found["estimate"] | {"free_bytes": again["free_bytes"]}
    listed = run_lines("sources", "list")
    assert [source["name"] for source in listed] == ["demo", "more"]
    assert listed[1]["options"] == {"enhance.max_pixels": 5000, "ignore": ["*.gif", "raw"]}


def test_words_for_people_go_to_stderr_and_nothing_is_obeyed(home: Home, folder: Path) -> None:
    result = run("sources", "add", "more", "--folder", str(folder), "--option", "faces=true")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "[red]more\\x1b[31m" in result.stderr
    assert "1 files, 1 B:" in result.stderr
    assert "The option faces is kept, and has no effect yet." in result.stderr
    for command in ("list", "show more", "estimate more", "check more"):
        told = run("sources", *command.split())
        assert told.exit_code == 0
        assert "\x1b" not in told.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("Upper",), "is no source name"),
        (("a" * 41,), "is no source name"),
        (("demo",), "There is a source 'demo' already."),
        (("x", "--option", "colour=red"), "There is no option 'colour'."),
        (("x", "--option", "enhance"), "is not of the form key=value"),
        (("x", "--option", "enhance.max_pixels=-1"), "Option 'enhance.max_pixels'"),
        (("x", "--option", "embedder=nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_registered_is_one_sentence_and_registers_nothing(
    home: Home, folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = run("sources", "add", *arguments, "--folder", str(folder), "--json")
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stdout == ""
    assert [source["name"] for source in run_lines("sources", "list")] == ["demo"]


def test_a_folder_that_is_not_there_is_not_registered(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("nowhere", "file"):
        result = run("sources", "add", "x", "--folder", str(tmp_path / path))
        assert result.exit_code == 1
        assert "There is no folder" in result.stderr
    assert run("sources", "add", "x").exit_code == 2


def test_options_are_changed_one_by_one(home: Home) -> None:
    assert run("sources", "set", "demo", "--option", "enhance=false").exit_code == 0
    assert run("sources", "set", "demo", "--option", "watch=poll").exit_code == 0
    assert run_lines("sources", "list")[0]["options"] == {"enhance": False, "watch": "poll"}
    assert run("sources", "set", "demo", "--option", "embedder=nonsense").exit_code == 1
    assert run_lines("sources", "list")[0]["options"] == {"enhance": False, "watch": "poll"}


def test_a_source_is_paused_and_goes_on(home: Home) -> None:
    assert run("sources", "pause", "demo").exit_code == 0
    shown = run_json("sources", "show", "demo")
    assert (shown["state"], shown["state_reason"]) == ("paused", "by hand")
    assert "paused (by hand)" in run("sources", "list").stdout
    assert run("sources", "resume", "demo").exit_code == 0
    assert run_json("sources", "show", "demo")["state"] == "active"


def test_a_removed_source_is_forgotten_and_its_files_are_not_touched(home: Home) -> None:
    picture = home.lab.picture("a.png")
    before = (picture.read_bytes(), picture.stat().st_mtime_ns)
    assert "not there yet" in run("sources", "remove", "demo", "--purge").stderr
    assert run("sources", "remove", "demo").exit_code == 0
    assert (picture.read_bytes(), picture.stat().st_mtime_ns) == before
    assert run_lines("sources", "list") == []
    for command in ("show", "pause", "resume", "remove", "estimate", "check"):
        result = run("sources", command, "demo")
        assert result.exit_code == 1
        assert "There is no source 'demo'." in result.stderr
    assert run("sources", "add", "demo", "--folder", str(home.lab.folder)).exit_code == 0
    assert run_json("sources", "show", "demo")["state"] == "active"


def test_check_tells_what_a_scan_would_see(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOSTILE:
        home.put(name)
    home.put(b".hidden")
    os.mkfifo(home.lab.folder / "pipe")
    found = run_json("sources", "check", "demo")
    assert found == {"source": "demo", "ok": True, "files": len(HOSTILE), "ignored": 1, "not_read": 1, "errors": []}
    (home.lab.folder / "closed").mkdir()
    listing = os.scandir

    def refusing(path: object) -> object:
        if os.fsencode(path).rstrip(b"/").endswith(b"/closed"):  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied")
        return listing(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refusing)
    partial = run("sources", "check", "demo", "--json")
    assert partial.exit_code == 1
    assert json.loads(partial.stdout)["errors"] == ["Permission denied"]
    assert "could not be read" in partial.stderr


def test_a_folder_that_went_away_is_said_with_its_remedy(home: Home, tmp_path: Path) -> None:
    home.lab.folder.rename(tmp_path / "away")
    for command in ("check", "estimate"):
        result = run("sources", command, "demo")
        assert result.exit_code == 1
        assert "mount the drive" in result.stderr


def test_without_a_home_every_command_says_to_run_init(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path / "none"))
    for command in (("sources", "list"), ("status",), ("files",), ("retry",), ("ingest", "demo")):
        result = run(*command)
        assert result.exit_code == 1
        assert "mirror-realm init" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_name_that_is_no_utf8_can_be_registered(home: Home, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    assert run("sources", "add", "odd", "--folder", str(odd)).exit_code == 0
    assert run_json("sources", "show", "odd")["folder"] == f"{tmp_path}/\\udcff"
    home.lab.services = open_services(home.lab.settings)
    with home.lab.catalog.read() as conn:
        assert registry.get(conn, "odd").root == os.fsencode(odd)


def test_a_person_confirms_deletions(home: Home) -> None:
    assert run_json("sources", "confirm-deletions", "demo") == {"source": "demo", "held": 0}
    assert home.lab.source.deletions_confirmed
    assert "0 files were held back" in " ".join(run("sources", "confirm-deletions", "demo").stderr.split())
    assert run("sources", "confirm-deletions", "nosuch").exit_code == 1


def test_history_tells_who_changed_what(home: Home) -> None:
    run("sources", "set", "demo", "--option", "enhance=true", "--option", "ignore=[old]")
    run("sources", "pause", "demo")
    run("retry")  # nothing had failed: nothing was changed
    lines = run("history", "--source", "demo", "--json").stdout.splitlines()
    paused, changed = (json.loads(line) for line in lines[:2])
    assert paused["action"] == "source_paused" and paused["source"] == "demo" and "@" in paused["actor"]
    assert changed["detail"]["options"]["ignore"][1]
    told = run("history", "--limit", "1").stdout
    assert len(told.splitlines()) == 1 and "source_paused demo by" in told
    assert run("history", "--source", "nosuch").stdout == ""


def test_an_archive_is_marked_when_it_is_named_and_taken_away_with_an_empty_one(home: Home, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    assert run("sources", "set", "demo", "--option", f"archive={archive}").exit_code == 0
    assert (archive / "mirror-realm-archive.json").is_file()
    assert run_json("sources", "show", "demo")["options"]["archive"] == str(archive)
    assert run("sources", "set", "demo", "--option", "archive=").exit_code == 0
    assert run_json("sources", "show", "demo")["options"]["archive"] is None


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("archive=relative/folder", "no absolute path"),
        ("archive.template={path}", "is no field"),
        ("archive.what=some", "archive.what"),
    ],
)
def test_an_archive_that_cannot_be_one_is_refused(home: Home, option: str, told: str) -> None:
    found = run("sources", "set", "demo", "--option", option)
    assert found.exit_code == 1 and told in found.stderr


def test_an_archive_in_a_watched_folder_or_in_our_own_is_refused(home: Home, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(lab.folder)
    for place in (lab.folder / "archive", lab.folder, tmp_path / "link" / "x", lab.settings.store_folder):
        found = run("sources", "set", "demo", "--option", f"archive={place}")
        assert found.exit_code == 1, place
    assert not (lab.folder / "archive").exists()
    archive = tmp_path / "wide" / "archive"
    assert run("sources", "set", "demo", "--option", f"archive={archive}").exit_code == 0
    found = run("sources", "add", "wide", "--folder", str(tmp_path / "wide"))
    assert found.exit_code == 1 and "would come in again" in found.stderr


def test_a_file_declares_sources_and_is_shown_before_it_is_done(home: Home, folder: Path, tmp_path: Path) -> None:
    declared = tmp_path / "sources.yaml"
    lines = ["sources:", f"  demo: {{folder: {home.lab.folder}, options: {{enhance: false}}}}", "  more:"]
    declared.write_text("\n".join([*lines, f"    folder: {json.dumps(str(folder))}", "    state: inactive"]))
    shown = run("sources", "apply", str(declared), "--dry-run")
    assert shown.exit_code == 0
    assert "+ more: " in shown.stdout and "[red]more\\x1b[31m, inactive" in shown.stdout
    assert "enhance: True -> False" in shown.stdout
    assert [source["name"] for source in run_lines("sources", "list")] == ["demo"]
    done = run_json("sources", "apply", str(declared))
    assert done == {
        "dry_run": False,
        "added": ["more"],
        "changed": [{"name": "demo", "fields": {"enhance": [True, False]}}],
        "removed": [],
        "unchanged": [],
        "others": [],
    }
    assert [source["state"] for source in run_lines("sources", "list")] == ["active", "paused"]
    assert "as declared" in run("sources", "apply", str(declared)).stdout


def test_every_fault_of_a_declaration_is_told_with_its_line(home: Home, tmp_path: Path) -> None:
    declared = tmp_path / "sources.yaml"
    declared.write_text("sources:\n  demo:\n    foldr: x\n    options: {enhanse: true}\n")
    result = run("sources", "apply", str(declared))
    assert result.exit_code == 1
    assert all(f"sources.yaml:{line}: " in result.stderr for line in (2, 3, 4))
    assert run_json("sources", "show", "demo")["options"]["enhance"] is True


def test_archives_of_declared_sources_may_not_lie_in_each_others_folders(home: Home, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    declared = tmp_path / "sources.yaml"
    declared.write_text(
        f"sources:\n  a: {{folder: {tmp_path / 'a'}, options: {{archive: {tmp_path / 'b' / 'archive'}}}}}\n"
        f"  b: {{folder: {tmp_path / 'b'}}}\n"
    )
    result = run("sources", "apply", str(declared))
    assert result.exit_code == 1
    assert "would come in again" in result.stderr
    assert [source["name"] for source in run_lines("sources", "list")] == ["demo"]
    assert not (tmp_path / "b" / "archive").exists()


def test_everything_is_paused_and_goes_on_but_what_was_paused_before(home: Home, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "third").mkdir()
    for name, root in (("more", folder), ("third", tmp_path / "third")):
        run("sources", "add", name, "--folder", str(root))
    run("sources", "pause", "more")

    def states() -> dict[str, str]:
        return {one["name"]: f"{one['state']} {one['state_reason']}" for one in run_lines("sources", "list")}

    assert run_json("pause", "--reason", "upgrade") == {"paused": ["demo", "third"]}
    told = "paused everything is paused: upgrade"
    assert states() == {"demo": told, "more": "paused by hand", "third": told}
    assert run_json("pause") == {"paused": []}
    assert run_json("resume") == {"resumed": ["demo", "third"]}
    assert states() == {"demo": "active None", "more": "paused by hand", "third": "active None"}
    assert run_json("resume") == {"resumed": []}
