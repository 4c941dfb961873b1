"""What `up` refuses before it starts anything. That it runs is shown in the tests of the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_home import run
from own_models import TOY, weights_file

from mirror_realm_assets import supervise
from mirror_realm_assets.weights.adding import add


@pytest.fixture
def models(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models folder of a home made by `init`, with all weights of ours, and a supervisor that starts nothing."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    for weights in models_dir.glob("*.safetensors"):
        (home / "models" / weights.name).symlink_to(weights)
    monkeypatch.setenv("MIRROR_REALM_HOME", str(home))
    assert run("init").exit_code == 0
    monkeypatch.setattr(supervise, "supervise", lambda *_, **__: 0)
    return home / "models"


def test_weights_of_ours_that_are_missing_are_named_with_the_remedy(models: Path) -> None:
    assert run("up").exit_code == 0
    (models / "efficientnet-lite0.safetensors").unlink()
    result = run("up")
    assert result.exit_code == 1
    assert "weights of efficientnet-lite0 are missing" in result.stderr
    assert "mirror-realm models fetch" in result.stderr


def test_missing_weights_of_an_added_model_stop_it_only_where_a_source_wants_them(models: Path, tmp_path: Path) -> None:
    model = add(weights_file(TOY), TOY, models, name="mine").model
    (tmp_path / "photos").mkdir()
    added = run("sources", "add", "mine", "--folder", str(tmp_path / "photos"), "--option", "embedder=mine")
    assert added.exit_code == 0, added.stderr
    assert run("up").exit_code == 0
    (models / model.filename).unlink()
    result = run("up")
    assert result.exit_code == 1
    words = " ".join(result.stderr.split())
    assert "The source mine: The weights of mine are missing" in words
    assert f"models add FILE --architecture {TOY} --name mine" in words
    assert "mirror-realm sources pause mine" in words
    assert run("sources", "pause", "mine").exit_code == 0
    assert run("up").exit_code == 0


def test_optional_weights_are_missed_only_where_a_source_enhances_with_them(models: Path, tmp_path: Path) -> None:
    (models / "realesr-animevideov3.safetensors").unlink()
    (tmp_path / "comics").mkdir()
    option = "enhance.model=realesr-animevideov3"
    added = run("sources", "add", "comics", "--folder", str(tmp_path / "comics"))
    assert added.exit_code == 0, added.stderr
    assert run("up").exit_code == 0
    assert run("sources", "set", "comics", "--option", option).exit_code == 0
    result = run("up")
    assert result.exit_code == 1
    assert "Run `mirror-realm models fetch realesr-animevideov3`." in " ".join(result.stderr.split())
    assert run("sources", "set", "comics", "--option", "enhance=false").exit_code == 0
    assert run("up").exit_code == 0
