"""Released models: their files fetched from an https server on the loopback, or given by a person.

The networks are of the real architectures, with random numbers, and small; the pinned digests are those of their files.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from https_server import Answer, HttpsServer, https_server

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.fetch import require, state, weights_path
from mirror_realm_assets.weights.registry import RELEASED, ReleasedModel
from mirror_realm_assets.weights.release import add, fetch, resolved

pytestmark = pytest.mark.xdist_group("inference")


def compact(seed: int = 0, **changes: int) -> dict[str, Any]:
    """A state dict of a small SRVGGNetCompact of random numbers."""
    import torch
    from spandrel.architectures.Compact import Compact

    form = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 2, "upscale": 4} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(Compact(**form).state_dict())


def rrdbnet() -> dict[str, Any]:
    """A state dict of a small RRDBNet, under the names of Real-ESRGAN's code."""
    import torch

    def conv(outputs: int, inputs: int, name: str) -> dict[str, Any]:
        return {f"{name}.weight": torch.rand(outputs, inputs, 3, 3), f"{name}.bias": torch.rand(outputs)}

    tensors = conv(8, 3, "conv_first")
    for dense in (1, 2, 3):
        for n in range(1, 6):
            tensors |= conv(32 if n < 5 else 8, 8 + 32 * (n - 1), f"body.0.rdb{dense}.conv{n}")
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        tensors |= conv(8, 8, name)
    return tensors | conv(3, 8, "conv_last")


def saved(content: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def pinned(content: bytes, name: str = "realesr-general-x4v3", **changes: Any) -> ReleasedModel:
    """A model whose published file is `content`."""
    digest = hashlib.sha256(content).hexdigest()
    return replace(RELEASED[name], source_sha256=digest, download_bytes=len(content), **changes)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with https_server(tmp_path) as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def files(models: Path) -> list[str]:
    """What is in the folder, without the lock."""
    return sorted(file.name for file in models.iterdir() if file.name != ".released.lock")


def test_a_fetched_model_has_the_averaged_weights_a_record_and_nothing_else(server: HttpsServer, models: Path) -> None:
    from safetensors.torch import load_file

    averaged = compact(1)
    content = saved({"params": compact(0), "params_ema": averaged})
    model = pinned(content, url=server.serve("/file.pth", content))
    said: list[str] = []
    assert state(resolved(model, models), models) == "missing"
    got = fetch(model, models, context=server.context, progress=said.append)
    assert files(models) == ["realesr-general-x4v3.json", "realesr-general-x4v3.safetensors"]
    assert state(got, models) == "ok"
    loaded = load_file(require(got, models))
    assert loaded.keys() == averaged.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in averaged.items())
    record = json.loads((models / "realesr-general-x4v3.json").read_text())
    assert (record["source_sha256"], record["weights_sha256"]) == (model.source_sha256, got.weights_sha256)
    assert any(line.startswith(f"Downloading {model.url}") for line in said)
    assert find(models, model.name, "enhance").weights_sha256 == ""  # the registry's own file is another one


def test_what_is_here_and_right_is_not_downloaded_again_and_what_is_altered_is(
    server: HttpsServer, models: Path
) -> None:
    content = saved({"params": compact()})
    model = pinned(content, url=server.serve("/file.pth", content))
    first = fetch(model, models, context=server.context)
    assert fetch(model, models, context=server.context) == first
    assert len(server.asked) == 1
    path = weights_path(model, models)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(SetupError, match=r"mirror-realm models fetch realesr-general-x4v3") as caught:
        require(resolved(model, models), models)
    assert caught.value.code == "weights_altered"
    assert fetch(model, models, context=server.context) == first
    assert len(server.asked) == 2


def test_weights_without_their_record_are_not_trusted(server: HttpsServer, models: Path) -> None:
    content = saved({"params": compact()})
    model = pinned(content, url=server.serve("/file.pth", content))
    fetch(model, models, context=server.context)
    (models / "realesr-general-x4v3.json").unlink()
    assert state(resolved(model, models), models) == "altered"


def test_a_file_of_another_digest_is_not_opened_and_leaves_nothing(server: HttpsServer, models: Path) -> None:
    witness = models.parent / "it-ran"
    content = saved(compact())
    hostile = pickle.dumps(_Payload(witness)).ljust(len(content), b"\0")
    model = pinned(content, url=server.serve("/file.pth", hostile))
    with pytest.raises(SetupError, match="not the expected file") as caught:
        fetch(model, models, context=server.context)
    assert caught.value.code == "fetch_failed"
    assert files(models) == []
    assert not witness.exists()


@pytest.mark.parametrize("how", ["truncated", "too large", "to http"])
def test_a_download_that_fails_leaves_nothing(how: str, server: HttpsServer, models: Path) -> None:
    content = saved(compact())
    model = pinned(content, url=f"{server.url}/file.pth")
    if how == "truncated":
        server.serve("/file.pth", content[:-100], Content_Length=str(len(content)))
    elif how == "too large":
        server.serve("/file.pth", content + b"more")
    else:
        server.answers["/file.pth"] = Answer(status=302, headers={"Location": "http://127.0.0.1:9/file.pth"})
    with pytest.raises(SetupError) as caught:
        fetch(model, models, context=server.context)
    assert caught.value.code == "fetch_failed"
    assert files(models) == []


class _Payload:
    """What a hostile pickle holds: a call."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_even_the_pinned_file_is_read_as_data_only(server: HttpsServer, models: Path) -> None:
    witness = models.parent / "it-ran"
    content = saved({"params": compact(), "extra": _Payload(witness)})
    model = pinned(content, url=server.serve("/file.pth", content))
    with pytest.raises(SetupError, match="nothing of it was run"):
        fetch(model, models, context=server.context)
    assert files(models) == []
    assert not witness.exists()


def test_a_person_may_bring_the_published_file(tmp_path: Path, models: Path) -> None:
    content = saved(rrdbnet())
    file = tmp_path / "RealESRNet_x4plus.pth"
    file.write_bytes(content)
    model = pinned(content, "realesrnet-x4plus")
    taken = add(file, model, models)
    assert (taken.new, state(taken.model, models)) == (True, "ok")
    assert not add(file, model, models).new
    file.write_bytes(content + b"x")
    with pytest.raises(SetupError, match="is not the file that realesrnet-x4plus stands for") as caught:
        add(file, model, models)
    assert caught.value.code == "invalid_argument"
    with pytest.raises(SetupError, match="There is no file"):
        add(tmp_path / "nowhere.pth", model, models)


def test_an_unknown_digest_is_not_fetched_but_pinned_by_the_first_file(
    server: HttpsServer, tmp_path: Path, models: Path
) -> None:
    content, other = saved({"params": compact(0)}), saved({"params": compact(1)})
    url = server.serve("/file.pth", content)
    unknown = pinned(content, url=url, name="realesr-general-x4v3")
    unknown = replace(unknown, source_sha256=None, digest_sources=())
    with pytest.raises(SetupError, match=rf"Download {url} and run `mirror-realm models add FILE --name ") as caught:
        fetch(unknown, models, context=server.context)
    assert caught.value.code == "invalid_argument"
    assert server.asked == []
    file = tmp_path / "mine.pth"
    file.write_bytes(content)
    taken = add(file, unknown, models)
    assert taken.model.source_sha256 == hashlib.sha256(content).hexdigest()
    file.write_bytes(other)
    with pytest.raises(SetupError, match="expected"):
        add(file, unknown, models)
    weights_path(unknown, models).unlink()
    assert fetch(unknown, models, context=server.context) == taken.model  # the digest is known now


@pytest.mark.parametrize("why", ["another network", "another scale", "no numbers"])
def test_tensors_that_are_not_the_network_are_refused(why: str, tmp_path: Path, models: Path) -> None:
    tensors = {"another network": rrdbnet, "another scale": lambda: compact(upscale=2), "no numbers": compact}[why]()
    if why == "no numbers":
        tensors["body.0.weight"][0, 0] = float("nan")
    file = tmp_path / "file.pth"
    file.write_bytes(saved(tensors))
    with pytest.raises(SetupError, match=r"body\.0\.weight|holds no SRVGGNetCompact of scale 4") as caught:
        add(file, pinned(file.read_bytes()), models)
    assert caught.value.code == "invalid_argument"
    assert files(models) == []


@pytest.mark.parametrize("content", ["{", '{"form": 2}', '{"form": 1, "source_sha256": "../x"}'])
def test_a_damaged_record_is_an_error_with_a_remedy(content: str, models: Path) -> None:
    models.mkdir()
    (models / "gfpgan-v1.4.json").write_text(content)
    with pytest.raises(SetupError, match=r"gfpgan-v1\.4\.json.*Restore it") as caught:
        find(models, "gfpgan-v1.4")
    assert caught.value.code == "weights_altered"
    assert find(models, "realesrgan-x4plus").name == "realesrgan-x4plus"
