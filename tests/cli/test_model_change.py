"""Another model for the sources of a library: told what it takes, and done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cheap_stages import run_lane
from cli_home import run, run_lines
from lab import Lab
from own_models import OTHER, TOY, weights_file

from mirror_realm_assets.catalog import features, sources
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.weights.adding import add

pytestmark = pytest.mark.xdist_group("inference")


@pytest.fixture
def library(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Three pictures embedded by `first`; `second` is there as well, and nothing is enhanced."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.setenv("MIRROR_REALM_QUIET_SECONDS", "0")
    add(weights_file(TOY), TOY, lab.settings.models_dir, name="first")
    add(weights_file(OTHER), OTHER, lab.settings.models_dir, name="second")
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"embedder": "first", "enhance": False})
    for number in range(3):
        lab.picture(f"{number}.png", number)
    embed(lab)
    return lab


def embed(lab: Lab) -> None:
    stages = standard_stages(lab.settings)
    for batch in lab.form(stages):
        run_lane(lab.services, stages, batch.key)


def embedder(lab: Lab) -> str:
    return lab.source.policy.embedder


def test_an_estimate_tells_what_is_left_by_a_speed_tried_here_and_changes_nothing(library: Lab) -> None:
    (found,) = run_lines("models", "switch", "second", "--estimate")
    assert (found["source"], found["feature"], found["before"], found["after"]) == (
        "demo",
        "embeddings",
        "first",
        "second",
    )
    assert (found["pictures"], found["there"], found["left"], found["switched"]) == (3, 0, 3, False)
    assert found["rate_from"] == "tried" and found["seconds"] > 0 and found["bytes"] > 0
    assert embedder(library) == "first"


def test_a_switch_is_done_and_switching_back_finds_everything_there(library: Lab) -> None:
    assert run_lines("models", "switch", "second")[0]["switched"] is True
    assert embedder(library) == "second"
    embed(library)
    (back,) = run_lines("models", "switch", "first", "--estimate")
    assert (back["there"], back["left"], back["seconds"], back["bytes"]) == (3, 0, 0.0, 0)
    assert "Nothing to change" in run("models", "switch", "second").stderr


def test_the_speed_of_this_library_is_used_where_it_is_known(library: Lab) -> None:
    stages = standard_stages(library.settings)
    recipe = next(stage for stage in stages if stage.feature == "embeddings").recipe(
        library.source.policy.merged({"embedder": "second"})
    )
    assert recipe is not None
    with library.catalog.write() as conn:
        for number in range(64):
            features.write(
                conn,
                features.FeatureKey(f"{number:064x}", 0, "embeddings", recipe.digest),
                recipe,
                features.Finding("ok", seconds=2.0),
            )
    (found,) = run_lines("models", "switch", "second", "--estimate")
    assert (found["rate_from"], found["seconds"]) == ("measured", 6.0)


def test_a_model_for_enhancement_counts_pixels_and_only_where_enhancement_is_wanted(
    library: Lab, models_dir: Path
) -> None:
    for file in models_dir.glob("real*"):
        (library.settings.models_dir / file.name).symlink_to(file)
    (unwanted,) = run_lines("models", "switch", "realesr-animevideov3", "--estimate")
    assert (unwanted["wanted"], unwanted["left"]) == (False, 0)
    with library.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"enhance": True})
    (found,) = run_lines("models", "switch", "realesr-animevideov3", "--estimate")
    assert (found["left"], found["feature"], found["rate_from"]) == (3, "enhanced_images", "table")
    assert found["megapixels"] == pytest.approx(3 * 32 * 24 / 1e6, abs=1e-6)
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nosuch",), "not_found"),
        (("gfpgan-v1.4",), "invalid_argument"),
        (("realesrgan-x4plus",), "weights_missing"),
        (("second", "--source", "nosuch"), "not_found"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(library: Lab, words: tuple[str, ...], code: str) -> None:
    result = run("models", "switch", *words, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1] if result.stdout else "{}").get("code", code) == code
    assert result.stderr
    assert embedder(library) == "first"
