"""Finding pictures, like a given one or by words: from a question to hits with full paths.

What belongs here: joining the models that make queries with the search, over all sources. What does not: either of
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from mirror_realm_assets.catalog import sources, switching
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.switching import OlderIndex
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest.decoders import decoder
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.flow import decode_proxy
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.understand.stage import embedder
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.fetch import require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mirror_realm_assets.search.query import Hit

    Vector = npt.NDArray[np.float32]

Kind = Literal["like", "label", "text"]


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        kind: how the first hits were found: `like` a picture, by the `label`s of the default embedder, or by a model
            that reads `text`. Hits of another kind come after them, under another model's name, and a note says so.
        hits: best first, with absolute paths.
        notes: what a person should know about the search, a sentence or two each.
    """

    kind: Kind
    hits: list[Hit]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Query:
    vector: Vector
    kind: Kind
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Sources whose vectors can be compared with one query.

    `notes` are about sources that are searched by the embedder they had before.
    """

    recipe: str
    model: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def find_like(
    settings: Settings, services: Services, picture: Path, *, count: int = 10, source_name: str | None = None
) -> Answer:
    """The pictures most like a file, best first; the file itself is found like any other.

    Sources with different embedders are searched with their own model each; scores of different models cannot be
    compared, so the first model's hits come whole before the next one's.

    Args:
        settings: of this process.
        services: catalog, store, models.
        picture: read and decoded as untrusted, never kept.
        count: how many hits.
        source_name: search one source only.

    Raises:
        Refused: the file is no picture we can decode.
        Failed: it cannot be read.
        SetupError: unknown source, missing weights.
    """
    groups = _groups(settings, services, source_name)
    path = picture.expanduser().absolute()
    folder, name = os.fsencode(path.parent), os.fsencode(path.name)
    with read_original(folder, name, max_bytes=settings.max_file_bytes) as original:
        decoded = decoder(services).proxy(original.fd, long_side=settings.proxy_long_side)
    image = decode_proxy(decoded.first.proxy)

    def query(group: _Group) -> _Query:
        return _Query(embedder(services, group.model).embed([image])[0], "like")

    return _answer(services, groups, query, default="like", count=count)


def find_text(
    settings: Settings, services: Services, text: str, *, count: int = 10, source_name: str | None = None
) -> Answer:
    """The pictures that words say most about, best first.

    Sources with different embedders are searched with their own model each, as in `find_like`. A source whose model
    knows no words is left out with a note, unless there is no other.

    Args:
        settings: of this process.
        services: catalog, store, models.
        text: English or Chinese words.
        count: how many hits.
        source_name: search one source only.

    Raises:
        SetupError: `invalid_argument` for a text without words we know, or when no source can be searched by words;
            unknown source, missing weights.
    """
    from mirror_realm_assets.understand.words import NoWordsError, query_of, understood

    groups = _groups(settings, services, source_name)
    understood(text)  # refused in an empty library too
    left_out: list[NoWordsError] = []

    def query(group: _Group) -> _Query | None:
        try:
            made = query_of(text, services=services, embedder_name=group.model)
        except NoWordsError as error:
            left_out.append(error)
            return None
        return _Query(made.vector, made.kind, made.notes)

    answer = _answer(services, groups, query, default="label", count=count)
    if left_out and len(left_out) == len(groups):
        raise left_out[0]
    notes = tuple(f"Some sources were left out: {error.message}" for error in left_out)
    return replace(answer, notes=answer.notes + notes)


def _groups(settings: Settings, services: Services, source_name: str | None) -> list[_Group]:
    """The sources by the recipe that answers: the wanted one, or the one before until the wanted is complete."""
    stage = next(stage for stage in standard_stages(settings) if stage.feature == "embeddings")
    by_recipe: dict[str, _Group] = {}
    with services.catalog.read() as conn:
        for source in [sources.get(conn, source_name)] if source_name else sources.all_sources(conn):
            recipe = stage.recipe(source.policy)
            if recipe is None:
                continue
            older = _serving(conn, settings, source, recipe.digest)
            answering = _Group(recipe.digest, source.policy.embedder, (source,))
            if older is not None:
                answering = _Group(older.recipe, older.model, (source,), (_changing(source, older),))
            known = by_recipe.get(answering.recipe)
            if known is not None:
                answering = replace(
                    known, sources=known.sources + answering.sources, notes=known.notes + answering.notes
                )
            by_recipe[answering.recipe] = answering
    return list(by_recipe.values())


def _serving(conn: sa.Connection, settings: Settings, source: Source, recipe: str) -> OlderIndex | None:
    """The index before the wanted one, if that is not complete yet and the older model can still make queries."""
    for older in switching.older_indexes(conn, source.id, recipe):
        if _is_there(settings, older) and switching.is_waited_for(conn, source.id, older.recipe, recipe):
            return older
    return None


def _is_there(settings: Settings, older: OlderIndex) -> bool:
    try:
        model = find(settings.models_dir, older.model, "embed")
        require(model, settings.models_dir)
    except SetupError:
        return False
    return model.weights_sha256 == older.model_digest


def _changing(source: Source, older: OlderIndex) -> str:
    wanted = source.policy.embedder
    what = f"The embedder of {source.name} was changed to {wanted}"
    if wanted == older.model:
        what = f"What the vectors of {source.name} are made from has changed"
    return (
        f"{what}. Until all its pictures are embedded anew, those of before are found by {older.model}, and newer "
        "pictures are not found yet: see `mirror-realm status`."
    )


def _answer(
    services: Services, groups: Sequence[_Group], query: Callable[[_Group], _Query | None], *, default: Kind, count: int
) -> Answer:
    """The hits of every group in turn; a group without a query is passed over."""
    hits: list[Hit] = []
    kinds: list[Kind] = []
    notes: dict[str, None] = {}
    for group in groups:
        made = query(group)
        if made is None:
            continue
        notes |= dict.fromkeys(group.notes)
        found = _found(services, group, made.vector, count)
        kinds += [made.kind] * len(found)
        hits += found
        notes |= dict.fromkeys(made.notes)
    kinds, hits = kinds[:count], hits[:count]
    if len(set(kinds)) > 1:
        notes["Models of two kinds answered; their scores cannot be compared, so the hits of one come first."] = None
    ranked = [replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]
    return Answer(kinds[0] if kinds else default, ranked, tuple(notes))


def _found(services: Services, group: _Group, vector: Vector, count: int) -> list[Hit]:
    from mirror_realm_assets.search.query import search

    found = search(
        services.catalog,
        services.store,
        vector,
        recipe=group.recipe,
        model=group.model,
        source_ids=[source.id for source in group.sources],
        k=count,
    )
    roots = {source.name: source.root for source in group.sources}
    return [_absolute(hit, roots[hit.source]) for hit in found]


def _absolute(hit: Hit, root: bytes) -> Hit:
    return replace(hit, paths=[os.path.join(root, path) for path in hit.paths])  # noqa: PTH118 - bytes
