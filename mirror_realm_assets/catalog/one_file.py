"""One file, looked up by where it is or what it is, with everything known about it.

What belongs here: finding media and places by a path or a digest through the indexes of the catalog, and the facts that
`file` shows besides those of a listing. What does not: what became of each feature (`listing`) and printing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import listing, sidecars, stacks
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.listing import FileRow
from mirror_realm_assets.catalog.sidecars import Sidecar
from mirror_realm_assets.catalog.sources import Source, display_path
from mirror_realm_assets.catalog.wants import Rule
from mirror_realm_assets.errors import SetupError

_DIGEST = re.compile(r"[0-9a-f]{8,64}")  # at least as much of it as tells a library's files apart
_AFTER_HEX = "g"  # sorts behind every hex digit: a prefix is a range, and a range uses the index
_CHOICES = 5
_AWAY = ("missing", "deleted")


@dataclass(frozen=True)
class Found:
    """A file as `file` shows it.

    Attributes:
        source: whose it is.
        row: its first part, or the place that was not read.
        location_ids: its places.
        media_uuid: of the media; of an unread place that of the version before, if there was one.
    """

    source: Source
    row: FileRow
    location_ids: list[int]
    media_uuid: str | None


def by_path(
    conn: sa.Connection,
    chosen: Sequence[Source],
    rules: Sequence[Rule],
    limits: Mapping[str, float],
    full: bytes,
) -> list[Found]:
    """The file at an absolute path, in every source whose folder holds it; one that is deleted is still known."""
    found: list[Found] = []
    for source in chosen:
        beneath = _beneath(source, full)
        if beneath is None:
            continue
        loc = t.locations.c
        query = sa.select(loc.id, loc.media_id).where(loc.source_id == source.id, loc.path == beneath)
        place = conn.execute(query).first()
        if place is None:
            continue
        unread = listing.of_unread(conn, source, rules, limits, place.id)
        if unread is not None:
            found.append(Found(source, unread, [place.id], _uuid_of(conn, place.media_id)))
        elif place.media_id is not None:
            found += _of_media(conn, source, rules, limits, place.media_id)
    return found


def by_digest(
    conn: sa.Connection,
    chosen: Sequence[Source],
    rules: Sequence[Rule],
    limits: Mapping[str, float],
    digest: str,
) -> list[Found]:
    """Files by the digest of their bytes or of their picture, or by its first eight digits or more.

    What has these bytes now comes before what has this picture, and that before what had these bytes once.

    Raises:
        SetupError: `invalid_argument` when the digits given are those of several files.
    """
    if not _DIGEST.fullmatch(digest):
        return []
    c, p, v = t.contents.c, t.parts.c, t.media_versions.c
    ways: tuple[tuple[sa.ColumnElement[str], sa.Select[Any]], ...] = (
        (c.digest, sa.select(c.digest, t.media.c.id).join(t.media, t.media.c.content_id == c.id)),
        (p.image_digest, sa.select(p.image_digest, t.media.c.id).join(t.media, t.media.c.content_id == p.content_id)),
        (c.digest, sa.select(c.digest, v.media_id).join(t.media_versions, v.content_id == c.id)),
    )
    for column, query in ways:
        rows = conn.execute(query.where(column >= digest, column < digest + _AFTER_HEX).distinct().limit(100)).all()
        meant = sorted({str(row[0]) for row in rows})
        if len(meant) > 1:
            more = ", ".join(meant[:_CHOICES])
            raise SetupError(
                "invalid_argument", f"{digest} begins the digests of several files.", remedy=f"Give more of it: {more}."
            )
        ids = {row[1] for row in rows}
        found = [each for source in chosen for each in _of_source(conn, source, rules, limits, ids)]
        if found:
            return found
    return []


def _of_source(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], media_ids: set[int]
) -> list[Found]:
    query = sa.select(t.media.c.id).where(t.media.c.id.in_(media_ids), t.media.c.source_id == source.id)
    ids = conn.execute(query.order_by(t.media.c.id)).scalars().all()
    return [found for media_id in ids for found in _of_media(conn, source, rules, limits, media_id)]


def _of_media(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], media_id: int
) -> list[Found]:
    rows = listing.of_media(conn, source, rules, limits, [media_id])
    ids = listing.places_of(conn, source.id, rows[0].paths) if rows else []
    return [Found(source, row, ids, row.media) for row in rows]


def _uuid_of(conn: sa.Connection, media_id: int | None) -> str | None:
    return conn.execute(sa.select(t.media.c.uuid).where(t.media.c.id == media_id)).scalar() if media_id else None


def _beneath(source: Source, full: bytes) -> bytes | None:
    """A path relative to the source's folder, or None when it is not in it."""
    root = os.path.abspath(source.root).rstrip(b"/") + b"/"  # noqa: PTH100 - bytes, and links stay as they are
    return full[len(root) :] if full.startswith(root) else None


def facts(conn: sa.Connection, found: Found) -> dict[str, Any]:
    """What is known of a file besides what a listing tells: its picture, metadata, companions, places, and work."""
    return {
        **_content(conn, found.row),
        "sidecars": _sidecars(conn, found),
        "stack": stacks.of_media(conn, [found.row.media]).get(found.row.media) if found.row.media else None,
        "places": _places(conn, found.location_ids),
        "work": _work(conn, found.row),
    }


def _content(conn: sa.Connection, row: FileRow) -> dict[str, Any]:
    c, p = t.contents.c, t.parts.c
    query = (
        sa.select(p.image_digest, p.kind, p.time_s, p.page, c.taken_at, c.exif, c.phash, c.custody)
        .select_from(t.contents)
        .outerjoin(t.parts, sa.and_(p.content_id == c.id, p.part == row.part))
        .where(c.digest == (row.digest or ""))
    )
    names = ("image_digest", "kind", "time_s", "page", "taken_at", "exif", "phash", "custody")
    known = conn.execute(query).first()
    return dict(zip(names, known or (None,) * len(names), strict=True))


def _sidecars(conn: sa.Connection, found: Found) -> list[Sidecar]:
    """Of the places where it is now; one that is left where a picture was is about whatever comes there."""
    row = found.row
    here = [path for path, state in zip(row.paths, row.path_states, strict=True) if state not in _AWAY]
    return sidecars.of_pictures(conn, found.source.id, here or row.paths)


def _places(conn: sa.Connection, ids: Sequence[int]) -> list[dict[str, Any]]:
    loc = t.locations.c
    names = ("state", "code", "reason", "size", "mtime_ns", "first_seen_at", "changed_at", "last_seen_at",
             "next_attempt_at")  # fmt: skip
    rows = conn.execute(sa.select(t.locations).where(loc.id.in_(list(ids))).order_by(loc.path)).mappings()
    return [{"path": display_path(bytes(row["path"])), **{name: row[name] for name in names}} for row in rows]


def _work(conn: sa.Connection, row: FileRow) -> dict[str, dict[str, Any]]:
    """By feature, what was recorded about the work on it, under the recipe that is wanted now."""
    names = ("crashes", "next_attempt_at", "retryable", "seconds", "model_digest", "code_version", "run_id",
             "created_at", "updated_at")  # fmt: skip
    f = t.features.c
    recipes = [value["recipe"] for value in row.features.values() if value["recipe"]]
    digests = sa.select(t.contents.c.digest).where(t.contents.c.digest == (row.digest or ""))
    pictures = (
        sa.select(t.parts.c.image_digest)
        .join(t.contents, t.contents.c.id == t.parts.c.content_id)
        .where(t.contents.c.digest == (row.digest or ""), t.parts.c.part == row.part)
    )
    rows = conn.execute(
        sa.select(t.features).where(
            f.image_digest.in_(digests.union(pictures)), f.recipe.in_(recipes), f.part.in_((0, row.part))
        )
    ).mappings()
    return {each["feature"]: {name: each[name] for name in names} for each in rows}
