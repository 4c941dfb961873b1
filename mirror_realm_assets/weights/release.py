"""Weights that no package carries: a file of a release, downloaded when a person asks for it, or given by one.

What belongs here: proving such a file to be the right one, converting it, and the record beside the converted file.
What does not: the facts about models (`registry`), the transfer (`download`), reading foreign files (`checkpoint`).

The published files are pickles. One is opened only after its sha256 was found to be the pinned one, and even then
nothing but tensors is taken from it. The digest of the converted file cannot stand in the registry, because nobody who
wrote it had the file: it is recorded as `NAME.json` in the models folder when the conversion is done, and verified from
then on. Where not even the published file's digest is known, the record pins that too, at its first use.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.checkpoint import read_checkpoint, write_tensors
from mirror_realm_assets.weights.download import download
from mirror_realm_assets.weights.fetch import (
    Progress,
    again,
    alone,
    require,
    settle,
    sha256_of,
    state,
    weights_path,
    write_atomically,
)
from mirror_realm_assets.weights.registry import ReleasedModel

if TYPE_CHECKING:
    import torch

_LOCK = ".released.lock"

# Where Real-ESRGAN's and GFPGAN's training code puts the weights; the averaged ones come first.
_INSIDE = ("params_ema", "params", "state_dict")

# spandrel recognises a network by its tensors, and calls it so.
_SPANDREL_IDS = {"RRDBNet": "ESRGAN", "SRVGGNetCompact": "Compact", "GFPGANv1Clean": "GFPGAN"}

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """What stands beside a converted file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal[1] = 1
    source_sha256: _Digest
    weights_sha256: _Digest
    bytes: Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Taken:
    """What `add` did; `new` is False when the weights were here already."""

    model: ReleasedModel
    new: bool


def resolved(model: ReleasedModel, models_dir: Path) -> ReleasedModel:
    """A released model with what is recorded about its weights in this folder; unchanged where nothing is.

    A record of another published file than the registry's counts for nothing.

    Raises:
        SetupError: `weights_altered` for a record that is damaged or of a newer version; `home_unusable` for one that
            cannot be read.
    """
    path = _record_path(model, models_dir)
    try:
        record = _Record.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return model
    except OSError as error:
        raise SetupError("home_unusable", f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise SetupError(
            "weights_altered",
            f"The record of {model.name}, {path}, is damaged, or of a newer version.",
            remedy=f"Restore it from a good copy; or delete it. {again(model)}",
        ) from error
    if model.source_sha256 not in (None, record.source_sha256):
        return model
    return replace(model, **record.model_dump(exclude={"form"}))


def fetch(
    model: ReleasedModel,
    models_dir: Path,
    *,
    context: ssl.SSLContext | None = None,
    progress: Progress | None = None,
) -> ReleasedModel:
    """Make sure that a released model's weights are in the models folder, downloading them if need be.

    Args:
        model: the model.
        models_dir: the models folder; made if absent.
        context: whom to trust; by default the authorities that this machine trusts.
        progress: called with one line for people before and during each slow step.

    Returns:
        The model with the digest of its verified weights.

    Raises:
        SetupError: `invalid_argument` when nobody knows the file's digest; `fetch_failed` when it cannot be had or is
            not the pinned one; `corrupt`, `unsupported`, `invalid_argument`, `disk_full` when it cannot be converted.
    """
    say = progress or (lambda line: None)
    with alone(models_dir / _LOCK):
        model = resolved(model, models_dir)
        if state(model, models_dir) == "ok":
            return model
        if model.source_sha256 is None:
            raise SetupError(
                "invalid_argument",
                f"{model.name} is not downloaded, because no two public sources state the digest of its file.",
                remedy=f"{again(model)} That pins the digest of your file, so look where it comes from.",
            )
        partial = models_dir / f".{model.name}.download"
        try:
            say(f"Downloading {model.url} ({model.download_bytes / 1e6:.0f} MB)")
            found = _downloaded(model, partial, context, say)
            if found != model.source_sha256:
                raise SetupError(
                    "fetch_failed",
                    f"The download of {model.url} is not the expected file: sha256 {found}, "
                    f"expected {model.source_sha256}.",
                )
            return _publish(model, partial, found, models_dir, say)
        finally:
            partial.unlink(missing_ok=True)


def _downloaded(model: ReleasedModel, path: Path, context: ssl.SSLContext | None, say: Progress) -> str:
    """As `download`, whose errors know nothing of the other way to the weights."""
    try:
        return download(model.url, path, size=model.download_bytes, context=context, progress=say)
    except SetupError as error:
        other = f"Or download it elsewhere and run `mirror-realm models add FILE --name {model.name}`."
        raise SetupError(error.code, error.message, remedy=f"{error.remedy} {other}") from error


def add(file: Path, model: ReleasedModel, models_dir: Path, *, progress: Progress | None = None) -> Taken:
    """Take the published file of a released model from where a person has it.

    Args:
        file: the published file, not a converted one. It is read as data, and only after its digest was compared.
        model: the model.
        models_dir: the models folder; made if absent.
        progress: called with one line for people before each slow step.

    Raises:
        SetupError: `not_found`, `unreadable`; `invalid_argument` for a file other than the pinned one, or of another
            network; `corrupt`, `unsupported`, `disk_full` as from `checkpoint`.
    """
    say = progress or (lambda line: None)
    if not file.is_file():
        raise SetupError("not_found", f"There is no file {file}.", remedy="Check the path.")
    say(f"Reading {file}")
    try:
        found = sha256_of(file)
    except OSError as error:
        raise SetupError("unreadable", f"{file} cannot be read: {error.strerror or error}.") from error
    with alone(models_dir / _LOCK):
        model = resolved(model, models_dir)
        if model.source_sha256 not in (None, found):
            raise SetupError(
                "invalid_argument",
                f"{file} is not the file that {model.name} stands for: sha256 {found}, expected {model.source_sha256}.",
                remedy=f"Take the file from {model.url}.",
            )
        if state(model, models_dir) == "ok":
            return Taken(model, new=False)
        return Taken(_publish(model, file, found, models_dir, say), new=True)


def _publish(model: ReleasedModel, source: Path, digest: str, models_dir: Path, say: Progress) -> ReleasedModel:
    """Convert a proven file, and record what came of it; only under the lock."""
    say(f"Converting {model.name}")
    tensors = read_checkpoint(source, inside=_INSIDE)
    _require_fit(model, tensors, source)
    converted = models_dir / f".{model.name}.converted"
    try:
        # A copy of each: what shares memory, or is a view of something larger, cannot be written.
        write_tensors({name: tensor.clone(memory_format=_contiguous()) for name, tensor in tensors.items()}, converted)
        record = _Record(
            source_sha256=digest, weights_sha256=sha256_of(converted), bytes=converted.stat().st_size
        ).model_dump_json(indent=2)
        settle(converted, weights_path(model, models_dir))
    finally:
        converted.unlink(missing_ok=True)
    # Last: weights without their record are of no use and are made again, a record without weights would be a claim.
    write_atomically(_record_path(model, models_dir), record.encode() + b"\n")
    model = resolved(model, models_dir)
    require(model, models_dir)
    return model


def _contiguous() -> torch.memory_format:
    import torch

    return torch.contiguous_format


def _require_fit(model: ReleasedModel, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """A file whose digest nobody knows may be anything, and one that is pinned must be what the registry says."""
    if _recognised(tensors) != (_SPANDREL_IDS[model.architecture], model.scale):
        raise SetupError(
            "invalid_argument",
            f"{source} holds no {model.architecture} of scale {model.scale}, which {model.name} is.",
            remedy=f"Take the file from {model.url}.",
        )
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise SetupError(
            "invalid_argument",
            f"The tensor {broken!r} of {source} holds values that are no numbers.",
            remedy=f"Take the file from {model.url}.",
        )


def _recognised(tensors: Mapping[str, torch.Tensor]) -> tuple[str, int] | None:
    """Architecture, as spandrel calls it, and scale of the network that these tensors fit exactly, if there is one."""
    from spandrel import ModelLoader

    try:
        descriptor = ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except MemoryError:
        raise
    except Exception:  # whatever else spandrel stumbles over, it is no network that it knows
        return None
    return str(descriptor.architecture.id), int(descriptor.scale)


def _record_path(model: ReleasedModel, models_dir: Path) -> Path:
    return models_dir / f"{model.name}.json"
