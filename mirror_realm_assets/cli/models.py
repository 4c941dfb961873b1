"""Commands about models: which there are, fetching their weights, and proving that they are the right ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.output import emit, human_bytes, json_option, safe, say, show
from mirror_realm_assets.errors import SetupError, as_error
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.weights.registry import Model, ModelSpec


@click.group("models")
def models_group() -> None:
    """Weights of the models."""


@models_group.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All models, their licences, and whether their weights are here."""
    _print(_looked_at(Settings.read().models_dir), as_json)


@models_group.command("fetch")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@json_option
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download the weights of the models called NAME, or of all; what is here and right is left alone."""
    from mirror_realm_assets.weights import fetch as weights
    from mirror_realm_assets.weights.added import find
    from mirror_realm_assets.weights.registry import MODELS

    settings = Settings.read()
    # All names are looked up before anything is downloaded: a misspelt one costs no time.
    chosen = [_fetched(find(settings.models_dir, name)) for name in names] if names else list(MODELS.values())
    for model in chosen:
        with _usable(settings.models_dir):
            if weights.state(model, settings.models_dir) == "ok":
                say(f"{model.name}: already here.")
            else:
                weights.fetch(model, settings.models_dir, progress=lambda line: say(safe(line)))
                say(f"{model.name}: fetched.")
        if as_json:
            emit(_as_json(model, "ok"))


def _fetched(model: Model) -> ModelSpec:
    """`model`, if its weights can be fetched."""
    from mirror_realm_assets.weights.fetch import again
    from mirror_realm_assets.weights.registry import ModelSpec

    if not isinstance(model, ModelSpec):
        raise SetupError(
            "invalid_argument", f"{model.name} is a model of your own and cannot be fetched.", remedy=again(model)
        )
    return model


@models_group.command("verify")
@json_option
def verify(as_json: bool) -> None:
    """Read all weights and compare their digests; exit code 1 if any are missing or altered."""
    from mirror_realm_assets.weights.fetch import again, weights_path

    models_dir = Settings.read().models_dir
    found = _looked_at(models_dir)
    _print(found, as_json)
    for state, code in (("altered", "weights_altered"), ("missing", "weights_missing")):
        wrong = [model for model, its_state in found if its_state == state]
        if wrong:
            names = ", ".join(model.name for model in wrong)
            paths = [weights_path(model, models_dir) if state == "altered" else None for model in wrong]
            remedies = dict.fromkeys(again(model, altered=path) for model, path in zip(wrong, paths, strict=True))
            raise SetupError(code, f"Weights are {state}: {names}.", remedy=" ".join(remedies))


@models_group.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--architecture", required=True, help="Its network, by open_clip's name, such as ViT-B-32.")
@click.option("--name", help="What to call the model.  [default: the file's name]")
@click.option("--licence", help="Of the weights, as it is to be shown.")
@click.option("--tag", help="The published weights whose preparation of pictures it shares, by open_clip's name.")
@json_option
def add(file: Path, architecture: str, name: str | None, licence: str | None, tag: str | None, as_json: bool) -> None:
    """Add an open_clip model with weights of your own from FILE, which is read as data and never run."""
    from mirror_realm_assets.weights.adding import add as add_model

    models_dir = Settings.read().models_dir
    with _usable(models_dir):
        added = add_model(
            file.expanduser().absolute(),
            architecture,
            models_dir,
            name=name,
            licence=licence,
            tag=tag,
            progress=lambda line: say(safe(line)),
        )
    model, prepared = added.model, added.model.preparation
    say(f"[bold]{model.name}[/bold]: {'added' if added.new else 'already here'}, {human_bytes(model.bytes)}.")
    say(
        f"Pictures are prepared with resize mode {prepared.resize_mode}, {prepared.interpolation}, "
        f"mean {_three(prepared.mean)}, std {_three(prepared.std)}."
    )
    if not model.reads_text:
        say(f"It embeds pictures only: open_clip has no tokenizer of its own for {model.architecture}.")
    say(f"Use it: mirror-realm sources set NAME --option embedder={model.name}")
    if as_json:
        emit(_as_json(model, "ok"))


def _three(numbers: tuple[float, float, float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def _looked_at(models_dir: Path) -> list[tuple[Model, str]]:
    from mirror_realm_assets.weights.added import added_models
    from mirror_realm_assets.weights.fetch import state
    from mirror_realm_assets.weights.registry import MODELS

    with _usable(models_dir):
        return [(model, state(model, models_dir)) for model in (*MODELS.values(), *added_models(models_dir))]


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = as_error(error, default="home_unusable").code
        message = f"The models folder {folder} cannot be used: {error.strerror or error}."
        raise SetupError(code, message) from error


def _print(found: list[tuple[Model, str]], as_json: bool) -> None:
    if as_json:
        for model, state in found:
            emit(_as_json(model, state))
        return
    from rich.table import Column, Table

    from mirror_realm_assets.weights.added import AddedModel

    titles = ("name", "for", "licence", "size", "state", "digest")
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for model, state in found:
        purpose = f"{model.purpose} (added)" if isinstance(model, AddedModel) else model.purpose
        size = human_bytes(model.bytes)
        table.add_row(model.name, purpose, safe(model.licence), size, state, model.weights_sha256[:12])
    show(table)


def _as_json(model: Model, state: str) -> dict[str, Any]:
    from mirror_realm_assets.weights.added import AddedModel

    return {
        "name": model.name,
        "purpose": model.purpose,
        "title": model.title,
        "licence": model.licence,
        "digest": model.weights_sha256,
        "bytes": model.bytes,
        "state": state,
        "architecture": model.architecture,
        "dim": model.dim,
        "added": isinstance(model, AddedModel),
        "reads_text": model.purpose == "text" or (isinstance(model, AddedModel) and model.reads_text),
    }


COMMANDS = [models_group]
