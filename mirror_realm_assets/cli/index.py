"""Commands about search indexes: what they hold, and making them anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, human_bytes, json_option, safe, say, show

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.index import Manifest
    from mirror_realm_assets.catalog.sources import Source
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

source_option = click.option("--source", "name", metavar="NAME", help="Of this source alone.")


@click.group("index")
def index_group() -> None:
    """Search indexes. They are a cache of the vectors in the store, and can always be made anew."""


@index_group.command("stats")
@source_option
@json_option
def stats(name: str | None, as_json: bool) -> None:
    """What the index of every source holds."""
    with _indexes(name) as (_settings, _services, found):
        pass
    for source, manifest in found:
        if as_json:
            emit({"source": source.name, **_as_json(manifest)})
        elif manifest is None:
            show(f"[bold]{safe(source.name)}[/bold]: no index yet")
        else:
            recall = "" if manifest.recall_at_10 is None else f", recall@10 {manifest.recall_at_10:.3f}"
            show(
                f"[bold]{safe(source.name)}[/bold]: {manifest.vectors} vectors of {manifest.dim} numbers by "
                f"{safe(manifest.model)}, {manifest.tombstones} dead ones, {len(manifest.segments)} segments, "
                f"{human_bytes(_bytes(manifest))}{recall}, version {manifest.version}"
            )


@index_group.command("compact")
@source_option
@json_option
def compact(name: str | None, as_json: bool) -> None:
    """Make the indexes anew that carry dead vectors; what is searched meanwhile is the old one."""
    _make_anew(name, as_json, only_dead=True)


@index_group.command("rebuild")
@source_option
@json_option
def rebuild(name: str | None, as_json: bool) -> None:
    """Make the indexes anew from the vectors in the store; nothing is computed."""
    _make_anew(name, as_json, only_dead=False)


def _make_anew(name: str | None, as_json: bool, *, only_dead: bool) -> None:
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.search.update import update_index

    with _indexes(name) as (settings, services, found):
        for source, manifest in found:
            if manifest is None or (only_dead and not manifest.tombstones):
                say(f"{safe(source.name)}: " + ("nothing is dead." if manifest else "no index yet."))
                continue
            report = update_index(services, standard_stages(settings), source.name, rebuild=True, kind="ingest")
            if as_json:
                emit(
                    {
                        "source": source.name,
                        "vectors": report.vectors,
                        "segments": report.segments,
                        "tombstones": report.tombstones,
                        "dropped": manifest.tombstones,
                        "version": report.version,
                        "seconds": round(report.seconds, 3),
                    }
                )
            else:
                show(
                    f"[bold]{safe(source.name)}[/bold]: {report.vectors} vectors in {report.segments} segments, "
                    f"{manifest.tombstones} dead ones dropped, in {report.seconds:.1f} s"
                )


@contextmanager
def _indexes(name: str | None) -> Iterator[tuple[Settings, Services, list[tuple[Source, Manifest | None]]]]:
    """Sources with the manifest of the index that is wanted of them."""
    from mirror_realm_assets.catalog import index, sources
    from mirror_realm_assets.pipeline import standard_stages

    with opened() as (settings, services):
        recipe_of = next(one for one in standard_stages(settings) if one.feature == "embeddings").recipe
        with services.catalog.read() as conn:
            chosen = [sources.get(conn, name)] if name else sources.all_sources(conn)
            found = []
            for source in chosen:
                recipe = recipe_of(source.policy)
                found.append((source, index.manifest(conn, source.id, recipe.digest) if recipe else None))
        yield settings, services, found


def _as_json(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"vectors": 0, "tombstones": 0, "segments": 0, "model": None}
    return {
        "vectors": manifest.vectors,
        "tombstones": manifest.tombstones,
        "segments": len(manifest.segments),
        "model": manifest.model,
        "recall_at_10": manifest.recall_at_10,
        "dim": manifest.dim,
        "bytes": _bytes(manifest),
        "version": manifest.version,
        "published_at": manifest.published_at,
    }


def _bytes(manifest: Manifest) -> int:
    return sum(segment.bytes for segment in manifest.segments)


COMMANDS = [index_group]
