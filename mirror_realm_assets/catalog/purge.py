"""Purging: what was made of deleted files goes, once they have been gone for long.

What belongs here: which media are over, and forgetting what was computed of them. What does not: noticing that files
are gone (`ingest.one_scan`), the bytes in the store (they are collected once nothing names them), and erasure, which is
for people's rights and leaves no row.

The rows of a purged media stay: its history can be read, and its file is known again should it return. Then everything
is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import activity, texts
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now

PURGED = "purged"
_AT_ONCE = 500  # media in one transaction


@dataclass(frozen=True)
class Purged:
    """What was purged: media, recorded features, and objects of the store that nothing names any more."""

    media: int = 0
    features: int = 0
    objects: int = 0
    looked_at: int = 0

    def __add__(self, other: Purged) -> Purged:
        return Purged(
            self.media + other.media,
            self.features + other.features,
            self.objects + other.objects,
            self.looked_at + other.looked_at,
        )


def purge(catalog: Catalog, days: float, rounds: int | None = None, *, by: str | None = None) -> Purged:
    """Purge what has been deleted for so many days, in short transactions.

    Args:
        catalog: the ledger.
        days: how long a file has to be gone.
        rounds: of 500 media at most; None for all there is.
        by: who does it; by default the person who runs this process.
    """
    total = Purged()
    while rounds is None or rounds > 0:
        with catalog.write() as conn:
            found = purge_deleted(conn, timedelta(days=days), _AT_ONCE)
            if found.media:
                counts = {"media": found.media, "features": found.features, "objects": found.objects}
                activity.note(conn, "media_purged", None, counts | {"deleted_for_days": days}, by=by)
        total += found
        rounds = None if rounds is None else rounds - 1
        if not found.looked_at:
            break
    return total


def purge_deleted(conn: sa.Connection, age: timedelta, limit: int) -> Purged:
    """Forget what was computed of media all of whose files were deleted longer than `age` ago.

    What another media with the same bytes, or the same picture, still needs stays.

    Args:
        conn: in a transaction.
        age: how long a file has to be gone.
        limit: media at once.
    """
    l, m = t.locations.c, t.media.c  # noqa: E741 - l for location, as in the queries' SQL
    before = now(conn) - age
    over = (
        sa.select(l.media_id)
        .where(l.state == "deleted", l.deleted_at < before, l.media_id.is_not(None), l.code.is_distinct_from(PURGED))
        .distinct()
        .limit(limit)
    )
    media = [int(row[0]) for row in conn.execute(over)]
    alive = sa.or_(l.state != "deleted", l.deleted_at.is_(None), l.deleted_at >= before)
    kept = set(conn.execute(sa.select(l.media_id).where(l.media_id.in_(media), alive)).scalars())
    dead = [one for one in media if one not in kept]
    # Of those with another place, the places that are gone need not be looked at again.
    gone = (l.media_id.in_(media), l.state == "deleted", l.deleted_at < before)
    texts.forget(conn, list(conn.execute(sa.select(l.id).where(*gone)).scalars()))
    conn.execute(_mark().where(*gone))
    if not dead:
        return Purged(looked_at=len(media))
    contents = set(conn.execute(sa.select(m.content_id).where(m.id.in_(dead))).scalars())
    contents |= set(
        conn.execute(sa.select(t.media_versions.c.content_id).where(t.media_versions.c.media_id.in_(dead))).scalars()
    )
    contents -= _living(conn, contents)
    features, objects = _forget(conn, sorted(contents))
    return Purged(len(dead), features, objects, len(media))


def _mark() -> sa.Update:
    """The place is purged, and what is found there again is read again."""
    return t.locations.update().values(
        code=PURGED,
        reason="What was computed was kept for a while after the file was deleted.",
        identified_size=None,
        identified_mtime_ns=None,
        text_pending=False,
    )


def _living(conn: sa.Connection, contents: set[int]) -> set[int]:
    """Those of the contents that a media with a place that is not purged has, or had before."""
    l, m, v = t.locations.c, t.media.c, t.media_versions.c  # noqa: E741
    place = sa.exists().where(l.media_id == m.id, l.code.is_distinct_from(PURGED))
    now_or_before = (
        sa.select(m.content_id).where(m.content_id.in_(contents), place),
        sa.select(v.content_id).join(t.media, m.id == v.media_id).where(v.content_id.in_(contents), place),
    )
    return {int(one) for query in now_or_before for one in conn.execute(query).scalars()}


def _forget(conn: sa.Connection, contents: list[int]) -> tuple[int, int]:
    if not contents:
        return 0, 0
    c, p, f = t.contents.c, t.parts.c, t.features.c
    digests = set(conn.execute(sa.select(c.digest).where(c.id.in_(contents))).scalars())
    pictures = set(conn.execute(sa.select(p.image_digest).where(p.content_id.in_(contents))).scalars())
    elsewhere = sa.select(p.image_digest).where(p.image_digest.in_(pictures), p.content_id.not_in(contents))
    pictures -= set(conn.execute(elsewhere).scalars())
    of_these = f.image_digest.in_(sorted(digests | pictures))
    outputs = conn.execute(sa.select(f.output).where(of_these, f.output.is_not(None))).scalars()
    # A proxy's key begins with its picture's digest: another file with the same picture names the same proxy.
    gone = {key for output in outputs for key in _keys(output) if _picture_of(key) in pictures}
    gone |= set(conn.execute(sa.select(c.stored_key).where(c.id.in_(contents), c.stored_key.is_not(None))).scalars())
    features = conn.execute(t.features.delete().where(of_these)).rowcount
    objects = conn.execute(t.objects.delete().where(t.objects.c.key.in_(sorted(gone)))).rowcount
    conn.execute(t.contents.update().where(c.id.in_(contents)).values(stored_key=None, custody="referenced"))
    return features, objects


def _keys(output: Any) -> Iterator[str]:
    """Keys of objects that only this output names; shards hold the vectors of other pictures as well."""
    if isinstance(output, Mapping):
        key = output.get("key")
        if isinstance(key, str):
            yield key
        for value in output.values():
            yield from _keys(value)
    elif isinstance(output, Iterable) and not isinstance(output, str | bytes):
        for value in output:
            yield from _keys(value)


def _picture_of(key: str) -> str | None:
    """The image digest in a derivative's key."""
    return next((piece[:64] for piece in key.split("/") if len(piece) >= 64), None)
