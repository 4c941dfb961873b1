"""open_clip's networks by architecture, never over the network: what they are made of, how pictures are prepared.

What belongs here: everything we ask open_clip about an architecture, fitting tensors to one, and building one with its
weights. What does not: reading a person's file (`checkpoint`), running a network (`understand`).

open_clip fetches what it lacks from a hub: weights by their tag, the text tower and the tokenizer of some
architectures. So no tag is ever given to it in the place of a file, an architecture with such a text tower is refused,
and one with such a tokenizer embeds pictures only.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.added import Preparation
from mirror_realm_assets.weights.hardware import Device, Precision

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]
    Transform = Callable[[Any], torch.Tensor]  # PIL picture -> 3xHxW float32
    Tokenizer = Callable[[list[str]], torch.Tensor]  # N texts -> NxL int64

_NAMED = 2  # tensors named in an error: they tell what kind of misfit it is, and a reason has 300 characters


def architecture_of(name: str) -> str:
    """open_clip's own spelling of an architecture that runs here.

    Raises:
        SetupError: `not_found`, with the names nearest to it; `invalid_argument` for one whose text tower would have to
            be fetched.
    """
    import open_clip

    known = open_clip.list_models()
    found = name.replace("/", "-")  # OpenAI writes ViT-B/32
    if found not in known:
        by_lower = {one.lower(): one for one in known}
        near = [by_lower[one] for one in difflib.get_close_matches(found.lower(), by_lower, n=5, cutoff=0.5)]
        raise SetupError(
            "not_found",
            f"open_clip has no architecture {name!r}.",
            remedy=f"Did you mean {', '.join(near)}?" if near else f"It has {', '.join(known)}.",
        )
    if "hf_model_name" in _config(found)["text_cfg"]:
        raise SetupError(
            "invalid_argument",
            f"The text tower of {found} is fetched from a hub by open_clip, and nothing is fetched here.",
            remedy="Choose a model of another architecture.",
        )
    return found


def dim_of(architecture: str) -> int:
    """Length of its vectors."""
    return int(_config(architecture)["embed_dim"])


def reads_text(architecture: str) -> bool:
    """Whether its tokenizer is part of open_clip, so that words can be embedded without a hub."""
    return not _config(architecture)["text_cfg"].get("hf_tokenizer_name")


@lru_cache(maxsize=4)  # reading open_clip's vocabulary takes as long as a query
def tokenizer(architecture: str) -> Tokenizer:
    """Its tokenizer; only where `reads_text`."""
    import open_clip

    found: Tokenizer = open_clip.get_tokenizer(architecture)
    return found


def preparation_of(architecture: str, tag: str | None = None) -> Preparation:
    """How pictures are prepared for an architecture.

    A weights file does not say what pictures it was trained on; open_clip keeps that with the published weights of each
    architecture. They nearly always agree (all of SigLIP's squash, with a mean of 0.5); where they do not, most win.

    Args:
        architecture: in open_clip's spelling.
        tag: the published weights to go by, by open_clip's name (`laion2b_s34b_b79k`).

    Raises:
        SetupError: `not_found` for an unknown tag; `invalid_argument` when those weights belong to the architecture's
            `-quickgelu` form: they would fit this one, and give wrong vectors.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag is None:
        published = Counter(_preparation(open_clip.get_pretrained_cfg(architecture, one)) for one in tags)
        return published.most_common(1)[0][0] if published else _preparation({})
    chosen = open_clip.get_pretrained_cfg(architecture, tag)
    if not chosen:
        raise SetupError(
            "not_found",
            f"open_clip knows no weights {tag!r} of {architecture}.",
            remedy=f"Choose one of: {', '.join(tags)}." if tags else "Leave --tag out.",
        )
    quick = f"{architecture}-quickgelu"
    if chosen.get("quick_gelu") and not _config(architecture).get("quick_gelu") and quick in open_clip.list_models():
        raise SetupError(
            "invalid_argument",
            f"The weights {tag} were trained with another activation than {architecture} has.",
            remedy=f"Add them with --architecture {quick}.",
        )
    return _preparation(chosen)


def fitted(architecture: str, state: State) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under an architecture's names, in their own precision, each in memory of its own.

    Older forms that open_clip's own loader takes are taken too. Nothing is resized: a position table of another size
    belongs to another architecture.

    Raises:
        SetupError: `invalid_argument`, naming the first tensors that are missing, too many, of another shape, or that
            hold infinities or no numbers.
    """
    import torch

    network = _outline(architecture)
    given = _in_todays_form(network, dict(state))
    wanted = network.state_dict()
    faults = [
        _named("missing", [name for name in wanted if name not in given]),
        _named("not part of it", [name for name in given if name not in wanted]),
    ]
    if not any(faults):
        shapes = [
            f"{name} ({_shape(given[name])} instead of {_shape(tensor)})"
            for name, tensor in wanted.items()
            if given[name].shape != tensor.shape
        ]
        faults.append(_named("of another shape", shapes))
    if not any(faults):
        kind = [n for n, tensor in wanted.items() if given[n].is_floating_point() != tensor.is_floating_point()]
        faults.append(_named("of another type", kind))
        faults.append(_named("with values that are no numbers", [n for n in wanted if not _finite(given[n])]))
    if any(faults):
        raise SetupError(
            "invalid_argument",
            f"The weights do not fit {architecture}: {'; '.join(fault for fault in faults if fault)}.",
            remedy="Give the architecture that they were trained as; `-quickgelu`, `-336` and the like belong to it.",
        )
    return {name: given[name].clone(memory_format=torch.contiguous_format) for name in wanted}


def build(
    architecture: str,
    weights: Path,
    preparation: Preparation,
    *,
    device: Device = "cpu",
    precision: Precision = "fp32",
) -> tuple[Any, Transform]:
    """A network with its weights, ready to run, and what makes its input of a picture.

    The network is a `torch.nn.Module` with `encode_image` and `encode_text`, which torch's types do not know.

    Args:
        architecture: in open_clip's spelling.
        weights: a safetensors file that fits it exactly.
        preparation: of its pictures.
        device: where it runs.
        precision: open_clip keeps some layers in fp32 in any case.
    """
    import open_clip

    network, transform = open_clip.create_model_from_pretrained(
        architecture,
        pretrained=str(weights.absolute()),
        precision=precision,
        device=device,
        image_mean=preparation.mean,
        image_std=preparation.std,
        image_interpolation=preparation.interpolation,
        image_resize_mode=preparation.resize_mode,
    )
    return network.eval().requires_grad_(False), transform


def _config(architecture: str) -> dict[str, Any]:
    import open_clip

    found: dict[str, Any] = open_clip.get_model_config(architecture)
    return found


def _preparation(published: Mapping[str, Any]) -> Preparation:
    """open_clip's record of published weights; without one, what open_clip itself does with a file."""
    from open_clip.transform import PreprocessCfg

    plain = PreprocessCfg()
    three = [tuple(float(one) for one in published.get(key) or getattr(plain, key)) for key in ("mean", "std")]
    return Preparation(
        mean=three[0],  # type: ignore[arg-type]
        std=three[1],  # type: ignore[arg-type]
        interpolation=published.get("interpolation") or plain.interpolation,
        resize_mode=published.get("resize_mode") or plain.resize_mode,
    )


def _outline(architecture: str) -> torch.nn.Module:
    """The network without numbers: names and shapes in milliseconds, however large it is."""
    import open_clip
    import torch

    with torch.device("meta"), _without_warning():
        network: torch.nn.Module = open_clip.create_model(architecture, pretrained=None, device="meta")
    return network


@contextmanager
def _without_warning() -> Iterator[None]:
    """open_clip warns, through the root logger, that a network without weights is random: here that is the purpose."""

    def other(entry: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in str(entry.msg)

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _in_todays_form(network: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As open_clip's `load_checkpoint` brings older and foreign checkpoints into its own form, without its resizing."""
    import torch
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(network, state)
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number or a list of one
        wanted = getattr(network, name, None)
        if name in state and wanted is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(wanted.shape)
    if "logit_bias" not in state and network.logit_bias is not None and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    return dict(state)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _named(fault: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{fault}: {', '.join(names[:_NAMED])}{more}"
