"""How strongly an enhancement model takes away noise: mixing it with the model that keeps noise.

What belongs here: for which models a strength means something, and the mixed weights. What does not: running them
(`enhance`).

Real-ESRGAN published two sets of weights of one small network, `realesr-general-x4v3`, which takes noise away, and
`realesr-general-wdn-x4v3` (weak denoise), which keeps it. Every number of the mixed network is `strength` times the
first plus `1 - strength` times the second, as its `inference_realesrgan.py` does: 1 takes all noise away, 0 keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.registry import MODELS, RELEASED, Model

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


def require_denoise(model: Model, strength: float) -> str:
    """The name of the model that `model` is mixed with to take away noise with this strength.

    Args:
        model: an enhancement model.
        strength: from 0 (keep noise) to 1 (take it away).

    Raises:
        SetupError: `invalid_argument` for a model without such a pair, or a strength outside of 0 to 1.
    """
    if model.denoise_pair is None:
        able = sorted(each.name for each in (*MODELS.values(), *RELEASED.values()) if each.denoise_pair)
        raise SetupError(
            "invalid_argument",
            f"The strength of denoising cannot be chosen for {model.name}.",
            remedy=f"Leave it away, or use the model {' or '.join(able)}.",
        )
    if not 0 <= strength <= 1:  # also what is not a number
        raise SetupError(
            "invalid_argument", f"The strength of denoising is {strength}.", remedy="Choose a number from 0 to 1."
        )
    return model.denoise_pair


def denoised_state(model: Model, strength: float, models_dir: Path) -> State:
    """The verified weights of a model, mixed for a strength of denoising. Uses no network.

    Args:
        model: as `added.find` gives it.
        strength: from 0 (keep noise) to 1 (take it away).
        models_dir: the models folder.

    Returns:
        Tensors by name, as `interpolated`.

    Raises:
        SetupError: as `require_denoise`; `weights_missing` or `weights_altered` for either of the two.
    """
    from safetensors.torch import load_file

    pair = find(models_dir, require_denoise(model, strength), "enhance")
    paths = [require(each, models_dir) for each in (model, pair)]
    strong, weak = (load_file(path) for path in paths)
    return interpolated(strong, weak, strength)


def interpolated(strong: Mapping[str, torch.Tensor], weak: Mapping[str, torch.Tensor], strength: float) -> State:
    """Two sets of weights of one network, mixed number by number.

    Args:
        strong: weights of the network that takes noise away, by tensor name.
        weak: weights of the network that keeps noise: the same names and shapes.
        strength: the share of `strong`, from 0 to 1.

    Returns:
        Tensors of the same names and shapes in float32, in which they are computed.

    Raises:
        SetupError: `invalid_argument` when the two are not of one network.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (strong, weak)]
    if shapes[0] != shapes[1]:
        different = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise SetupError(
            "invalid_argument",
            f"The two weights are not of one network: {different[0]} differs.",
            remedy="Fetch or add both models again.",
        )
    return {name: strength * tensor.float() + (1 - strength) * weak[name].float() for name, tensor in strong.items()}
