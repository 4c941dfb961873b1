"""What the catalog knows of files that are the same, or may look the same.

What belongs here: queries about contents that are at some place now. What does not: comparing perceptual hashes
(`ingest.near`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import files
from mirror_realm_assets.catalog import tables as t

_PAGE = 500
# A video or a document is more than its first picture.
_COMPARED_KINDS = ("still", "animation")


@dataclass(frozen=True)
class Copy:
    """One media that has a content now, with the places where it is.

    Attributes:
        paths: raw bytes, relative to the source's folder.
        image_digest: of its first picture; None when it has none that is compared.
        width: of its first picture, upright; None when it has none.
        height: likewise.
        bytes: of one file.
    """

    content_id: int
    media: str
    digest: str
    source_id: int
    paths: tuple[bytes, ...]
    image_digest: str | None
    width: int | None
    height: int | None
    bytes: int

    @property
    def pixels(self) -> int:
        """Of its first picture; 0 when it has none."""
        return (self.width or 0) * (self.height or 0)


def same_bytes(conn: sa.Connection, source_ids: Sequence[int]) -> list[int]:
    """Ids of the contents that are at several places."""
    places = sa.func.count(t.locations.c.id)
    query = _places(source_ids, t.media.c.content_id).group_by(t.media.c.content_id).having(places > 1)
    return list(conn.execute(query).scalars())


def same_picture(conn: sa.Connection, source_ids: Sequence[int]) -> list[list[int]]:
    """Ids of contents that show the same picture in other bytes, as when only the metadata was changed."""
    p = t.parts.c
    shown = (p.part == 0, p.kind.in_(_COMPARED_KINDS), p.content_id.in_(_present(source_ids)))
    several = sa.select(p.image_digest).where(*shown).group_by(p.image_digest).having(sa.func.count() > 1)
    query = sa.select(p.image_digest, p.content_id).where(*shown, p.image_digest.in_(several))
    rows = conn.execute(query.order_by(p.image_digest, p.content_id))
    return [[row.content_id for row in group] for _digest, group in groupby(rows, lambda row: row.image_digest)]


def hashed(conn: sa.Connection, source_ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Id and perceptual hash of every content that has one, the best first: most pixels, then most bytes."""
    c, p = t.contents.c, t.parts.c
    query = (
        sa.select(c.id, c.phash)
        .join(t.parts, sa.and_(p.content_id == c.id, p.part == 0, p.kind.in_(_COMPARED_KINDS)))
        .where(c.phash.is_not(None), c.id.in_(_present(source_ids)))
        .order_by((sa.cast(p.width, t.BigInt) * p.height).desc(), c.size.desc(), c.digest)
    )
    for row in conn.execute(query):
        yield row.id, row.phash


def copies(conn: sa.Connection, source_ids: Sequence[int], content_ids: Sequence[int]) -> dict[int, list[Copy]]:
    """By content, its media with the places that they are at now; a content that is at none any more is left out."""
    found: dict[int, list[Copy]] = {}
    ids = iter(content_ids)
    while page := list(islice(ids, _PAGE)):
        rows = conn.execute(_described(source_ids, page))
        for _media, group in groupby(rows, lambda row: row.id):
            places = list(group)
            first = places[0]
            found.setdefault(first.content_id, []).append(
                Copy(
                    content_id=first.content_id,
                    media=first.uuid,
                    digest=first.digest,
                    source_id=first.source_id,
                    paths=tuple(bytes(row.path) for row in places),
                    image_digest=first.image_digest,
                    width=first.width,
                    height=first.height,
                    bytes=first.size,
                )
            )
    return found


def _described(source_ids: Sequence[int], content_ids: Sequence[int]) -> sa.Select[Any]:
    c, m, p = t.contents.c, t.media.c, t.parts.c
    columns = (m.id, m.uuid, m.source_id, m.content_id, c.digest, c.size, p.image_digest, p.width, p.height)
    return (
        _places(source_ids, *columns, t.locations.c.path)
        .join(t.contents, c.id == m.content_id)
        .outerjoin(t.parts, sa.and_(p.content_id == c.id, p.part == 0))
        .where(m.content_id.in_(content_ids))
        .order_by(m.content_id, m.id, t.locations.c.path)
    )


def _present(source_ids: Sequence[int]) -> sa.Select[Any]:
    return _places(source_ids, t.media.c.content_id)


def _places(source_ids: Sequence[int], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Places that hold now what was read there."""
    return (
        sa.select(*columns)
        .select_from(t.locations)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        # Not the places' own source: by its index SQLite would go through a million places for each page of contents.
        .where(t.media.c.source_id.in_(source_ids), t.locations.c.state == "present", ~files.unidentified())
    )
