"""Indexes from the command line: what they hold, and made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_home import run, run_json, run_lines
from lab import Lab
from search.picture_library import DIM, Library

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.pipeline import standard_stages


@pytest.fixture
def pictures(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Four pictures in the index of `photos`, in the home that the commands open; `demo` has none."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    made = Library(tmp_path / "other", catalog=lab.catalog)
    made.store = lab.services.store
    made.embed([made.add() for _ in range(4)], recipe(lab))
    made.build(recipe=recipe(lab), segment_vectors=2)
    return made


def recipe(lab: Lab) -> str:
    embeddings = next(stage for stage in standard_stages(lab.settings) if stage.feature == "embeddings")
    found = embeddings.recipe(lab.source.policy)
    assert found is not None
    return found.digest


def test_stats_tell_what_every_index_holds(pictures: Library) -> None:
    demo, photos = run_lines("index", "stats")
    assert demo == {"source": "demo", "vectors": 0, "tombstones": 0, "segments": 0, "model": None}
    assert (photos["vectors"], photos["tombstones"], photos["segments"], photos["dim"]) == (4, 0, 2, DIM)
    assert photos["recall_at_10"] == 1.0
    assert photos["bytes"] > 4 * DIM * 4
    assert "no index yet" in run("index", "stats", "--source", "demo").stdout


def test_compact_drops_the_dead_and_leaves_the_others_alone(pictures: Library, lab: Lab) -> None:
    assert run_lines("index", "compact") == []
    pictures.set_state(pictures.media[0], "deleted")
    pictures.build(recipe=recipe(lab), segment_vectors=2)
    before = run_json("index", "stats", "--source", "photos")
    (done,) = run_lines("index", "compact")
    after = run_json("index", "stats", "--source", "photos")
    assert (before["vectors"], before["tombstones"]) == (3, 1)
    assert (after["vectors"], after["tombstones"]) == (3, 0)
    assert (done["dropped"], done["version"]) == (before["tombstones"], after["version"])


def test_rebuild_makes_a_new_version_of_the_same_vectors(pictures: Library) -> None:
    before = run_json("index", "stats", "--source", "photos")
    (done,) = run_lines("index", "rebuild", "--source", "photos")
    after = run_json("index", "stats", "--source", "photos")
    assert after["version"] > before["version"]
    assert (done["vectors"], after["vectors"], after["recall_at_10"]) == (4, 4, 1.0)
    found = pictures.catalog
    with found.read() as conn:
        assert sources.get(conn, "photos").index_error is None


def test_a_source_that_is_not_there_is_an_error(pictures: Library) -> None:
    assert run("index", "rebuild", "--source", "nosuch").exit_code == 1
