"""Weights of a person's own for tests: open_clip networks with random numbers, saved to files.

Most tests use two toy architectures, which open_clip takes from a file as it takes its own: they are created in
milliseconds. One test uses the smallest architecture that open_clip ships.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SMALLEST = "ViT-S-32-alt"
TOY = "toy-vit"  # 16 numbers a vector
OTHER = "toy-resnet"  # 24 numbers a vector, a text tower of the custom form
PICTURES_ONLY = "toy-hub"  # its tokenizer is on a hub

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
_TOYS: dict[str, dict[str, Any]] = {
    TOY: {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT},
    OTHER: {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": _TEXT,
    },
    PICTURES_ONLY: {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": _TEXT | {"hf_tokenizer_name": "nobody/nothing"},
    },
}


@cache
def _folder() -> TemporaryDirectory[str]:
    """A folder for the files, with the toys made known to open_clip; it goes when the tests end."""
    import open_clip

    folder = TemporaryDirectory(prefix="own-models-")
    configs = Path(folder.name) / "configs"
    configs.mkdir()
    for name, config in _TOYS.items():
        (configs / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(configs)
    return folder


def tensors(architecture: str, seed: int = 0) -> dict[str, Any]:
    """A state dict of random numbers, in fp16 but for what counts batches."""
    import open_clip
    import torch

    _folder()
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        state = open_clip.create_model(architecture).state_dict()
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@cache
def weights_file(architecture: str, seed: int = 0) -> Path:
    """A safetensors file of random weights, made once a process; tests that change it copy it first."""
    from safetensors.torch import save_file

    path = Path(_folder().name) / f"{architecture}.{seed}.safetensors"
    save_file(tensors(architecture, seed), path)
    return path
