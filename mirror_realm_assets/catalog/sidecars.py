"""Sidecars as the ledger knows them: where they lie, what they say, and which of them are about a picture.

What belongs here: rows about sidecars. What does not: which names belong together (`companions`), and reading files
(`ingest.sidecars`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from mirror_realm_assets.catalog import companions
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import insert, now

_CHUNK = 400  # stays below SQLite's limit of bound variables
_AGAIN = timedelta(minutes=10)  # for one that cannot be read now: its folder need not change when it can


class Seen(NamedTuple):
    """A sidecar as a walk saw it; `path` is relative to the root, raw bytes."""

    path: bytes
    size: int
    mtime_ns: int


class Known(NamedTuple):
    """A sidecar as the ledger knows it."""

    id: int
    folder: bytes
    size: int
    mtime_ns: int


class Waiting(NamedTuple):
    """A sidecar that has to be read."""

    id: int
    path: bytes
    kind: str


@dataclass(frozen=True)
class Reading:
    """What came of one reading.

    Attributes:
        id: of the row.
        state: `read` or `refused`; `waiting` for one that could not be read now and is tried again later.
        size: of the file as it was read; None when it was not.
        mtime_ns: likewise.
        facts: what it says.
        code: of the reason why it says nothing.
        reason: that, in words.
    """

    id: int
    state: str
    size: int | None = None
    mtime_ns: int | None = None
    facts: Mapping[str, Any] | None = None
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Sidecar:
    """A sidecar of a picture, for people."""

    path: bytes
    kind: str
    state: str
    code: str | None
    reason: str | None
    values: Mapping[str, Any]
    read_at: datetime | None


def folders(conn: sa.Connection, source_id: int) -> set[bytes]:
    """The prefixes of the folders of a source in which sidecars are known."""
    s = t.sidecars.c
    query = sa.select(s.folder).where(s.source_id == source_id).distinct()
    return {bytes(folder) for folder in conn.execute(query).scalars()}


def in_folders(conn: sa.Connection, source_id: int, prefixes: Sequence[bytes]) -> dict[bytes, Known]:
    """The known sidecars that lie in these folders themselves, by path."""
    s = t.sidecars.c
    query = sa.select(s.path, s.id, s.folder, s.size, s.mtime_ns).where(s.source_id == source_id)
    found: dict[bytes, Known] = {}
    for start in range(0, len(prefixes), _CHUNK):
        rows = conn.execute(query.where(s.folder.in_(prefixes[start : start + _CHUNK])))
        found.update({bytes(row[0]): Known(row[1], bytes(row[2]), row[3], row[4]) for row in rows})
    return found


def note(conn: sa.Connection, source_id: int, seen: Iterable[Seen]) -> None:
    """Remember new and changed sidecars: they wait to be read, and until then say what they said before."""
    at = now(conn)
    rows = [_row(source_id, each, at) for each in seen]
    if not rows:
        return
    new = insert(conn, t.sidecars)
    changed = {name: new.excluded[name] for name in ("size", "mtime_ns", "state")} | {"next_attempt_at": None}
    conn.execute(new.on_conflict_do_update(index_elements=["source_id", "path"], set_=changed), rows)


def _row(source_id: int, seen: Seen, at: datetime) -> dict[str, Any]:
    folder, name = companions.split(seen.path)
    about = companions.about(name)
    if about is None:
        raise ValueError("no sidecar's name")
    return {
        "source_id": source_id,
        "folder": folder,
        "about_key": companions.key(folder, *about),
        "kind": about.kind,
        "state": "waiting",
        "first_seen_at": at,
        **seen._asdict(),
    }


def forget(conn: sa.Connection, ids: Sequence[int]) -> int:
    """These sidecars are not there any more; returns how many were known."""
    s = t.sidecars
    _mark_pictures(conn, ids)
    return sum(
        conn.execute(s.delete().where(s.c.id.in_(ids[start : start + _CHUNK]))).rowcount
        for start in range(0, len(ids), _CHUNK)
    )


def waiting(conn: sa.Connection, source_id: int, limit: int) -> list[Waiting]:
    """Sidecars that have to be read, the longest known first."""
    s = t.sidecars.c
    rows = conn.execute(
        sa.select(s.id, s.path, s.kind)
        .where(
            s.source_id == source_id,
            s.state == sa.text("'waiting'"),  # as the index has it
            sa.or_(s.next_attempt_at.is_(None), s.next_attempt_at <= now(conn)),
        )
        .order_by(s.id)
        .limit(limit)
    )
    return [Waiting(row[0], bytes(row[1]), row[2]) for row in rows]


def record(conn: sa.Connection, readings: Sequence[Reading]) -> None:
    """Write down what came of reading sidecars."""
    at = now(conn)
    done = [each for each in readings if each.state != "waiting"]
    if done:
        conn.execute(
            _update("size", "mtime_ns", "state", "facts", "code", "reason", "read_at"),
            [
                {
                    "row": each.id,
                    "size": each.size,
                    "mtime_ns": each.mtime_ns,
                    "state": each.state,
                    "facts": dict(each.facts) if each.facts is not None else None,
                    "code": each.code,
                    "reason": each.reason,
                    "read_at": at,
                }
                for each in done
            ],
        )
        _mark_pictures(conn, [each.id for each in done])
    failed = [each for each in readings if each.state == "waiting"]
    if failed:
        again = [
            {"row": each.id, "code": each.code, "reason": each.reason, "next_attempt_at": at + _AGAIN}
            for each in failed
        ]
        conn.execute(_update("code", "reason", "next_attempt_at"), again)


def _mark_pictures(conn: sa.Connection, ids: Sequence[int]) -> None:
    """The words by which the pictures of these sidecars are found have to be written anew (`texts`)."""
    s, place = t.sidecars.c, t.locations.c
    about: defaultdict[tuple[int, bytes], set[companions.About]] = defaultdict(set)
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(s.source_id, s.folder, s.path).where(s.id.in_(ids[start : start + _CHUNK]))
        for source_id, folder, path in conn.execute(query):
            if found := companions.about(companions.split(bytes(path))[1]):
                about[source_id, bytes(folder)].add(found)
    marked: list[int] = []
    for (source_id, folder), wanted in about.items():
        where = [place.source_id == source_id, place.path >= folder]
        if folder:
            where.append(place.path < folder[:-1] + b"0")  # what follows the slash
        for location_id, path in conn.execute(sa.select(place.id, place.path).where(*where)):
            lies_in, name = companions.split(bytes(path))
            if lies_in == folder and not wanted.isdisjoint(companions.abouts(name)):
                marked.append(location_id)
    for start in range(0, len(marked), _CHUNK):
        ids_of = place.id.in_(marked[start : start + _CHUNK])
        conn.execute(t.locations.update().where(ids_of).values(text_pending=True))


def _update(*columns: str) -> sa.Update:
    values: dict[str, Any] = {name: sa.bindparam(name, type_=t.sidecars.c[name].type) for name in columns}
    return t.sidecars.update().where(t.sidecars.c.id == sa.bindparam("row")).values(values)


def values_of(
    conn: sa.Connection, source_id: int, paths: Collection[bytes]
) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    """Each of these pictures' paths with what one of its sidecars says."""
    keys = _keys_of(paths)
    for row in _by_key(conn, source_id, list(keys)):
        for picture in keys[row["about_key"]]:
            if row["facts"] and companions.belongs(bytes(row["path"]), picture):
                yield picture, row["facts"]


def of_pictures(conn: sa.Connection, source_id: int, paths: Collection[bytes]) -> list[Sidecar]:
    """The sidecars of the pictures at these paths of a source, in the order of their own paths."""
    keys = _keys_of(paths)
    found = {}
    for row in _by_key(conn, source_id, list(keys)):
        path = bytes(row["path"])
        if any(companions.belongs(path, picture) for picture in keys[row["about_key"]]):
            facts = ("kind", "state", "code", "reason", "read_at")
            found[path] = Sidecar(path=path, values=row["facts"] or {}, **{name: row[name] for name in facts})
    return [found[path] for path in sorted(found)]


def by_picture(
    conn: sa.Connection, source_id: int, paths: Collection[bytes]
) -> dict[bytes, list[tuple[str, Mapping[str, Any]]]]:
    """What the sidecars of each of these pictures say, with their kind; in the order of their own paths."""
    keys = _keys_of(paths)
    found: dict[bytes, dict[bytes, tuple[str, Mapping[str, Any]]]] = {}
    for row in _by_key(conn, source_id, list(keys)):
        path = bytes(row["path"])
        for picture in keys[row["about_key"]]:
            if row["facts"] and companions.belongs(path, picture):
                found.setdefault(picture, {})[path] = (row["kind"], row["facts"])
    return {picture: [said[path] for path in sorted(said)] for picture, said in found.items()}


def _keys_of(paths: Collection[bytes]) -> dict[int, set[bytes]]:
    """The pictures among these that a sidecar with a key may be about."""
    keys: defaultdict[int, set[bytes]] = defaultdict(set)
    for path in paths:
        folder, name = companions.split(path)
        for about in companions.abouts(name):
            keys[companions.key(folder, *about)].add(path)
    return keys


def _by_key(conn: sa.Connection, source_id: int, keys: Sequence[int]) -> Iterator[sa.RowMapping]:
    s = t.sidecars.c
    for start in range(0, len(keys), _CHUNK):
        where = (s.source_id == source_id, s.about_key.in_(keys[start : start + _CHUNK]))
        yield from conn.execute(sa.select(t.sidecars).where(*where)).mappings()
