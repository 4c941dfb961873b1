"""What an export can take: pictures of a source with their places, their enhanced pictures, and what sidecars say.

What belongs here: that query, a page at a time. What does not: which of it is wanted, and its names (`export`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import sidecars
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.wants import PartFacts

_PAGE = 400  # stays below SQLite's limit of bound variables
_THERE = ("present", "missing", "unreadable")  # a drive that is away deletes nothing


@dataclass(frozen=True)
class Place:
    """Where a file of the source is: relative path as raw bytes, and when it was last written."""

    path: bytes
    mtime_ns: int


@dataclass(frozen=True)
class Made:
    """An enhanced picture: the digest of its recipe, and what was recorded as its output."""

    recipe: str
    output: Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A media of a source whose first part is a picture.

    Attributes:
        digest: sha256 of the original's bytes.
        size: of it, in bytes.
        taken_at: when it was taken, as its camera said.
        facts: of the picture.
        places: where it is, in the order of their paths; at least one.
        made: what a feature made of it, the newest first.
        said: what its sidecars say, with their kinds; those of the first place come first.
    """

    digest: str
    size: int
    taken_at: str | None
    facts: PartFacts
    places: Sequence[Place]
    made: Sequence[Made]
    said: Sequence[tuple[str, Mapping[str, Any]]]


def pictures(catalog: Catalog, source_id: int, feature: str) -> Iterator[Picture]:
    """The pictures of a source that are not deleted, in transactions of a page each.

    Args:
        catalog: the ledger.
        source_id: the source.
        feature: whose outputs are wanted with them.
    """
    last = 0
    while True:
        with catalog.read() as conn:
            rows = _page(conn, source_id, last)
            places = _places(conn, [row["id"] for row in rows])
            made = _made(conn, feature, {row["image_digest"] for row in rows})
            paths = [place.path for found in places.values() for place in found]
            said = sidecars.by_picture(conn, source_id, paths)
        if not rows:
            return
        last = rows[-1]["id"]
        for row in rows:
            if row["id"] not in places:
                continue
            mine = places[row["id"]]
            yield Picture(
                digest=row["digest"],
                size=row["size"],
                taken_at=row["taken_at"],
                facts=PartFacts(row["width"], row["height"], row["kind"]),
                places=mine,
                made=made.get(row["image_digest"], ()),
                said=[each for place in mine for each in said.get(place.path, ())],
            )


def _page(conn: sa.Connection, source_id: int, last: int) -> Sequence[sa.RowMapping]:
    m, c, p = t.media.c, t.contents.c, t.parts.c
    query = (
        sa.select(m.id, c.digest, c.size, c.taken_at, p.kind, p.image_digest, p.width, p.height)
        .join(t.contents, c.id == m.content_id)
        .join(t.parts, sa.and_(p.content_id == c.id, p.part == 0))
        .where(m.source_id == source_id, m.id > last)
        .order_by(m.id)
        .limit(_PAGE)
    )
    return conn.execute(query).mappings().all()


def _places(conn: sa.Connection, ids: Sequence[int]) -> dict[int, list[Place]]:
    loc = t.locations.c
    query = sa.select(loc.media_id, loc.path, loc.mtime_ns).where(loc.media_id.in_(ids), loc.state.in_(_THERE))
    found: dict[int, list[Place]] = {}
    for row in conn.execute(query):
        found.setdefault(row[0], []).append(Place(bytes(row[1]), row[2]))
    return {media: sorted(mine, key=lambda place: place.path) for media, mine in found.items()}


def _made(conn: sa.Connection, feature: str, digests: Collection[str]) -> dict[str, list[Made]]:
    f = t.features.c
    query = (
        sa.select(f.image_digest, f.recipe, f.output)
        .where(f.image_digest.in_(digests), f.part == 0, f.feature == feature, f.status == "ok")
        .order_by(f.updated_at.desc(), f.id.desc())
    )
    found: dict[str, list[Made]] = {}
    for digest, recipe, output in conn.execute(query):
        if output and "key" in output:
            found.setdefault(digest, []).append(Made(recipe, output))
    return found
