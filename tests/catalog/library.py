"""A small library in a catalog, built in one line: sources, files, batches, rules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import batches, features, files, items, media, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch, NewItem
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.media import Identified, Part
from mirror_realm_assets.catalog.wants import Recipe, Rule

RAW, EMBED, ENHANCE = "raw_media", "embeddings", "enhanced_images"
LIMITS = {"max_pixels": 500.0, "max_file_bytes": 10_000.0}
RULES = (
    Rule(RAW, (), lambda _policy: Recipe(RAW, "1"), of_bytes=True),
    Rule(EMBED, (RAW,), lambda policy: Recipe(EMBED, "1", {"model": policy.embedder})),
    Rule(
        ENHANCE,
        (RAW,),
        lambda policy: Recipe(ENHANCE, "1") if policy.enhance else None,
        lambda policy: policy.enhance_max_pixels,
    ),
)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content(text: str, *, mtime_ns: int = 1, width: int = 40, height: int = 30, parts: int = 1) -> Identified:
    pictures = tuple(
        Part(n, "still" if n == 0 else "page", digest_of(f"picture {n} of {text}"), width, height) for n in range(parts)
    )
    return Identified(digest_of(text), len(text), mtime_ns, mime="image/jpeg", parts=pictures)


def seen(path: bytes, text: str = "", *, mtime_ns: int = 1) -> Sighting:
    return Sighting("seen", path, len(text), mtime_ns)


class Library:
    """One catalog and shorthands for what the watcher and the workers do to it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def source(self, name: str = "photos", root: bytes = b"/photos", **options: Any) -> sources.Source:
        with self.catalog.write() as conn:
            return sources.add(conn, name, root, options)

    def sight(self, source: sources.Source, *sightings: Sighting, generation: int = 1) -> None:
        with self.catalog.write() as conn:
            files.write_journal(conn, source.id, generation, sightings)
            files.drain_journal(conn)

    def location(self, source: sources.Source, path: bytes) -> sa.RowMapping:
        c = t.locations.c
        with self.catalog.read() as conn:
            query = sa.select(t.locations).where(c.source_id == source.id, c.path == path)
            return conn.execute(query).mappings().one()

    def read(self, source: sources.Source, path: bytes, text: str, *, mtime_ns: int = 1, **shape: int) -> int:
        """The file is sighted and its bytes are identified; the media's id."""
        self.sight(source, seen(path, text, mtime_ns=mtime_ns))
        return self.identify(source, path, content(text, mtime_ns=mtime_ns, **shape))

    def identify(self, source: sources.Source, path: bytes, found: Identified) -> int:
        location_id = self.location(source, path)["id"]
        with self.catalog.write() as conn:
            return media.record(conn, location_id, found)

    def waiting(self, source: sources.Source) -> list[int]:
        with self.catalog.read() as conn:
            return [file.location_id for file in files.waiting(conn, source.id, 1000)]

    def form(
        self, source: sources.Source, *paths: bytes, of: Sequence[str] = (RAW, EMBED, ENHANCE), **options: Any
    ) -> Batch:
        new = [NewItem(location_id=self.location(source, path)["id"]) for path in paths]
        with self.catalog.write() as conn:
            return batches.form(conn, source, new, of, **options)

    def open_work(self, batch: Batch, source: sources.Source, **limits: float) -> list[Work]:
        with self.catalog.read() as conn:
            return items.open_work(conn, batch, source, RULES, LIMITS | limits)

    def settle(self, batch: Batch, source: sources.Source, after: str | None = None, **limits: float) -> list[Work]:
        with self.catalog.write() as conn:
            fresh = batches.by_id(conn, batch.id)
            return items.settle(conn, fresh, source, RULES, LIMITS | limits, after=after)

    def outcomes(self, batch: Batch) -> dict[tuple[int, str], tuple[str | None, str | None]]:
        c = t.batch_items.c
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.batch_items).where(c.batch_id == batch.id).order_by(c.id)).mappings()
            return {(row["n"], row["feature"]): (row["outcome"], row["code"]) for row in rows}

    def find(self, digest: str, feature: str, status: str = "ok", *, part: int = 0, **more: Any) -> Any:
        """Record a finding under the rules' recipe; returns the record."""
        recipe = next(rule.recipe(sources.SourcePolicy()) for rule in RULES if rule.feature == feature)
        assert recipe is not None
        key = FeatureKey(digest, part, feature, recipe.digest)
        with self.catalog.write() as conn:
            return features.write(conn, key, recipe, replace(Finding(status), **more))

    def read_raw(self, source: sources.Source, path: bytes, text: str, **shape: int) -> Identified:
        """The file's bytes are read and its `raw_media` is recorded, as a worker does it."""
        found = content(text, **shape)
        self.identify(source, path, found)
        self.find(found.digest, RAW)
        return found
