"""Media, their versions, contents and parts: what the bytes at a location turned out to be.

What belongs here: the identity rules. A move keeps the media, a changed file is a new version of it, the same bytes
twice in one source are one media at two places, and two sources never share a media.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import inbox
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import inserted_id, now, serialise_places


@dataclass(frozen=True)
class Part:
    """One picture of a content: 0 is the still; `width` and `height` are upright pixels."""

    part: int
    kind: str
    image_digest: str
    width: int
    height: int
    time_s: float | None = None
    page: int | None = None


@dataclass(frozen=True)
class Identified:
    """What reading the bytes of a location gave; `parts` is empty when they are no picture we can decode."""

    digest: str
    size: int
    mtime_ns: int
    mime: str | None = None
    stored_key: str | None = None
    exif: Mapping[str, Any] | None = None
    taken_at: str | None = None
    phash: str | None = None
    parts: Sequence[Part] = field(default_factory=tuple)


def record(conn: sa.Connection, location_id: int, found: Identified, *, seen: tuple[int, int] | None = None) -> int:
    """Attach a location to the media that its bytes are; returns the media's id.

    Args:
        conn: a connection of `Catalog.write`.
        location_id: the location.
        found: what its bytes are.
        seen: size and mtime that the ledger had when it was read. If the ledger has others by now, a newer change was
            drained meanwhile, and that stays visible as work; else the stat of the reading is the newest there is.
    """
    serialise_places(conn)
    content_id = _content(conn, found)
    location = conn.execute(sa.select(t.locations).where(t.locations.c.id == location_id)).mappings().one()
    media_id = _media_for(conn, location, content_id)
    values = _of_place(location, media_id, found, seen)
    conn.execute(t.locations.update().where(t.locations.c.id == location_id).values(**values))
    inbox.shown(conn, [media_id])
    return media_id


@dataclass(frozen=True)
class Reading:
    """What the bytes at a location turned out to be; see `record`."""

    location_id: int
    found: Identified
    seen: tuple[int, int] | None = None


def record_all(conn: sa.Connection, readings: Sequence[Reading]) -> None:
    """Record several readings as `record` does each; what is new, or known and only moved, in few statements."""
    if not readings:
        return
    serialise_places(conn)
    contents = _ids_of_contents(conn, [one.found.digest for one in readings])
    locations = _locations(conn, [one.location_id for one in readings])
    media = _media_of_contents(conn, list(contents.values()))
    new: dict[str, Reading] = {}
    known: list[tuple[Reading, int]] = []
    others: list[Reading] = []
    for one in readings:
        location, content_id = locations[one.location_id], contents.get(one.found.digest)
        if content_id is None and one.found.digest not in new and location["media_id"] is None:
            new[one.found.digest] = one
        elif content_id is not None and not _facts(one.found) and (content_id, location["source_id"]) in media:
            known.append((one, media[content_id, location["source_id"]]))
        else:
            others.append(one)
    known += _insert(conn, list(new.values()), locations)
    inbox.shown(conn, [media_id for _one, media_id in known])  # new bytes may show a picture that is known
    changes: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one, media_id in known:
        values = _of_place(locations[one.location_id], media_id, one.found, one.seen)
        changes.setdefault(tuple(values), []).append(values | {"location": one.location_id})
    for columns, rows in changes.items():  # one statement for all that change the same columns
        update = t.locations.update().where(t.locations.c.id == sa.bindparam("location"))
        conn.execute(update.values({name: sa.bindparam(name) for name in columns}), rows)
    for one in others:
        record(conn, one.location_id, one.found, seen=one.seen)


def _insert(
    conn: sa.Connection, readings: Sequence[Reading], locations: Mapping[int, sa.RowMapping]
) -> list[tuple[Reading, int]]:
    """New contents with their parts and a new media each, at places that had none; their ids."""
    if not readings:
        return []
    at = now(conn)
    rows = [_new_content(one.found, at) for one in readings]
    c, m = t.contents.c, t.media.c
    made = conn.execute(t.contents.insert().returning(c.digest, c.id), rows)
    content_of = {row.digest: int(row.id) for row in made}
    parts = [
        _of_part(part) | {"content_id": content_of[one.found.digest]} for one in readings for part in one.found.parts
    ]
    if parts:
        conn.execute(t.parts.insert(), parts)
    sources = _sources(conn, {locations[one.location_id]["source_id"] for one in readings})
    media = [
        _new_media(sources[locations[one.location_id]["source_id"]], content_of[one.found.digest], at)
        for one in readings
    ]
    media_of = {
        row.content_id: int(row.id) for row in conn.execute(t.media.insert().returning(m.content_id, m.id), media)
    }
    versions = [{"media_id": media_of[each], "content_id": each, "seen_from": at} for each in content_of.values()]
    conn.execute(t.media_versions.insert(), versions)
    return [(one, media_of[content_of[one.found.digest]]) for one in readings]


def _ids_of_contents(conn: sa.Connection, digests: Sequence[str]) -> dict[str, int]:
    query = sa.select(t.contents.c.digest, t.contents.c.id).where(t.contents.c.digest.in_(digests))
    return {row[0]: row[1] for row in conn.execute(query)}


def _locations(conn: sa.Connection, ids: Sequence[int]) -> dict[int, sa.RowMapping]:
    query = sa.select(t.locations).where(t.locations.c.id.in_(ids))
    return {row["id"]: row for row in conn.execute(query).mappings()}


def _media_of_contents(conn: sa.Connection, ids: Sequence[int]) -> dict[tuple[int, int], int]:
    """Media by content and source."""
    m = t.media.c
    query = sa.select(m.content_id, m.source_id, m.id).where(m.content_id.in_(ids))
    return {(row[0], row[1]): row[2] for row in conn.execute(query)} if ids else {}


def _sources(conn: sa.Connection, ids: Collection[int]) -> dict[int, sa.RowMapping]:
    query = sa.select(t.sources).where(t.sources.c.id.in_(list(ids)))
    return {row["id"]: row for row in conn.execute(query).mappings()}


def _of_place(
    location: sa.RowMapping, media_id: int, found: Identified, seen: tuple[int, int] | None
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "media_id": media_id,
        "identified_size": found.size,
        "identified_mtime_ns": found.mtime_ns,
        "text_pending": True,
    }
    if seen is None or seen == (location["size"], location["mtime_ns"]):
        values.update(
            state="present",
            code=None,
            reason=None,
            attempts=0,
            next_attempt_at=None,
            size=found.size,
            mtime_ns=found.mtime_ns,
        )
    return values


def _facts(found: Identified) -> dict[str, Any]:
    """What was found out; what a reading of the same bytes did not get at (its decoder died) is not forgotten."""
    facts = {"mime": found.mime, "exif": found.exif, "taken_at": found.taken_at, "phash": found.phash}
    values: dict[str, Any] = {name: fact for name, fact in facts.items() if fact is not None}
    if found.stored_key:
        values.update(custody="stored", stored_key=found.stored_key)
    return values


def _new_content(found: Identified, at: datetime) -> dict[str, Any]:
    """With every column, so that many can be inserted by one statement."""
    columns = ("mime", "exif", "taken_at", "phash", "stored_key")
    empty: dict[str, Any] = dict.fromkeys(columns)
    return (
        empty | {"custody": "referenced", "digest": found.digest, "size": found.size, "created_at": at} | _facts(found)
    )


def _new_media(source: sa.RowMapping, content_id: int, at: datetime) -> dict[str, Any]:
    return {
        "uuid": str(uuid.uuid4()),
        "project_id": source["project_id"],
        "source_id": source["id"],
        "owner_id": source["owner_id"],
        "content_id": content_id,
        "created_at": at,
    }


def _content(conn: sa.Connection, found: Identified) -> int:
    values = _facts(found)
    content_id = conn.execute(sa.select(t.contents.c.id).where(t.contents.c.digest == found.digest)).scalar()
    if content_id is None:
        content_id = inserted_id(conn.execute(t.contents.insert().values(**_new_content(found, now(conn)))))
    elif values:
        conn.execute(t.contents.update().where(t.contents.c.id == content_id).values(**values))
    for part in found.parts:
        _part(conn, content_id, part)
    if found.parts:  # a newer reading may find fewer scenes in a film
        mine = t.parts.c.content_id == content_id
        conn.execute(t.parts.delete().where(mine, t.parts.c.part >= len(found.parts)))
    return int(content_id)


def _part(conn: sa.Connection, content_id: int, part: Part) -> None:
    values = _of_part(part)
    where = (t.parts.c.content_id == content_id, t.parts.c.part == part.part)
    if conn.execute(t.parts.update().where(*where).values(**values)).rowcount == 0:
        conn.execute(t.parts.insert().values(content_id=content_id, **values))


def _of_part(part: Part) -> dict[str, Any]:
    return {
        "part": part.part,
        "kind": part.kind,
        "image_digest": part.image_digest,
        "width": part.width,
        "height": part.height,
        "time_s": part.time_s,
        "page": part.page,
    }


def _media_for(conn: sa.Connection, location: sa.RowMapping, content_id: int) -> int:
    at = now(conn)
    source_id = location["source_id"]
    # By content alone, which is indexed: a content has a media in few sources, a source has media without number.
    known = sa.select(t.media.c.source_id, t.media.c.id).where(t.media.c.content_id == content_id)
    same = {row.source_id: row.id for row in conn.execute(known)}.get(source_id)
    if same is not None:
        return int(same)  # the same bytes are known here: a move, or a second copy
    old = location["media_id"]
    if old is not None and _only_place(conn, old, location["id"]):
        _detach_others(conn, old, location["id"])
        _new_version(conn, old, content_id, at)
        return int(old)
    source = conn.execute(sa.select(t.sources).where(t.sources.c.id == source_id)).mappings().one()
    media_id = inserted_id(conn.execute(t.media.insert().values(**_new_media(source, content_id, at))))
    conn.execute(t.media_versions.insert().values(media_id=media_id, content_id=content_id, seen_from=at))
    return media_id


def _only_place(conn: sa.Connection, media_id: int, location_id: int) -> bool:
    other = conn.execute(
        sa.select(t.locations.c.id)
        .where(
            t.locations.c.media_id == media_id,
            t.locations.c.id != location_id,
            t.locations.c.state.in_(("present", "unreadable")),
        )
        .limit(1)
    ).first()
    return other is None


def _detach_others(conn: sa.Connection, media_id: int, location_id: int) -> None:
    """Places that hold the media's old bytes no more, or are gone: what is found there again is read again.

    The old place of a moved file is one: it must neither keep the media from its next version, nor pass for that
    version should a file of the old size and time appear there.
    """
    c = t.locations.c
    conn.execute(
        t.locations.update()
        .where(c.media_id == media_id, c.id != location_id)
        .values(media_id=None, identified_size=None, identified_mtime_ns=None)
    )


def _new_version(conn: sa.Connection, media_id: int, content_id: int, at: datetime) -> None:
    versions = t.media_versions
    conn.execute(
        versions.update().where(versions.c.media_id == media_id, versions.c.seen_to.is_(None)).values(seen_to=at)
    )
    conn.execute(versions.insert().values(media_id=media_id, content_id=content_id, seen_from=at))
    conn.execute(t.media.update().where(t.media.c.id == media_id).values(content_id=content_id))


@dataclass(frozen=True)
class Place:
    """Where a content can be read: the root and the relative path as raw bytes."""

    root: bytes
    path: bytes


def facts(conn: sa.Connection, digest: str) -> tuple[str | None, str | None]:
    """Mime type of a content, and when it was taken: both None of one that is unknown."""
    con = t.contents.c
    row = conn.execute(sa.select(con.mime, con.taken_at).where(con.digest == digest)).first()
    return (row[0], row[1]) if row else (None, None)


def places(conn: sa.Connection, digest: str) -> tuple[list[Place], str | None]:
    """Every known present place of a content, and the key of our own copy if we keep one."""
    query = (
        sa.select(t.sources.c.root, t.locations.c.path)
        .join(t.locations, t.locations.c.source_id == t.sources.c.id)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .where(t.contents.c.digest == digest, t.locations.c.state.in_(("present", "missing")))
        .order_by(t.locations.c.state.desc(), t.locations.c.id)
    )
    stored = conn.execute(sa.select(t.contents.c.stored_key).where(t.contents.c.digest == digest)).scalar()
    return [Place(bytes(row[0]), bytes(row[1])) for row in conn.execute(query)], stored
