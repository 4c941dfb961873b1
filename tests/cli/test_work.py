"""ingest and retry, as far as no weights are needed: what they refuse, and what they put back."""

from __future__ import annotations

import json

import pytest
from cli_home import Home, run, run_json
from lab import Lab

from mirror_realm_assets.catalog import features, files, sources, status
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.cli import work
from mirror_realm_assets.ingest.one_scan import Scanned
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import open_services


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.setenv("MIRROR_REALM_QUIET_SECONDS", "0")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(lab)


def fail(home: Home, feature: str, *, final: bool = True, most: int = 10**6) -> None:
    """`feature` of so many pictures failed, for the last time; all others are done."""
    (stage,) = [stage for stage in standard_stages(home.lab.settings) if stage.feature == feature]
    recipe = stage.recipe(home.lab.source.policy)
    assert recipe is not None
    home.lab.services = open_services(home.lab.settings)
    with home.lab.catalog.write() as conn:
        for number, digest in enumerate(conn.execute(t.parts.select()).mappings().all()):
            key = FeatureKey(digest["image_digest"], 0, feature, recipe.digest)
            bad = Finding("failed", code="model_failed", reason="no [luck]")
            features.write(conn, key, recipe, bad if number < most else Finding("ok", {}), final=final)


def count(home: Home, feature: str, of: str) -> int:
    return int(run_json("status")["sources"]["demo"]["features"][feature][of])


def test_ingest_refuses_what_it_cannot_work_on(home: Home) -> None:
    assert "There is no source 'nobody'." in run("ingest", "nobody").stderr
    with home.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused", "systemic: [red]no memory")
    result = run("ingest", "demo", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Source demo is paused: systemic: [red]no memory." in result.stderr
    assert "sources resume demo" in result.stderr


def test_ingest_of_a_folder_that_went_away_changes_nothing(home: Home) -> None:
    home.lab.picture("a.png")
    home.read()
    home.lab.folder.rename(home.lab.folder.with_name("away"))
    result = run("ingest", "demo")
    assert result.exit_code == 1
    assert "cannot be opened" in result.stderr
    assert run_json("status")["sources"]["demo"]["locations"] == {"present": 1}


@pytest.mark.parametrize(
    ("bad", "strict", "code"), [(b"", False, 0), (b"x", False, 0), (b"", True, 0), (b"x", True, 3)]
)
def test_ingest_ends_with_3_only_when_files_failed_and_it_is_strict(
    home: Home, monkeypatch: pytest.MonkeyPatch, bad: bytes, strict: bool, code: int
) -> None:
    monkeypatch.setattr(work, "_run_here", lambda *_: home.read() or [])
    home.lab.picture("a.png")
    if bad:
        home.put(b"bad.jpg", bad)
    result = run("ingest", "demo", *(["--strict"] if strict else []), "--json")
    assert result.exit_code == code, result.stderr
    assert '"source": "demo"' in result.stdout
    assert result.stdout.count("\n") == 1


def test_ingest_ends_with_1_when_a_run_failed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_run_here", lambda *_: ["no [red]weights"])
    result = run("ingest", "demo", "--strict")
    assert result.exit_code == 1
    assert "A run failed: no [red]weights" in result.stderr


def test_failed_work_is_put_back_and_refused_files_stay_refused(home: Home) -> None:
    home.lab.picture("a.png")
    home.put(b"bad.jpg")
    home.read()
    fail(home, "embeddings")
    fail(home, "enhanced_images")
    assert count(home, "embeddings", "failed") == 1
    found = run_json("retry", "--feature", "embeddings")
    assert found["put_back"] == {"demo": 1}
    assert (count(home, "embeddings", "pending"), count(home, "enhanced_images", "failed")) == (1, 1)
    assert run_json("retry", "--source", "demo")["put_back"] == {"demo": 1}
    assert count(home, "raw_media", "refused") == 1
    assert run_json("retry") == {"put_back": {"demo": 0}, "batches": []}
    assert "demo: 0 failures are tried again." in run("retry").stderr


def test_case_b5_only_failures_are_retried_and_they_are_listed_with_reasons(home: Home) -> None:
    for number in range(5):
        home.lab.picture(f"{number}.png", number)
    home.put(b"bad.jpg")
    home.read()
    fail(home, "embeddings", most=2)
    listed = [json.loads(line) for line in run("files", "--status", "failed", "--json").stdout.splitlines()]
    reasons = [file["features"]["embeddings"] for file in listed]
    assert [(one["code"], one["reason"]) for one in reasons] == [("model_failed", "no [luck]")] * 2
    assert run_json("retry", "--feature", "embeddings")["put_back"] == {"demo": 2}
    failed = {file["media"] for file in listed}
    waiting = run("files", "--feature", "embeddings", "--status", "pending", "--json").stdout.splitlines()
    assert {json.loads(line)["media"] for line in waiting} == failed
    assert (count(home, "embeddings", "pending"), count(home, "embeddings", "ok")) == (2, 3)


def test_files_that_could_not_be_read_are_put_back_too(home: Home) -> None:
    home.put(b"a.jpg")
    home.lab.form(standard_stages(home.lab.settings))
    with home.lab.catalog.write() as conn:
        (place,) = conn.execute(t.locations.select()).mappings().all()
        files.location_failed(conn, place["id"], "io_error", "words", None)
    assert count(home, "raw_media", "failed") == 1
    assert run_json("retry", "--feature", "embeddings")["put_back"] == {"demo": 0}
    assert run_json("retry", "--feature", "raw_media")["put_back"] == {"demo": 1}
    assert count(home, "raw_media", "pending") == 1


def test_retry_names_what_there_is_not(home: Home) -> None:
    assert "There is no feature 'nonsense'." in run("retry", "--feature", "nonsense").stderr
    assert "There is no source 'nobody'." in run("retry", "--source", "nobody").stderr
    assert run("retry", "demo").exit_code == 2


# --- What a person sees meanwhile. ---


def found(**counts: dict[str, int]) -> status.SourceStatus:
    filled = {name: dict.fromkeys(status.STATUSES, 0) | given for name, given in counts.items()}
    return status.SourceStatus(files=4, bytes=2000, features=filled, index={"vectors": 2})


def test_progress_tells_rate_and_time_left_and_nothing_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 10.0, 10.0])
    monkeypatch.setattr(work.time, "monotonic", lambda: next(clock))
    teller = work._Teller()
    teller.tell(found(raw_media={"ok": 1, "pending": 3}))
    teller.tell(found(raw_media={"ok": 2, "refused": 1, "pending": 1}))
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()
    assert said == ["4 files, 2.0 kB · raw_media 1/4", "4 files, 2.0 kB · raw_media 3/4 (0.20/s, 5 s left)"]


def test_the_end_says_what_became_of_every_feature(capsys: pytest.CaptureFixture[str]) -> None:
    work._tell_end("demo", found(raw_media={"ok": 3, "refused": 1}, embeddings={}), Scanned())
    said = capsys.readouterr().err
    assert "raw_media: 3 ok, 1 refused" in said
    assert "embeddings: nothing" in said
    assert "index: 2 vectors." in said
