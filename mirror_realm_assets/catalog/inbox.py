"""What an index has to look at: pictures that came to have a vector, or came to be shown, since it was built.

What belongs here: noting such pictures in the transaction that makes them so, and forgetting them. What does not:
whether one is really pending, which `lacking` decides by set difference.

A note is a hint and no more, but it saves every search and every build a look at all embeddings of a library. It may be
there twice or for nothing. Should one ever be missing, a full look finds its picture: the first of an index, those of
the sensor every few minutes, and each that somebody asks for by hand. Two transactions can miss each other so: one
records a vector while another adds a source's first file with that picture. Notes are never merged: one that is being
looked at must not swallow one that is written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import chunks

FEATURE = "embeddings"


@dataclass(frozen=True)
class Note:
    """A picture that has to be looked at: the row's id, image digest, and part."""

    id: int
    image_digest: str
    part: int


def embedded(conn: sa.Connection, recipe: str, subjects: Iterable[tuple[str, int]]) -> None:
    """Note that pictures, `(image digest, part)` each, have a vector under `recipe`: for every source that has them."""
    p, m = t.parts.c, t.media.c
    wanted = set(subjects)
    query = (
        sa.select(m.source_id, p.image_digest, p.part)
        .distinct()
        .join_from(t.parts, t.media, m.content_id == p.content_id)
    )
    rows = [
        {"source_id": row[0], "recipe": recipe, "image_digest": row[1], "part": row[2]}
        for chunk in chunks(sorted({digest for digest, _part in wanted}))
        for row in conn.execute(query.where(p.image_digest.in_(chunk)))
        if (row[1], row[2]) in wanted
    ]
    if rows:
        conn.execute(t.index_inbox.insert(), rows)


def shown(conn: sa.Connection, media_ids: Iterable[int]) -> None:
    """Note the pictures of media that came to be shown, or came to have other pictures, as far as they have vectors."""
    p, m, f = t.parts.c, t.media.c, t.features.c
    query = (
        sa.select(m.source_id, f.recipe, p.image_digest, p.part)
        .distinct()
        .join_from(t.media, t.parts, p.content_id == m.content_id)
        .join(t.features, sa.and_(f.image_digest == p.image_digest, f.part == p.part))
        .where(f.feature == FEATURE, f.status == "ok")
    )
    names = ("source_id", "recipe", "image_digest", "part")
    for chunk in chunks(sorted(set(media_ids))):
        conn.execute(t.index_inbox.insert().from_select(names, query.where(m.id.in_(chunk))))


def note(conn: sa.Connection, source_id: int, recipe: str, subjects: Sequence[tuple[str, int]]) -> None:
    """Note pictures, `(image digest, part)` each, for one index."""
    if subjects:
        rows = [{"source_id": source_id, "recipe": recipe, "image_digest": one[0], "part": one[1]} for one in subjects]
        conn.execute(t.index_inbox.insert(), rows)


def of_others(conn: sa.Connection, source_id: int, recipe: str | None, limit: int) -> list[Note]:
    """What is noted for a source and any other index than this one, which nobody will look at."""
    i = t.index_inbox.c
    query = sa.select(i.id, i.image_digest, i.part).where(i.source_id == source_id)
    if recipe is not None:
        query = query.where(i.recipe != recipe)
    return [Note(*row) for row in conn.execute(query.limit(limit))]


def notes(conn: sa.Connection, source_id: int, recipe: str, limit: int | None = None) -> list[Note]:
    """What is noted for an index, the oldest first."""
    i = t.index_inbox.c
    query = sa.select(i.id, i.image_digest, i.part).where(i.source_id == source_id, i.recipe == recipe)
    return [Note(*row) for row in conn.execute(query.order_by(i.id).limit(limit))]


def pictures(conn: sa.Connection, source_ids: Sequence[int], recipe: str) -> list[str]:
    """Image digests that are noted for any of these sources."""
    i = t.index_inbox.c
    query = sa.select(i.image_digest).distinct().where(i.source_id.in_(source_ids), i.recipe == recipe)
    return list(conn.execute(query).scalars())


def forget(conn: sa.Connection, ids: Iterable[int]) -> None:
    """Drop notes by their ids, never by a range: a smaller id may still be in a transaction that is not over."""
    for chunk in chunks(sorted(ids)):
        conn.execute(t.index_inbox.delete().where(t.index_inbox.c.id.in_(chunk)))


def forget_index(conn: sa.Connection, source_id: int, recipe: str) -> None:
    """Drop all notes of an index that is no more."""
    i = t.index_inbox.c
    conn.execute(t.index_inbox.delete().where(i.source_id == source_id, i.recipe == recipe))
