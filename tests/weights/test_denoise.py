"""Mixing the two general models for a strength of denoising, with random weights of the real network."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights import added
from mirror_realm_assets.weights.denoise import denoised_state, interpolated, require_denoise
from mirror_realm_assets.weights.registry import MODELS, RELEASED, Model

pytestmark = pytest.mark.xdist_group("inference")

STRONG = RELEASED["realesr-general-x4v3"]
WEAK = RELEASED["realesr-general-wdn-x4v3"]


def network(seed: int) -> Any:
    """realesr-general-x4v3 with random numbers: 64 channels, 32 convolutions, 1.2 million numbers."""
    import torch
    from spandrel.architectures.Compact import Compact

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Compact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=32, upscale=4).eval()


def test_the_strength_is_the_share_of_the_model_that_takes_noise_away() -> None:
    strong, weak = network(0).state_dict(), network(1).state_dict()
    mixed = interpolated(strong, weak, 0.75)
    for name, tensor in mixed.items():
        assert tensor.allclose(0.75 * strong[name] + 0.25 * weak[name])
    assert all(tensor.equal(strong[name]) for name, tensor in interpolated(strong, weak, 1).items())
    assert all(tensor.equal(weak[name]) for name, tensor in interpolated(strong, weak, 0).items())


def test_a_mixed_network_runs_and_is_neither_of_the_two() -> None:
    import torch
    from spandrel import ModelLoader

    strong, weak = network(0).state_dict(), network(1).state_dict()
    picture = torch.rand(1, 3, 32, 32)

    def enlarged(state: dict[str, Any]) -> torch.Tensor:
        descriptor = ModelLoader(device="cpu").load_from_state_dict(dict(state)).eval()
        with torch.inference_mode():
            return torch.as_tensor(descriptor(picture))

    results = [enlarged(state) for state in (strong, interpolated(strong, weak, 0.5), weak)]
    assert {result.shape for result in results} == {(1, 3, 128, 128)}
    assert not results[1].allclose(results[0])
    assert not results[1].allclose(results[2])


def test_weights_in_16_bits_are_mixed_in_32() -> None:
    import torch

    half = {"a": torch.tensor([1.0, 2.0]).half()}
    assert interpolated(half, half, 0.3)["a"].dtype == torch.float32


def test_weights_of_two_networks_are_refused_naming_a_tensor() -> None:
    strong = network(0).state_dict()
    with pytest.raises(SetupError, match=r"body\.0\.bias differs"):
        interpolated(strong, {name: tensor for name, tensor in strong.items() if name != "body.0.bias"}, 0.5)
    with pytest.raises(SetupError, match=r"body\.1\.weight differs"):
        interpolated(strong, strong | {"body.1.weight": strong["body.1.weight"][:3]}, 0.5)


def test_a_strength_means_something_for_one_model_only() -> None:
    assert require_denoise(STRONG, 0.5) == WEAK.name
    for model in (*MODELS.values(), *RELEASED.values()):
        if model != STRONG:
            with pytest.raises(SetupError, match=f"cannot be chosen for {model.name}.*realesr-general-x4v3") as caught:
                require_denoise(model, 0.5)
            assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_strength_outside_of_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(SetupError, match="from 0 to 1"):
        require_denoise(STRONG, strength)


def test_both_models_have_to_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    def put(model: Model, seed: int) -> Model:
        path = tmp_path / model.filename
        save_file(network(seed).state_dict(), path)
        return replace(model, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    strong = put(STRONG, 0)
    with pytest.raises(SetupError, match=r"mirror-realm models fetch realesr-general-wdn-x4v3") as caught:
        denoised_state(strong, 0.5, tmp_path)
    assert caught.value.code == "weights_missing"
    weak = put(WEAK, 1)
    monkeypatch.setattr(added, "resolved", lambda model, _folder: weak if model == WEAK else model)
    mixed = denoised_state(strong, 0.25, tmp_path)
    expected = interpolated(network(0).state_dict(), network(1).state_dict(), 0.25)
    assert all(tensor.equal(expected[name]) for name, tensor in mixed.items())
