"""Adding models of a person's own, and looking them up."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from own_models import OTHER, PICTURES_ONLY, TOY, tensors, weights_file

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights import checkpoint
from mirror_realm_assets.weights.added import added_models, find
from mirror_realm_assets.weights.adding import add
from mirror_realm_assets.weights.fetch import require, state, weights_path
from mirror_realm_assets.weights.open_clip_networks import architecture_of, preparation_of, reads_text

# With all tests that load weights: open_clip's import alone takes 8 s, and one process is enough to pay it.
pytestmark = pytest.mark.xdist_group("inference")


def refused(code: str, file: Path, architecture: str, models: Path, **options: Any) -> str:
    """That adding fails with this code and leaves the folder as it was; returns the sentence."""
    before = sorted(path for path in models.rglob("*") if path.is_file() and path.stat().st_size)
    with pytest.raises(SetupError) as caught:
        add(file, architecture, models, **options)
    assert caught.value.code == code, caught.value
    assert sorted(path for path in models.rglob("*") if path.is_file() and path.stat().st_size) == before
    return str(caught.value)


def saved(content: object, path: Path) -> Path:
    import torch

    torch.save(content, path)
    return path


def test_an_added_model_is_found_by_name_with_what_its_network_says(tmp_path: Path) -> None:
    added = add(weights_file(TOY), TOY, tmp_path, name="mine", licence="MIT")
    assert added.new
    model = find(tmp_path, "mine", "embed")
    assert model == added.model
    assert (model.architecture, model.dim, model.licence, model.purpose) == (TOY, 16, "MIT", "embed")
    path = require(model, tmp_path)
    assert path.stat().st_size == model.bytes < 2_000_000  # fp16, as it was given
    assert find(tmp_path, "efficientnet-lite0").name == "efficientnet-lite0"


def test_the_name_is_the_files_name_cleaned(tmp_path: Path) -> None:
    file = tmp_path / "..My [red]Model_v2\x1b.safetensors"
    shutil.copy(weights_file(TOY), file)
    assert add(file, TOY, tmp_path / "models").model.name == "my-red-model-v2"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "UPPER", "x" * 62, "line\n"])
def test_a_name_that_could_be_a_path_or_hide_is_refused(name: str, tmp_path: Path) -> None:
    refused("invalid_argument", weights_file(TOY), TOY, tmp_path, name=name)


def test_a_training_checkpoint_of_several_gpus_gives_the_same_model(tmp_path: Path) -> None:
    first = add(weights_file(TOY), TOY, tmp_path, name="a").model
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors(TOY).items()}}
    second = add(saved(wrapped, tmp_path / "b.pt"), TOY, tmp_path).model
    assert second.weights_sha256 == first.weights_sha256


def test_the_flat_form_of_a_text_tower_is_taken_as_open_clip_takes_it(tmp_path: Path) -> None:
    flat = {name.removeprefix("text."): tensor for name, tensor in tensors(OTHER).items()}
    flat["logit_scale"] = flat["logit_scale"].reshape(1)
    added = add(saved(flat, tmp_path / "flat.bin"), OTHER, tmp_path).model
    assert added.weights_sha256 == add(weights_file(OTHER), OTHER, tmp_path, name="new").model.weights_sha256


def test_adding_the_same_again_changes_nothing_and_mends_what_is_altered(tmp_path: Path) -> None:
    model = add(weights_file(TOY), TOY, tmp_path, name="mine").model
    listed = (tmp_path / "added.json").stat()
    assert not add(weights_file(TOY), TOY, tmp_path, name="mine").new
    assert (tmp_path / "added.json").stat().st_ino == listed.st_ino
    path = weights_path(model, tmp_path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert state(model, tmp_path) == "altered"
    with pytest.raises(SetupError, match=r"mirror-realm models add FILE --architecture toy-vit --name mine") as caught:
        require(model, tmp_path)
    assert caught.value.code == "weights_altered"
    add(weights_file(TOY), TOY, tmp_path, name="mine")
    assert state(model, tmp_path) == "ok"


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    add(weights_file(TOY), TOY, tmp_path, name="mine")
    assert "mine" in refused("already_exists", weights_file(TOY, 1), TOY, tmp_path, name="mine")
    refused("already_exists", weights_file(TOY), TOY, tmp_path, name="efficientnet-lite0")
    refused("already_exists", weights_file(TOY), TOY, tmp_path, name="gfpgan-v1.4")
    assert state(find(tmp_path, "mine"), tmp_path) == "ok"


class _Payload:
    """What a hostile pickle holds: a call."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_file_that_is_a_program_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    hostile = {**tensors(TOY), "extra": _Payload(witness)}
    file = tmp_path / "hostile.pt"
    if form == "torch":
        saved(hostile, file)
    else:
        file.write_bytes(pickle.dumps({"extra": _Payload(witness)}))
    assert "nothing of it was run" in refused("unsupported", file, TOY, tmp_path / "models")
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "program.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    refused("unsupported", file, TOY, tmp_path / "models")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_corrupt(suffix: str, tmp_path: Path) -> None:
    whole = weights_file(TOY) if suffix == ".safetensors" else saved(tensors(TOY), tmp_path / "whole.pt")
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(whole.read_bytes()[:-1000])
    assert "cut" in refused("corrupt", file, TOY, tmp_path / "models")


def test_weights_of_another_architecture_are_refused_naming_tensors(tmp_path: Path) -> None:
    said = refused("invalid_argument", weights_file(OTHER), TOY, tmp_path / "models")
    assert "missing: " in said
    assert "not part of it: " in said
    assert "more" in said
    wider = {**tensors(TOY), "visual.proj": tensors(TOY)["visual.proj"].T}
    said = refused("invalid_argument", saved(wider, tmp_path / "wide.pt"), TOY, tmp_path / "models")
    assert "of another shape: visual.proj (16x64 instead of 64x16)" in said


def test_weights_with_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    broken = tensors(TOY)
    broken["visual.proj"][0, 0] = float("nan")
    assert "visual.proj" in refused("invalid_argument", saved(broken, tmp_path / "nan.pt"), TOY, tmp_path / "models")


def test_weights_that_compute_nothing_are_refused(tmp_path: Path) -> None:
    dead = tensors(TOY)
    dead["visual.proj"].zero_()
    assert "no usable vectors" in refused("invalid_argument", saved(dead, tmp_path / "a.pt"), TOY, tmp_path / "models")


def test_things_that_are_no_tensors_by_name_are_refused(tmp_path: Path) -> None:
    for n, content in enumerate(([1, 2], {}, {"a": 1}, {1: tensors(TOY)["visual.proj"]})):
        refused("unsupported", saved(content, tmp_path / f"{n}.pt"), TOY, tmp_path / "models")
    refused("not_found", tmp_path / "nowhere.pt", TOY, tmp_path / "models")
    refused("not_found", tmp_path, TOY, tmp_path / "models")


def test_an_unknown_architecture_is_answered_with_the_nearest_names(tmp_path: Path) -> None:
    said = refused("not_found", weights_file(TOY), "vit_b_32", tmp_path / "models")
    assert "ViT-B-32" in said
    assert architecture_of("ViT-B/32") == "ViT-B-32"


def test_an_architecture_that_needs_a_hub_is_refused_or_embeds_pictures_only(tmp_path: Path) -> None:
    assert "hub" in refused("invalid_argument", weights_file(TOY), "roberta-ViT-B-32", tmp_path / "models")
    assert add(weights_file(PICTURES_ONLY), PICTURES_ONLY, tmp_path).model.reads_text is False
    assert reads_text("ViT-B-32")
    assert not reads_text("ViT-B-16-SigLIP")


def test_pictures_are_prepared_as_for_the_published_weights() -> None:
    siglip = preparation_of("ViT-B-16-SigLIP")
    assert (siglip.mean, siglip.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    assert preparation_of("ViT-L-14").mean[0] == pytest.approx(0.48145466)
    assert preparation_of("ViT-L-14", "laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    with pytest.raises(SetupError, match="--architecture ViT-B-32-quickgelu"):
        preparation_of("ViT-B-32", "openai")
    with pytest.raises(SetupError, match="openai"):
        preparation_of("ViT-B-32-quickgelu", "nosuch")


def test_a_disk_that_is_too_full_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 10**6))
    assert "1 MB free" in refused("disk_full", weights_file(TOY), TOY, tmp_path)


def test_two_models_can_be_added_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(add, weights_file(TOY, n), TOY, tmp_path, name=f"m{n}") for n in range(2)]
        assert {job.result().model.name for job in jobs} == {"m0", "m1"}
    assert {model.name for model in added_models(tmp_path)} == {"m0", "m1"}


def test_a_model_added_by_another_process_is_seen_at_once(tmp_path: Path) -> None:
    first = add(weights_file(TOY), TOY, tmp_path, name="first").model
    assert added_models(tmp_path) == (first,)
    content = json.loads((tmp_path / "added.json").read_text())
    content["models"].append(content["models"][0] | {"name": "second"})
    (tmp_path / "added.json").write_text(json.dumps(content))
    assert find(tmp_path, "second").weights_sha256 == first.weights_sha256


def _damaged(content: dict[str, Any], how: str) -> str:
    (model,) = content["models"]
    if how == "path":
        model["name"] = "../../escaped"
    elif how == "newer":
        content["form"] = 2
    elif how == "twice":
        content["models"].append(model)
    elif how == "kind":
        model["dim"] = "many"
    return json.dumps(content)[: 100 if how == "cut" else None]


@pytest.mark.parametrize("how", ["path", "newer", "twice", "kind", "cut"])
def test_a_damaged_list_is_an_error_with_a_remedy_and_never_an_empty_list(how: str, tmp_path: Path) -> None:
    add(weights_file(TOY), TOY, tmp_path, name="mine")
    path = tmp_path / "added.json"
    path.write_text(damaged := _damaged(json.loads(path.read_text()), how))
    with pytest.raises(SetupError, match=r"Restore added\.json") as caught:
        find(tmp_path, "mine")
    assert caught.value.code == "weights_altered"
    with pytest.raises(SetupError, match=r"Restore added\.json"):
        add(weights_file(TOY, 1), TOY, tmp_path, name="other")
    assert path.read_text() == damaged
    assert find(tmp_path, "efficientnet-lite0").name == "efficientnet-lite0"


def test_an_unknown_name_is_answered_with_ours_and_the_added_ones(tmp_path: Path) -> None:
    add(weights_file(TOY), TOY, tmp_path, name="mine")
    with pytest.raises(SetupError, match="efficientnet-lite0, mine") as caught:
        find(tmp_path, "nosuch", "embed")
    assert caught.value.code == "not_found"
    with pytest.raises(SetupError, match="not made for this"):
        find(tmp_path, "mine", "enhance")
