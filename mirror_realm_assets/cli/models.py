"""Commands about models: which there are, fetching their weights, and proving that they are the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.output import emit, human_bytes, json_option, safe, say, show
from mirror_realm_assets.errors import SetupError, as_error
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.weights.registry import ModelSpec


@click.group("models")
def models_group() -> None:
    """Weights of the models."""


@models_group.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All models, their licences, and whether their weights are here."""
    _print(_looked_at(Settings.read()), as_json)


@models_group.command("fetch")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@json_option
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download the weights of the models called NAME, or of all; what is here and right is left alone."""
    from mirror_realm_assets.weights import fetch as weights
    from mirror_realm_assets.weights.registry import MODELS, spec

    settings = Settings.read()
    # All names are looked up before anything is downloaded: a misspelt one costs no time.
    chosen = [spec(name) for name in names] if names else list(MODELS.values())
    for model in chosen:
        try:
            if weights.state(model, settings.models_dir) == "ok":
                say(f"{model.name}: already here.")
            else:
                weights.fetch(model, settings.models_dir, progress=lambda line: say(safe(line)))
                say(f"{model.name}: fetched.")
        except OSError as error:
            raise _unusable(settings.models_dir, error) from error
        if as_json:
            emit(_as_json(model, "ok"))


@models_group.command("verify")
@json_option
def verify(as_json: bool) -> None:
    """Read all weights and compare their digests; exit code 1 if any are missing or altered."""
    found = _looked_at(Settings.read())
    _print(found, as_json)
    for state, code in (("altered", "weights_altered"), ("missing", "weights_missing")):
        wrong = [model for model, its_state in found if its_state == state]
        if wrong:
            names = ", ".join(model.name for model in wrong)
            files = " ".join(str(Settings.read().models_dir / model.filename) for model in wrong)
            remedy = f"Delete {files} and run `mirror-realm models fetch`." if state == "altered" else None
            raise SetupError(code, f"Weights are {state}: {names}.", remedy=remedy)


@models_group.command("add")
@click.argument("file", type=click.Path(path_type=Path))
def add(file: Path) -> None:
    """Add a model of your own (not there yet)."""
    raise SetupError(
        "invalid_argument",
        f"{file.name} was not added: models of your own come with the enhancement engine, which is not there yet.",
        remedy="Until then use one of `mirror-realm models list`.",
    )


def _looked_at(settings: Settings) -> list[tuple[ModelSpec, str]]:
    from mirror_realm_assets.weights.fetch import state
    from mirror_realm_assets.weights.registry import MODELS

    try:
        return [(model, state(model, settings.models_dir)) for model in MODELS.values()]
    except OSError as error:
        raise _unusable(settings.models_dir, error) from error


def _unusable(folder: Path, error: OSError) -> SetupError:
    code = as_error(error, default="home_unusable").code
    return SetupError(code, f"The models folder {folder} cannot be used: {error.strerror or error}.")


def _print(found: list[tuple[ModelSpec, str]], as_json: bool) -> None:
    if as_json:
        for model, state in found:
            emit(_as_json(model, state))
        return
    from rich.table import Column, Table

    titles = ("name", "for", "licence", "size", "state", "digest")
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for model, state in found:
        size = human_bytes(model.bytes)
        table.add_row(model.name, model.purpose, safe(model.licence), size, state, model.weights_sha256[:12])
    show(table)


def _as_json(model: ModelSpec, state: str) -> dict[str, Any]:
    return {
        "name": model.name,
        "purpose": model.purpose,
        "title": model.title,
        "licence": model.licence,
        "digest": model.weights_sha256,
        "bytes": model.bytes,
        "state": state,
    }


COMMANDS = [models_group]
