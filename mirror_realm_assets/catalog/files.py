"""Files as the watcher sees them: the journal, and the locations it is drained into.

What belongs here: rows about paths. What does not: what the bytes are (`media`) and what was computed (`features`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from mirror_realm_assets.catalog import companions, driver, inbox
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now, serialise_places
from mirror_realm_assets.catalog.sources import display_path
from mirror_realm_assets.errors import REASONS

_CHUNK = 300
_MAX_CODE = 40  # of the column
_PLAIN = 6  # fields of a sighting before its code
DRAIN = 5000  # journal rows applied in one transaction


class Sighting(NamedTuple):
    """One journal row: what a scan or watcher saw of a path (raw bytes, relative to the root).

    A file that is `moved` is seen, and was known by the path `moved_from` before. One that is `replaced` is seen and
    may have other bytes, though size and mtime are as before; one that is `kept` has the bytes that are known, though
    its stat is another.
    """

    kind: str  # seen | moved | replaced | kept | missing | deleted | ignored | unreadable
    path: bytes
    size: int = 0
    mtime_ns: int = 0
    inode: int | None = None
    device: int | None = None
    code: str | None = None
    moved_from: bytes | None = None


@dataclass(frozen=True)
class Known:
    """What the ledger knows of a path, as far as a scan compares it."""

    size: int
    mtime_ns: int
    inode: int | None
    state: str


@dataclass(frozen=True)
class WaitingFile:
    """A present file whose bytes are not identified at its present size and mtime, and that no open batch holds."""

    location_id: int
    size: int
    waiting_since: datetime


def known(conn: sa.Connection, source_id: int) -> dict[bytes, Known]:
    """Every known path of a source."""
    c = t.locations.c
    rows = conn.execute(sa.select(c.path, c.size, c.mtime_ns, c.inode, c.state).where(c.source_id == source_id))
    return {bytes(row[0]): Known(row[1], row[2], row[3], row[4]) for row in rows}


def write_journal(conn: sa.Connection, source_id: int, generation: int, sightings: Sequence[Sighting]) -> None:
    """Append sightings; they survive any crash until a drain applies them."""
    if not sightings:
        return
    same = {"source_id": source_id, "generation": generation, "observed_at": now(conn)}
    rows = (
        (*sighting[:_PLAIN], (sighting.code or "")[:_MAX_CODE] or None, sighting.moved_from) for sighting in sightings
    )
    driver.insert(conn, t.journal, same, Sighting._fields, rows)


def has_journal(conn: sa.Connection, source_id: int) -> bool:
    """Whether sightings of a source wait to be applied."""
    return (
        conn.execute(sa.select(t.journal.c.id).where(t.journal.c.source_id == source_id).limit(1)).first() is not None
    )


def journal_paths(conn: sa.Connection, source_id: int, limit: int) -> list[bytes]:
    """Paths of sightings that wait to be applied, at most `limit` of them."""
    query = sa.select(t.journal.c.path).where(t.journal.c.source_id == source_id).limit(limit)
    return [bytes(path) for path in conn.execute(query).scalars()]


def drain_journal(conn: sa.Connection, limit: int = DRAIN) -> int:
    """Apply the oldest journal rows to the locations and delete them, in the caller's transaction.

    Returns:
        How many rows were applied; fewer than `limit` means that the journal is empty.
    """
    serialise_places(conn)
    rows = conn.execute(sa.select(t.journal).order_by(t.journal.c.id).limit(limit)).mappings().all()
    at = now(conn)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        _apply(conn, chunk, at)
        # By number, not by range: on PostgreSQL a lower number may be committed after we looked.
        conn.execute(t.journal.delete().where(t.journal.c.id.in_([row["id"] for row in chunk])))
    return len(rows)


def waiting(conn: sa.Connection, source_id: int, limit: int, *, max_file_bytes: int | None = None) -> list[WaitingFile]:
    """Files that need a batch, newest first; one that was too large waits again when it is within the limit now."""
    l = t.locations.c  # noqa: E741 - l for location, as in the query's SQL
    query = _waiting(conn, source_id, max_file_bytes).order_by(l.mtime_ns.desc(), l.id).limit(limit)
    return [WaitingFile(row[0], row[1], row[2]) for row in conn.execute(query)]


def sample_waiting(conn: sa.Connection, source_id: int, among: int) -> list[WaitingFile]:
    """Of the files that were found first, the newest of each folder that needs a batch, newest first."""
    l = t.locations.c  # noqa: E741
    query = _waiting(conn, source_id, None).add_columns(l.mtime_ns, l.path).order_by(l.id).limit(among)
    newest: dict[bytes, sa.RowMapping] = {}
    for row in conn.execute(query).mappings():
        folder = bytes(row["path"]).rpartition(b"/")[0]
        if folder not in newest or newest[folder]["mtime_ns"] < row["mtime_ns"]:
            newest[folder] = row
    rows = sorted(newest.values(), key=lambda row: (-row["mtime_ns"], row["id"]))
    return [WaitingFile(row["id"], row["size"], row["changed_at"]) for row in rows]


def _waiting(conn: sa.Connection, source_id: int, max_file_bytes: int | None) -> sa.Select[Any]:
    l = t.locations.c  # noqa: E741
    held = (
        sa.select(t.batch_items.c.id)
        .where(
            t.batch_items.c.location_id == l.id,
            t.batch_items.c.feature == "raw_media",
            t.batch_items.c.settled_at.is_(None),
        )
        .exists()
    )
    return sa.select(l.id, l.size, l.changed_at).where(
        l.source_id == source_id,
        l.state.in_(("present", "unreadable")),
        unidentified(),
        sa.or_(
            l.code.is_(None),
            l.next_attempt_at <= now(conn),
            fits_again({"max_file_bytes": max_file_bytes or 0}),
        ),
        ~held,
    )


def unidentified() -> sa.ColumnElement[bool]:
    """True for locations whose bytes were not identified at their present size and mtime."""
    c = t.locations.c
    return sa.or_(
        c.media_id.is_(None),
        c.identified_size.is_(None),
        c.identified_size != c.size,
        c.identified_mtime_ns != c.mtime_ns,
    )


def fits_again(limits: Mapping[str, float]) -> sa.ColumnElement[bool]:
    """True for locations that were too large and are within today's limit: they wait again."""
    c = t.locations.c
    return sa.and_(sa.func.coalesce(c.code, "") == "too_many_bytes", c.size <= int(limits.get("max_file_bytes", 0)))


def location_failed(
    conn: sa.Connection,
    location_id: int,
    code: str,
    reason: str,
    next_attempt_at: datetime | None,
    *,
    state: str = "unreadable",
    size: int | None = None,
    path: bytes | None = None,
) -> None:
    """The location's bytes could not be identified; with a next attempt it is tried again then.

    A file that the watcher meanwhile saw vanish stays missing.

    Args:
        conn: a connection of `Catalog.write`.
        location_id: the location.
        code: a key of `errors.REASONS`.
        reason: one sentence for people, without paths.
        next_attempt_at: when it is tried again by itself, or None.
        state: the location's new state.
        size: bytes it had when it was tried: if it has another size by now, the verdict is on bytes that are gone and
            nothing is recorded. None for a verdict on whatever is there.
        path: where it was tried: if it has been moved by now, it was looked for at the wrong place.
    """
    serialise_places(conn)
    c = t.locations.c
    where = [c.id == location_id, c.state.in_(("present", "unreadable"))]
    if size is not None:
        where.append(c.size == size)
    if path is not None:
        where.append(c.path == path)
    conn.execute(
        t.locations.update()
        .where(*where)
        .values(
            state=state,
            code=code,
            reason=reason,
            attempts=c.attempts + 1,
            next_attempt_at=next_attempt_at,
            text_pending=True,
        )
    )


def reset_location(conn: sa.Connection, location_id: int) -> None:
    """Take back a location's failure: it is as if it had not been tried."""
    serialise_places(conn)
    c = t.locations.c
    back = conn.execute(
        t.locations.update()
        .where(c.id == location_id, c.state.in_(("present", "unreadable")))
        .values(state="present", code=None, reason=None, attempts=0, next_attempt_at=None)
        .returning(c.media_id)
    )
    inbox.shown(conn, [row[0] for row in back if row[0] is not None])


def forget_failures(conn: sa.Connection, source_id: int | None, refusals: Iterable[str] = ()) -> int:
    """Put unreadable locations back to present, so that they are batched again; codes in `refusals` stay."""
    serialise_places(conn)
    c = t.locations.c
    where = [c.state == "unreadable", c.code.is_not(None), c.code.not_in(list(refusals))]
    if source_id is not None:
        where.append(c.source_id == source_id)
    values = {"state": "present", "code": None, "reason": None, "attempts": 0, "next_attempt_at": None}
    done = t.locations.update().where(*where).values(**values, changed_at=now(conn)).returning(c.media_id)
    back = list(conn.execute(done).scalars())
    inbox.shown(conn, [media_id for media_id in back if media_id is not None])
    return len(back)


def _apply(conn: sa.Connection, rows: Sequence[sa.RowMapping], at: datetime) -> None:
    """Apply journal rows in order."""
    rest: list[sa.RowMapping] = []
    for row in rows:
        if row["kind"] == "moved" and row["moved_from"] is not None:
            _apply_seen(conn, rest, at)
            _move(conn, row)
            rest = []
        rest.append(row)
    _apply_seen(conn, rest, at)


def _move(conn: sa.Connection, row: sa.RowMapping) -> None:
    """Give a known location its new path; nothing happens when another one has it, and the file is read as a new one.

    Whatever is known of the file hangs on its location and stays: no batch, no byte is read.
    """
    c = t.locations.c
    path = bytes(row["path"])
    taken = sa.select(c.id).where(c.source_id == row["source_id"], c.path == path)
    if conn.execute(taken).first() is None:
        conn.execute(
            t.locations.update()
            .where(c.source_id == row["source_id"], c.path == bytes(row["moved_from"]))
            .values(path=path, display=display_path(path), stem_key=companions.stem_key(path), text_pending=True)
        )


def _apply_seen(conn: sa.Connection, rows: Sequence[sa.RowMapping], at: datetime) -> None:
    """Apply rows that move nothing but what has moved already; the last row of a path wins."""
    if not rows:
        return
    last: dict[tuple[int, bytes], sa.RowMapping] = {(row["source_id"], bytes(row["path"])): row for row in rows}
    existing: dict[tuple[int, bytes], sa.RowMapping] = {}
    for source_id in {key[0] for key in last}:
        paths = [path for found, path in last if found == source_id]
        query = sa.select(t.locations).where(t.locations.c.source_id == source_id, t.locations.c.path.in_(paths))
        existing.update({(source_id, bytes(row["path"])): row for row in conn.execute(query).mappings()})
    changes: dict[tuple[str, ...], list[dict[str, object]]] = {}
    back: list[int] = []
    for key, old in existing.items():
        if values := _after(old, last[key], at):
            if values.get("state") == "present" and old["state"] != "present" and old["media_id"] is not None:
                back.append(old["media_id"])
            changes.setdefault(tuple(values), []).append(values | {"location": old["id"]})
    for columns, rows_of in changes.items():  # one statement for all that change the same columns
        values_of: dict[str, object] = {name: sa.bindparam(name) for name in columns}
        conn.execute(
            t.locations.update().where(t.locations.c.id == sa.bindparam("location")).values(values_of), rows_of
        )
    inbox.shown(conn, back)
    _insert(conn, [row for key, row in last.items() if key not in existing and row["kind"] not in _AWAY], at)


STATE_OF = {
    "seen": "present",
    "moved": "present",
    "replaced": "present",
    "kept": "present",
    "ignored": "ignored",
    "unreadable": "unreadable",
    "missing": "missing",
    "deleted": "deleted",
}
"""The state of a location after a sighting of each kind."""
_AWAY = ("missing", "deleted")
_HERE = ("seen", "moved", "replaced", "kept")
_UNTRIED: dict[str, object] = {"code": None, "reason": None, "attempts": 0, "next_attempt_at": None}


def _after(old: sa.RowMapping, row: sa.RowMapping, at: datetime) -> dict[str, object]:
    """What one sighting changes of a known location; empty when nothing."""
    if row["kind"] == "missing":
        # A later scan saw it again, or it is known to be gone.
        outdated = old["generation"] > row["generation"] or old["state"] in _AWAY
        return {} if outdated else {"state": "missing", "generation": row["generation"]}
    if row["kind"] == "deleted":
        # Only what an earlier scan missed already.
        proved = old["state"] == "missing" and old["generation"] < row["generation"]
        gone = {"state": "deleted", "generation": row["generation"], "deleted_at": row["observed_at"]}
        return gone if proved else {}
    place = {
        "deleted_at": None,
        "generation": row["generation"],
        "last_seen_at": at,
        "inode": row["inode"],
        "device": row["device"],
    }
    if row["kind"] not in _HERE:
        # Its stat says nothing, so that it is known again when it can be read as before.
        return place | _UNTRIED | {"state": STATE_OF[row["kind"]], "code": row["code"]}
    stat = {"size": row["size"], "mtime_ns": row["mtime_ns"]}
    changed = place | _UNTRIED | stat | {"state": "present", "changed_at": row["observed_at"]}
    identified = (old["identified_size"], old["identified_mtime_ns"]) == (old["size"], old["mtime_ns"])
    if row["kind"] == "kept" and identified and old["size"] == row["size"]:
        return place | stat | {"state": "present", "identified_mtime_ns": row["mtime_ns"]}
    if row["kind"] == "replaced":
        return changed | {"identified_size": None}  # so that it is read again
    if (old["size"], old["mtime_ns"]) != (row["size"], row["mtime_ns"]):
        return changed
    if old["state"] == "present":
        return place
    settled = old["code"] in REASONS and old["code"] != "file_gone"  # which is refuted: here it is
    if settled and (REASONS[old["code"]].refusal or (old["state"] == "unreadable" and old["attempts"])):
        # What was refused as it is stays refused; what failed in our hands waits for its own next attempt.
        return place | {"state": "unreadable"}
    return place | _UNTRIED | {"state": "present"}


def _insert(conn: sa.Connection, rows: Iterable[sa.RowMapping], at: datetime) -> None:
    """New locations, through the driver: the first scan of a source brings millions."""
    together: dict[tuple[int, int, datetime], list[tuple[object, ...]]] = {}
    for row in rows:
        path = bytes(row["path"])
        values = (
            path,
            display_path(path),
            companions.stem_key(path),
            row["size"],
            row["mtime_ns"],
            row["inode"],
            row["device"],
            STATE_OF[row["kind"]],
            row["code"],
        )
        together.setdefault((row["source_id"], row["generation"], row["observed_at"]), []).append(values)
    for (source_id, generation, observed_at), found in together.items():
        same = {
            "source_id": source_id,
            "generation": generation,
            "attempts": 0,
            "first_seen_at": observed_at,
            "changed_at": observed_at,  # its wait for company began then, not when the journal was drained
            "last_seen_at": at,
        }
        driver.insert(conn, t.locations, same, _OF_NEW, found)


_OF_NEW = ("path", "display", "stem_key", "size", "mtime_ns", "inode", "device", "state", "code")


def iter_locations(conn: sa.Connection, source_id: int) -> Iterator[sa.RowMapping]:
    """All locations of a source, for listings."""
    yield from conn.execute(
        sa.select(t.locations).where(t.locations.c.source_id == source_id).order_by(t.locations.c.path)
    ).mappings()
