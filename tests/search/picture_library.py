"""A small library for tests: rows as ingest and embedding leave them, and what a search must find by brute force."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mirror_realm_assets.catalog import inbox, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.search.build import IndexReport, build_index
from mirror_realm_assets.search.query import Caches, Hit, search
from mirror_realm_assets.store.keys import shard_key
from mirror_realm_assets.store.opening import open_store
from mirror_realm_assets.store.shards import ShardRow, encode_shard

DIM = 16
RECIPE = "a" * 64
OTHER = "b" * 64
MODEL = "toy-16"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _template() -> TemporaryDirectory[str]:
    """A folder with a migrated catalog; it goes when the tests end."""
    folder = TemporaryDirectory(prefix="picture-library-")
    catalog = Catalog(f"sqlite:///{folder.name}/catalog.sqlite")
    catalog.migrate()
    catalog.close()
    return folder


def new_catalog(folder: Path) -> Catalog:
    """A migrated catalog; migrating once and copying saves half a second a test."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(_template().name) / "catalog.sqlite", folder / "catalog.sqlite")
    return Catalog(f"sqlite:///{folder / 'catalog.sqlite'}")


@dataclass
class Media:
    id: int
    uuid: str
    source: str
    digest: str
    images: list[str]  # one a part
    places: dict[bytes, str] = field(default_factory=dict)


class Library:
    """A catalog and a store with sources, media and embeddings, and a plain model of them to compare with."""

    def __init__(
        self, folder: Path, *, seed: int = 0, names: Sequence[str] = ("photos",), catalog: Catalog | None = None
    ):
        self.catalog = catalog or new_catalog(folder)
        self.store = open_store(str(folder / "store"), self.catalog.uuid())
        self.rng = np.random.default_rng(seed)
        self.caches = Caches()
        self.media: list[Media] = []
        self.vectors: dict[tuple[str, str, int], np.ndarray] = {}
        self._count = itertools.count()
        with self.catalog.write() as conn:
            self.sources = {name: sources.add(conn, name, f"/{name}".encode(), {}) for name in names}

    def vector(self, like: np.ndarray | None = None) -> np.ndarray:
        """A unit vector, at random or near another."""
        found = self.rng.standard_normal(DIM) if like is None else like + 0.1 * self.rng.standard_normal(DIM)
        return (found / np.linalg.norm(found)).astype(np.float32)

    def picture(self) -> str:
        """The digest of a new picture."""
        return sha(f"image {next(self._count)}")

    def add(self, source: str = "photos", images: Sequence[str] | None = None, path: bytes | None = None) -> Media:
        """A new media of one or more parts at one place."""
        n = next(self._count)
        images = list(images or [self.picture()])
        media = Media(0, str(uuid.uuid4()), source, sha(f"bytes {n}"), images)
        row = self.sources[source]
        with self.catalog.write() as conn:
            at = now(conn)
            content = _insert(
                conn, t.contents, digest=media.digest, size=1, custody="referenced", mime="image/png", created_at=at
            )
            for part, image in enumerate(images):
                kind = "still" if part == 0 else "frame"
                values = {"width": 1, "height": 1, "time_s": float(part), "page": part}
                _insert(conn, t.parts, content_id=content, part=part, kind=kind, image_digest=image, **values)
            media.id = _insert(
                conn,
                t.media,
                uuid=media.uuid,
                project_id=row.project_id,
                source_id=row.id,
                owner_id=row.owner_id,
                content_id=content,
                created_at=at,
            )
        self.media.append(media)
        self.place(media, path or b"%d.png" % n)
        return media

    def place(self, media: Media, path: bytes) -> None:
        """The media lies at one more place."""
        with self.catalog.write() as conn:
            at = now(conn)
            values = {"size": 1, "mtime_ns": 1, "first_seen_at": at, "changed_at": at, "last_seen_at": at}
            source_id = self.sources[media.source].id
            text = path.decode(errors="replace")
            _insert(
                conn,
                t.locations,
                source_id=source_id,
                path=path,
                display=text,
                state="present",
                media_id=media.id,
                **values,
            )
            inbox.shown(conn, [media.id])
        media.places[path] = "present"

    def set_state(self, media: Media, state: str, paths: Iterable[bytes] | None = None) -> None:
        """All or some places of a media come to be `present`, `missing`, `deleted`, ..."""
        for path in list(paths or media.places):
            with self.catalog.write() as conn:
                where = (t.locations.c.media_id == media.id, t.locations.c.path == path)
                conn.execute(t.locations.update().where(*where).values(state=state))
                inbox.shown(conn, [media.id])
            media.places[path] = state

    def change(self, media: Media, images: Sequence[str]) -> None:
        """The file's bytes change: a new version of the same media."""
        with self.catalog.write() as conn:
            digest = sha(f"bytes {next(self._count)}")
            values = {"size": 1, "custody": "referenced", "created_at": now(conn)}
            content = _insert(conn, t.contents, digest=digest, **values)
            for part, image in enumerate(images):
                size = {"width": 1, "height": 1, "time_s": float(part), "page": part}
                _insert(conn, t.parts, content_id=content, part=part, kind="still", image_digest=image, **size)
            conn.execute(t.media.update().where(t.media.c.id == media.id).values(content_id=content))
            inbox.shown(conn, [media.id])
        media.digest, media.images = digest, list(images)

    def embed(
        self,
        media: Sequence[Media],
        recipe: str = RECIPE,
        vectors: Sequence[np.ndarray] | None = None,
        *,
        status: str = "ok",
        verified: bool = True,
    ) -> str | None:
        """Record embeddings of all parts that have none yet, in one shard; returns its key."""
        todo = {(image, part): None for one in media for part, image in enumerate(one.images)}
        subjects = [subject for subject in todo if (recipe, *subject) not in self.vectors]
        if not subjects:
            return None
        vectors = vectors or [self.vector() for _ in subjects]
        rows = [ShardRow(image, part, vector) for (image, part), vector in zip(subjects, vectors, strict=True)]
        data = encode_shard(rows, model=MODEL, recipe=recipe)
        stored = self.store.put(shard_key(hashlib.sha256(data).hexdigest()), data)
        with self.catalog.write() as conn:
            at = now(conn)
            for n, row in enumerate(rows):
                output = {"shard": stored.key, "sha256": stored.sha256, "row": n, "dim": DIM}
                values = {"retryable": False, "attempts": 1, "code_version": "1", "created_at": at, "updated_at": at}
                _insert(
                    conn,
                    t.features,
                    image_digest=row.image_digest,
                    part=row.part,
                    feature="embeddings",
                    recipe=recipe,
                    status=status,
                    output=output,
                    verified=verified,
                    **values,
                )
                if status == "ok" and verified:
                    half = row.vector.astype(np.float16)
                    self.vectors[recipe, row.image_digest, row.part] = half.astype(np.float64)
                    inbox.embedded(conn, recipe, [(row.image_digest, row.part)])
        return stored.key

    def build(self, source: str = "photos", recipe: str = RECIPE, **options: object) -> IndexReport:
        options = {"worker_id": "worker", "lease_seconds": 60.0, "segment_vectors": 8, **options}
        return build_index(self.catalog, self.store, self.sources[source], recipe, MODEL, **options)  # type: ignore[arg-type]

    def search(
        self, query: np.ndarray, recipe: str = RECIPE, k: int = 10, names: Sequence[str] | None = None
    ) -> list[Hit]:
        ids = None if names is None else [self.sources[name].id for name in names]
        return search(
            self.catalog,
            self.store,
            query,
            recipe=recipe,
            model=MODEL,
            k=k,
            source_ids=ids,
            caches=self.caches,
        )

    def expected(
        self, query: np.ndarray, recipe: str = RECIPE, k: int = 10, names: Sequence[str] | None = None
    ) -> list[tuple[str, int, list[bytes]]]:
        """Media, part and paths of the best `k`, by looking at everything."""
        ranked = []
        for one in self.media:
            paths = sorted(path for path, state in one.places.items() if state == "present")
            scores = [
                (-float((self.vectors[recipe, image, part] * query.astype(np.float64)).sum()), part)
                for part, image in enumerate(one.images)
                if (recipe, image, part) in self.vectors
            ]
            if scores and paths and (names is None or one.source in names):
                score, part = min(scores)
                ranked.append((score, one.digest, one.source, one.uuid, part, paths))
        ranked.sort()
        return [(row[3], row[4], row[5]) for row in ranked[:k]]

    def agrees(self, query: np.ndarray, **options: object) -> None:
        found = self.search(query, **options)  # type: ignore[arg-type]
        assert [(hit.media, hit.part, hit.paths) for hit in found] == self.expected(query, **options)  # type: ignore[arg-type]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))


def _insert(conn: object, table: object, **values: object) -> int:
    return int(conn.execute(table.insert().values(**values)).inserted_primary_key[0])  # type: ignore[attr-defined]
