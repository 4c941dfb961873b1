"""Weights files that others wrote: tensors by name, and nothing else.

What belongs here: the containers in which networks are published, read as data, and writing tensors as our own form.
What does not: whether the tensors fit a network (`open_clip_networks`, `release`).

A file from somewhere may be a program in disguise: a pickle runs what it names. Nothing here unpickles anything but
tensors and plain containers; whatever holds more is refused.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# What is left of the attributes of a TorchScript program when only its tensors were kept; open_clip drops them too.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

_SPARE = 64 * 1024**2  # what must stay free on the disk, so that the list and the catalog can still be written


def read_checkpoint(path: Path, *, inside: Sequence[str] = ("state_dict",)) -> State:
    """The tensors of a `.safetensors` file, or of a file written by `torch.save`.

    Args:
        path: anything; only the suffix `.safetensors` has a meaning.
        inside: under which keys a file may hold its tensors by name; the first one that is there counts.

    Returns:
        Dense tensors in main memory (mapped from the file where its form allows), under their names without a
        `module.` in front of all of them. Of a training checkpoint, what is `inside` it.

    Raises:
        SetupError: `not_found`, `corrupt`, or `unsupported` for a file that is more than tensors.
    """
    if not path.is_file():
        raise SetupError("not_found", f"There is no file {path}.", remedy="Check the path.")
    try:
        loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch_save(path)
    except OSError as error:
        raise SetupError("unreadable", f"{path} cannot be read: {error.strerror or error}.") from error
    state = _tensors(loaded, path, inside)
    if all(name.startswith("module.") for name in state):  # written by a network that was trained on several GPUs
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name not in _NO_WEIGHTS}


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as a safetensors file without metadata, the same bytes for the same tensors.

    Raises:
        SetupError: `disk_full`, before anything is written.
    """
    from safetensors.torch import save_file

    needed = sum(tensor.nbytes for tensor in tensors.values()) + _SPARE
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise SetupError(
            "disk_full",
            f"{path.parent} has {free / 1e6:.0f} MB free, and the weights need {needed / 1e6:.0f} MB.",
            remedy="Free space on its disk, then add the model again.",
        )
    save_file(dict(tensors), path)


def _safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise SetupError("corrupt", f"{path} is no complete safetensors file: {error}.") from error


def _torch_save(path: Path) -> object:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they tell developers how to load what we refuse
            # Mapped: a training checkpoint holds twice as much again that is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise _more_than_tensors(path) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if "weights_only" in str(error):  # a TorchScript program, or a form older than 2018
            raise _more_than_tensors(path) from error
        raise SetupError("corrupt", f"{path} is no complete file of torch.save: {error}.") from error


def _more_than_tensors(path: Path) -> SetupError:
    return SetupError(
        "unsupported",
        f"{path} is no plain file of tensors: it may hold a program, and nothing of it was run.",
        remedy="Take the model's safetensors file, or save its state_dict alone where you trust the file.",
    )


def _tensors(loaded: object, path: Path, inside: Sequence[str]) -> State:
    import torch

    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in inside if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise SetupError("unsupported", f"{path} holds no tensors by name.", remedy="Give a state_dict.")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise SetupError(
                "unsupported", f"{path} holds {name!r}, which is no tensor.", remedy="Save its state_dict alone."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise SetupError(
                "unsupported", f"The tensor {name!r} of {path} is not dense.", remedy="Save it in fp32, bf16 or fp16."
            )
    return dict(loaded)
