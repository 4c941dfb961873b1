"""What the index of a source lacks, and what it holds for nothing.

What belongs here: queries about pending embeddings and stale members. What does not: manifests and members themselves
(`index`), and where to look (`inbox`).

Pending is a set difference, verified embeddings minus members, and never a watermark or a count: what is recorded
while a build runs is pending afterwards, whatever its number or time. It is asked of the pictures that the inbox names,
or, in a full look, of all. A member is stale when no media of the source shows its picture any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from mirror_realm_assets.catalog import inbox
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import chunks
from mirror_realm_assets.catalog.inbox import FEATURE, Note
from mirror_realm_assets.catalog.index import MEMBER, Member, versions
from mirror_realm_assets.errors import Failed

# A file that is missing may be on a drive that is unplugged: it stays indexed, and is shown again when it returns.
_KEPT = ("present", "missing")
# An unreadable file was there a moment ago: it is neither added nor buried until that is settled.
_NOT_GONE = (*_KEPT, "unreadable")
_NOTES_A_LOOK = 10_000  # the next look goes on where this one ended

_m = t.index_members.c


@dataclass(frozen=True)
class PendingVector:
    """A recorded embedding that the published manifest does not contain, and its row in a shard of the store."""

    image_digest: str
    part: int
    shard: str
    sha256: str
    row: int
    dim: int


def pending(
    conn: sa.Connection, source_id: int, recipe: str, limit: int | None = None, *, indexed: bool = False
) -> list[PendingVector]:
    """Verified embeddings of the source's current pictures that its published manifest does not contain.

    Args:
        conn: a connection.
        source_id: the source.
        recipe: digest of the recipe of the embeddings.
        limit: return at most so many.
        indexed: also those that the manifest contains.

    Raises:
        Failed: `catalog_failed` when an embedding is recorded without its place.
    """
    f = t.features.c
    query = (
        sa.select(f.image_digest, f.part, f.output)
        .where(*_embedded([source_id], recipe, indexed=indexed))
        .order_by(f.id)
        .limit(limit)
    )
    return [_pending(row[0], row[1], row[2]) for row in conn.execute(query)]


def noted(
    conn: sa.Connection, source_id: int, recipe: str, limit: int | None = None
) -> tuple[list[Note], list[PendingVector]]:
    """What the inbox names for an index, at most `limit` of it, and which of these pictures are pending.

    The notes are read first: whatever is committed between both is in the answer or in a note that is not.
    """
    found = inbox.notes(conn, source_id, recipe, limit)
    subjects = {(note.image_digest, note.part) for note in found}
    waiting = _among(conn, [source_id], recipe, {digest for digest, _part in subjects})
    return found, [row for row in waiting if (row.image_digest, row.part) in subjects]


def unindexed(conn: sa.Connection, source_ids: Sequence[int], recipe: str) -> list[PendingVector]:
    """Verified embeddings of pictures that these sources show and that *none* of their manifests contains.

    What a search has to look at besides the manifests: a picture that one of them contains is found by that one, and
    `hits` tells every source that shows it. It goes by the inbox; only where a source has no index yet, by all.
    """
    if set(versions(conn, source_ids, recipe)) >= set(source_ids):
        return _among(conn, source_ids, recipe, set(inbox.pictures(conn, source_ids, recipe)))
    f = t.features.c
    query = sa.select(f.image_digest, f.part, f.output).where(*_embedded(source_ids, recipe))
    return [_pending(row[0], row[1], row[2]) for row in conn.execute(query)]


def count_pending(conn: sa.Connection, source_id: int, recipe: str) -> int:
    """How many vectors `pending` would return."""
    query = sa.select(sa.func.count()).select_from(t.features).where(*_embedded([source_id], recipe))
    return int(conn.execute(query).scalar_one())


def has_noted(conn: sa.Connection, source_id: int, recipe: str) -> tuple[bool, list[Note]]:
    """Whether a picture that the inbox names is pending; and, if none is, all notes that were looked at.

    It looks at the oldest; once the caller has dropped what is not pending, the next look sees others.
    """
    idle: list[Note] = []
    found = inbox.notes(conn, source_id, recipe, _NOTES_A_LOOK)
    for notes in chunks(found):
        subjects = {(note.image_digest, note.part) for note in notes}
        waiting = _among(conn, [source_id], recipe, {digest for digest, _part in subjects})
        if any((row.image_digest, row.part) in subjects for row in waiting):
            return True, []
        idle.extend(notes)
    return False, idle


def stale_members(conn: sa.Connection, source_id: int, recipe: str) -> list[Member]:
    """Members without a tombstone whose picture no current media of the source shows any more.

    Searches never need it: they ask what is shown. It looks at four tables for every member, about 20 s a million.
    """
    query = sa.select(*MEMBER).where(*_stale(source_id, recipe)).order_by(t.index_members.c.id)
    return [Member(*row) for row in conn.execute(query)]


def count_stale(conn: sa.Connection, source_id: int, recipe: str) -> int:
    """How many members `stale_members` would return."""
    query = sa.select(sa.func.count()).select_from(t.index_members).where(*_stale(source_id, recipe))
    return int(conn.execute(query).scalar_one())


def shown(source_ids: Sequence[int], image_digest: Any, part: Any, states: Sequence[str]) -> sa.Exists:
    """For a query: whether a current content of the sources' media has this picture, at a place in one of `states`."""
    p, m, l = t.parts.c, t.media.c, t.locations.c  # noqa: E741 - as in `hits`
    return (
        sa.select(sa.literal(1))
        .select_from(t.parts.join(t.media, m.content_id == p.content_id).join(t.locations, l.media_id == m.id))
        .where(p.image_digest == image_digest, p.part == part, _Late(m.source_id).in_(source_ids), l.state.in_(states))
        .exists()
    )


def note_shown(conn: sa.Connection, source_id: int, recipe: str, members: Sequence[Member]) -> None:
    """Note those pictures among just buried members that the source shows after all."""
    subjects = {(member.image_digest, member.part) for member in members}
    p = t.parts.c
    for chunk in chunks(sorted({digest for digest, _part in subjects})):
        query = sa.select(p.image_digest, p.part).distinct().where(p.image_digest.in_(chunk))
        found = conn.execute(query.where(shown([source_id], p.image_digest, p.part, _KEPT)))
        inbox.note(conn, source_id, recipe, [(row[0], row[1]) for row in found if (row[0], row[1]) in subjects])


class _Late(FunctionElement[Any]):
    """A column that SQLite's planner, which has no statistics, must not start from.

    Else it looks at all media of a source for every single picture. PostgreSQL has statistics, and joins large tables
    at once if nobody hides the column from it.
    """

    name = "late"
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_Late)
def _plain(element: _Late, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(_Late, "sqlite")
def _hidden(element: _Late, compiler: Any, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


def _embedded(
    source_ids: Sequence[int], recipe: str, *, indexed: bool = False, late: bool = False
) -> list[sa.ColumnElement[bool]]:
    f = t.features.c
    feature = _Late(f.feature) if late else f.feature
    member = (
        sa.select(sa.literal(1))
        .select_from(t.index_members)
        .where(
            _m.source_id.in_(source_ids),
            _m.recipe == recipe,
            _m.image_digest == f.image_digest,
            _m.part == f.part,
            _m.deleted_at.is_(None),
        )
        .exists()
    )
    where = [feature == FEATURE, f.recipe == recipe, f.status == "ok", f.verified.is_(True)]
    if not indexed:
        where.append(~member)
    return [*where, shown(source_ids, f.image_digest, f.part, _KEPT)]


def _among(
    conn: sa.Connection, source_ids: Sequence[int], recipe: str, image_digests: Collection[str]
) -> list[PendingVector]:
    """As `pending`, for all these sources together, of these pictures."""
    f = t.features.c
    # By digest, of which there are few, and not by recipe, of which there is a whole library.
    where = _embedded(source_ids, recipe, late=True)
    query = sa.select(f.image_digest, f.part, f.output).where(*where)
    found = (
        row for chunk in chunks(sorted(image_digests)) for row in conn.execute(query.where(f.image_digest.in_(chunk)))
    )
    return [_pending(row[0], row[1], row[2]) for row in found]


def _stale(source_id: int, recipe: str) -> list[sa.ColumnElement[bool]]:
    mine = [_m.source_id == source_id, _m.recipe == recipe, _m.deleted_at.is_(None)]
    return [*mine, ~shown([source_id], _m.image_digest, _m.part, _NOT_GONE)]


def _pending(image_digest: str, part: int, output: Mapping[str, Any] | None) -> PendingVector:
    try:
        place = output or {}
        row, dim = int(place["row"]), int(place["dim"])
        return PendingVector(image_digest, part, str(place["shard"]), str(place["sha256"]), row, dim)
    except (KeyError, TypeError, ValueError) as error:
        raise Failed("catalog_failed", f"The embedding of {image_digest} is recorded without its place.") from error
