"""Models that a person added: the list of them in the models folder, and looking a model up by name.

What belongs here: the list's form, reading and writing it, and `find` and `every_model`, which know our models, the
released ones and the added ones. What does not: reading a person's weights file (`checkpoint`), fitting it to a network
(`open_clip_networks`), and doing all that in order (`adding`).

The list is read when a name is looked up, so that a process that runs sees a model added later. A list that cannot be
read is an error for whoever asks for an added model, and never an empty list; our own models are found without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.fetch import alone, write_atomically
from mirror_realm_assets.weights.registry import MODELS, RELEASED, Model, Purpose, spec
from mirror_realm_assets.weights.release import resolved

LIST = "added.json"
FOLDER = "added"
NAME = r"^[a-z0-9][a-z0-9.-]{0,60}$"
_LOCK = ".added.lock"

_Three = tuple[float, float, float]


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes what a network was trained on; its size comes from the network.

    Attributes:
        mean: subtracted, by channel, of values from 0 to 1.
        std: divided by, by channel.
        interpolation: of scaling.
        resize_mode: `shortest` scales the shorter side and cuts the middle out, `longest` scales the longer one and
            pads, `squash` scales both.
    """

    mean: _Three
    std: _Three
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]


@dataclass(frozen=True, kw_only=True)
class AddedModel(Model):
    """An open_clip model with weights of a person's own.

    Attributes:
        preparation: of its pictures.
        reads_text: whether it makes vectors of words too. Some architectures need a tokenizer that open_clip would
            fetch from a hub; those embed pictures only.
    """

    preparation: Preparation
    reads_text: bool

    @property
    def filename(self) -> str:
        """The converted file, relative to the models folder; in a folder of its own, where no model of ours comes."""
        return f"{FOLDER}/{self.name}.safetensors"

    def recipe_params(self) -> dict[str, Any]:
        """What its vectors depend on besides its weights, for a recipe."""
        return {"architecture": self.architecture, "preparation": asdict(self.preparation)}


class _Entry(BaseModel):
    """One model as the list holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    architecture: Annotated[str, Field(min_length=1, max_length=200)]
    licence: str
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(gt=0)]
    dim: Annotated[int, Field(gt=0)]
    preparation: Preparation
    reads_text: bool

    def model(self) -> AddedModel:
        return AddedModel(purpose="embed", title=title(self.architecture, self.dim), **dict(self))


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal[1]
    models: tuple[_Entry, ...]

    @field_validator("models")
    @classmethod
    def _each_name_once(cls, models: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        if len({model.name for model in models}) != len(models):
            raise ValueError("a name stands twice")
        return models


def title(architecture: str, dim: int) -> str:
    """What people read about an added model."""
    return f"{architecture} of open_clip, {dim}-dimensional picture embedding, added by hand"


_Key = tuple[int, int, int]  # mtime_ns, size, inode
_read: dict[str, tuple[_Key, tuple[AddedModel, ...]]] = {}


def added_models(models_dir: Path) -> tuple[AddedModel, ...]:
    """The models that were added to a models folder, in the order of adding. Read again only when the list changed.

    Raises:
        SetupError: `weights_altered` for a list that is damaged or of a newer version; `home_unusable` for one that
            cannot be read.
    """
    path = models_dir / LIST
    try:
        stat = path.stat()
        key = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        cached = _read.get(str(path.absolute()))
        if cached and cached[0] == key:
            return cached[1]
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise SetupError("home_unusable", f"{path} cannot be read: {error.strerror}.") from error
    found = _parsed(content, path)
    _read[str(path.absolute())] = (key, found)
    return found


def _parsed(content: bytes, path: Path) -> tuple[AddedModel, ...]:
    try:
        entries = _List.model_validate_json(content).models
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SetupError(
            "weights_altered",
            f"The list of added models {path} is damaged, or of a newer version: {where}: {first['msg']}.",
            remedy=f"Restore {LIST} from a good copy; or move it away and add your models again with "
            f"`mirror-realm models add`.",
        ) from error
    return tuple(entry.model() for entry in entries)


def find(models_dir: Path, name: str, purpose: Purpose | None = None) -> Model:
    """The model of that name, ours, released or added, and of that purpose if one is given.

    Raises:
        SetupError: `not_found`, naming the models there are; `invalid_argument` for one of another purpose; and as
            `added_models` and `release.resolved` when the name is that of no model of ours.
    """
    if name in MODELS and purpose in (None, MODELS[name].purpose):
        return spec(name, purpose)
    models = every_model(models_dir)
    fitting = [model for model in models if purpose in (None, model.purpose)]
    found = next((model for model in models if model.name == name), None)
    if found is None or found not in fitting:
        code = "not_found" if found is None else "invalid_argument"
        what = f"There is no model {name!r}" if found is None else f"The model {name!r} is not made for this"
        names = ", ".join(sorted(model.name for model in fitting))
        raise SetupError(code, f"{what}.", remedy=f"Choose one of: {names}.")
    return found


def every_model(models_dir: Path) -> tuple[Model, ...]:
    """All models there are, whether their weights are here or not: ours, released ones, added ones.

    Raises:
        SetupError: as `added_models` and `release.resolved`.
    """
    released = (resolved(model, models_dir) for model in RELEASED.values())
    return (*MODELS.values(), *released, *added_models(models_dir))


@contextmanager
def adding_alone(models_dir: Path) -> Iterator[None]:
    """Be the only process that adds models to this folder; waits for another one, whose lock ends with it."""
    (models_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    with alone(models_dir / _LOCK):
        yield


def record(models_dir: Path, model: AddedModel) -> None:
    """Put a model into the list, in the place of the one of that name; only under `adding_alone`."""
    listed = {known.name: known for known in added_models(models_dir)} | {model.name: model}
    entries = [_Entry(**{name: getattr(one, name) for name in _Entry.model_fields}) for one in listed.values()]
    content = _List(form=1, models=tuple(entries)).model_dump_json(indent=2)
    write_atomically(models_dir / LIST, content.encode() + b"\n")
