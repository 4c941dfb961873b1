"""Adding a model of a person's own: from a weights file to an entry in the models folder.

What belongs here: the order of steps, and that a step that fails leaves nothing. What does not: each step itself
(`checkpoint`, `open_clip_networks`, `added`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights import added
from mirror_realm_assets.weights import open_clip_networks as networks
from mirror_realm_assets.weights.added import AddedModel
from mirror_realm_assets.weights.checkpoint import read_checkpoint, write_tensors
from mirror_realm_assets.weights.fetch import Progress, require, settle, sha256_of, state, weights_path
from mirror_realm_assets.weights.hardware import free_memory
from mirror_realm_assets.weights.registry import MODELS, RELEASED

_UNKNOWN_LICENCE = "not stated"


@dataclass(frozen=True)
class Addition:
    """What `add` did; `new` is False when the model was there already, with the same weights."""

    model: AddedModel
    new: bool


def add(
    file: Path,
    architecture: str,
    models_dir: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    tag: str | None = None,
    progress: Progress | None = None,
) -> Addition:
    """Add a model with weights of a person's own.

    The file is read as data, must fit the architecture exactly, is kept in its own precision as one safetensors file,
    and runs once before it is listed. Adding the same again changes nothing but a licence given anew, and mends weights
    that are missing or altered.

    Args:
        file: a safetensors file, or one of `torch.save`.
        architecture: by open_clip's name.
        models_dir: the models folder; made if absent.
        name: of the model; by default the file's name, cleaned.
        licence: of the weights, for people.
        tag: see `open_clip_networks.preparation_of`.
        progress: called with one line for people before each slow step.

    Raises:
        SetupError: `not_found`, `invalid_argument`, `corrupt`, `unsupported` for a name, an architecture or a file that
            will not do; `already_exists` for a name that another model has; `disk_full`, `out_of_memory`; and as
            `added.added_models`.
    """
    say = progress or (lambda line: None)
    name = _checked(name) if name is not None else _cleaned(file)
    if name in MODELS or name in RELEASED:
        raise SetupError("already_exists", f"{name} is a model of Mirror Realm itself.", remedy="Give another --name.")
    say("Loading open_clip")
    architecture = networks.architecture_of(architecture)
    preparation = networks.preparation_of(architecture, tag)
    say(f"Reading {file}")
    tensors = networks.fitted(architecture, read_checkpoint(file))
    with added.adding_alone(models_dir):
        known = next((model for model in added.added_models(models_dir) if model.name == name), None)
        temporary = _temporary(models_dir)
        try:
            write_tensors(tensors, temporary)
            numbers = sum(tensor.numel() for tensor in tensors.values())
            del tensors  # as large as the network that is built next
            dim = networks.dim_of(architecture)
            model = AddedModel(
                name=name,
                purpose="embed",
                title=added.title(architecture, dim),
                licence=licence or (known.licence if known else _UNKNOWN_LICENCE),
                architecture=architecture,
                weights_sha256=sha256_of(temporary),
                bytes=temporary.stat().st_size,
                dim=dim,
                preparation=preparation,
                reads_text=networks.reads_text(architecture),
            )
            if known is not None and replace(known, licence=model.licence) != model:
                raise SetupError(
                    "already_exists",
                    f"There is a model {name} already, with other weights or another architecture.",
                    remedy="Give another --name.",
                )
            if known is None or state(known, models_dir) != "ok":
                say(f"Trying {name} out")
                _require_memory(numbers)
                _try_out(model, temporary)
                settle(temporary, weights_path(model, models_dir))
        finally:
            temporary.unlink(missing_ok=True)
        if model != known:
            added.record(models_dir, model)
    require(model, models_dir)
    return Addition(model, new=known is None)


def _checked(name: str) -> str:
    if not re.fullmatch(added.NAME, name) or name.endswith("\n"):
        raise SetupError(
            "invalid_argument",
            f"{name!r} is no name of a model.",
            remedy="Use up to 61 of a-z, 0-9, - and ., with a letter or digit in front.",
        )
    return name


def _cleaned(file: Path) -> str:
    """A model's name from its file's."""
    words = re.sub(r"[^a-z0-9.-]+", "-", file.stem.lower()).lstrip("-.")[:61].rstrip("-.")
    if not words:
        raise SetupError("invalid_argument", f"{file.name!r} makes no name for a model.", remedy="Give a --name.")
    return words


def _temporary(models_dir: Path) -> Path:
    """Where weights are written first, under a name that no model can have; what a killed addition left there goes.

    open_clip takes a file for safetensors by its suffix, and unpickles any other.
    """
    path = models_dir / added.FOLDER / ".adding.safetensors"
    path.unlink(missing_ok=True)
    return path


def _require_memory(numbers: int) -> None:
    """The system kills a process that takes more than there is, without a word."""
    needed, free = 2 * 4 * numbers, free_memory("cpu")  # the network in fp32, and the tensors it is filled from
    if free < needed:
        raise SetupError(
            "out_of_memory",
            f"The model needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free.",
            remedy="Free memory, or choose a smaller model.",
        )


def _try_out(model: AddedModel, weights: Path) -> None:
    """One grey picture, and one word where it reads words: tensors can fit and still compute nothing."""
    import torch
    from PIL import Image

    network, transform = networks.build(model.architecture, weights, model.preparation)
    with torch.inference_mode():
        vectors = [network.encode_image(transform(Image.new("RGB", (64, 64), (120, 120, 120)))[None])]
        if model.reads_text:
            vectors.append(network.encode_text(networks.tokenizer(model.architecture)(["a picture"])))
    for vector in vectors:
        if vector.shape != (1, model.dim) or not vector.isfinite().all() or not vector.any():
            raise SetupError(
                "invalid_argument",
                f"These weights make no usable vectors with {model.architecture}.",
                remedy="Check that the file is whole, and the architecture it was trained as.",
            )
