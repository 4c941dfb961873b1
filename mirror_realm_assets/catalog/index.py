"""Indexes as the ledger sees them: what is pending, what the published manifest holds, and publishing the next one.

What belongs here: queries about index manifests and their members, and from index members back to media and files. What
does not: vectors, segments' bytes and scores (`search`), and running a build.

Pending is a set difference, verified embeddings minus members, and never a watermark or a count: what is recorded while
a build runs is pending afterwards, whatever its number or time. It is asked of the pictures that `inbox` names, or, in
a full look, of all. A *tombstone* is a member whose picture no media of the
source shows any more; it is no member for the difference, so that a picture that returns is added anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from mirror_realm_assets.catalog import inbox, intents, leases
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import chunks, now
from mirror_realm_assets.catalog.inbox import Note
from mirror_realm_assets.errors import Failed, LeaseLost

FEATURE = inbox.FEATURE
# A file that is missing may be on a drive that is unplugged: it stays indexed, and is shown again when it returns.
_KEPT = ("present", "missing")
# An unreadable file was there a moment ago: it is neither added nor buried until that is settled.
_NOT_GONE = (*_KEPT, "unreadable")
_NOTES_A_LOOK = 10_000  # the next look goes on where this one ended
# Enough to see what happened lately; one a build would be thousands a day.
_KEEP_VERSIONS = 20


@dataclass(frozen=True)
class PendingVector:
    """A recorded embedding that the published manifest does not contain, and its row in a shard of the store."""

    image_digest: str
    part: int
    shard: str
    sha256: str
    row: int
    dim: int


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as a manifest names it.

    Attributes:
        key: in the store.
        sha256: of its bytes; also its name among the members.
        kind: `flat`.
        count: vectors in it, dead ones included.
        bytes: size of the object.
        sealed: False for the write buffer, which the next build replaces.
        recall_at_10: measured when it was built.
    """

    key: str
    sha256: str
    kind: str
    count: int
    bytes: int
    sealed: bool
    recall_at_10: float


@dataclass(frozen=True)
class Member:
    """One vector of an index: whose it is, and where it lies."""

    image_digest: str
    part: int
    segment: str
    position: int


@dataclass(frozen=True)
class ManifestDraft:
    """A manifest to be published.

    Attributes:
        source_id: the source.
        recipe: digest of the recipe of the embeddings.
        model: name of the model.
        dim: length of a vector.
        base_version: the version it was made from, 0 for none.
        segments: all of them.
        recall_at_10: of all of them.
        run_id: the run that makes it.
        tombstones: stale members that get their tombstone now.
    """

    source_id: int
    recipe: str
    model: str
    dim: int
    base_version: int
    segments: tuple[SegmentEntry, ...]
    recall_at_10: float | None = None
    run_id: str | None = None
    tombstones: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A published manifest; `vectors` counts live ones only."""

    source_id: int
    recipe: str
    model: str
    version: int
    token: int
    dim: int
    vectors: int
    segments: tuple[SegmentEntry, ...]
    recall_at_10: float | None
    run_id: str | None
    published_at: datetime

    @property
    def tombstones(self) -> int:
        """Dead vectors that still lie in the segments."""
        return sum(segment.count for segment in self.segments) - self.vectors


@dataclass(frozen=True)
class Found:
    """A media that shows a picture now, with every place it is present at.

    Attributes:
        image_digest: of the picture.
        part: which part of the media shows it.
        source: name.
        media: uuid.
        digest: sha256 of the content.
        time_s: where the part is in a video.
        page: where it is in a document.
        paths: raw bytes relative to the source's root, sorted.
    """

    image_digest: str
    part: int
    source: str
    media: str
    digest: str
    time_s: float | None
    page: int | None
    paths: tuple[bytes, ...]


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
    query = sa.select(*_MEMBER).where(*_stale(source_id, recipe)).order_by(t.index_members.c.id)
    return [Member(*row) for row in conn.execute(query)]


def count_stale(conn: sa.Connection, source_id: int, recipe: str) -> int:
    """How many members `stale_members` would return."""
    query = sa.select(sa.func.count()).select_from(t.index_members).where(*_stale(source_id, recipe))
    return int(conn.execute(query).scalar_one())


def manifest(conn: sa.Connection, source_id: int, recipe: str) -> Manifest | None:
    """The published manifest of a source under a recipe: its newest version."""
    c = t.index_manifests.c
    row = (
        conn.execute(
            sa.select(t.index_manifests)
            .where(c.source_id == source_id, c.recipe == recipe)
            .order_by(c.version.desc())
            .limit(1)
        )
        .mappings()
        .first()
    )
    if row is None:
        return None
    names = [name for name in Manifest.__dataclass_fields__ if name != "segments"]
    segments = tuple(SegmentEntry(**entry) for entry in row["segments"])
    return Manifest(segments=segments, **{name: row[name] for name in names})


def versions(conn: sa.Connection, source_ids: Sequence[int], recipe: str) -> dict[int, int]:
    """The published version of each of these sources that has one."""
    c = t.index_manifests.c
    query = sa.select(c.source_id, sa.func.max(c.version)).where(c.source_id.in_(source_ids), c.recipe == recipe)
    return {row[0]: row[1] for row in conn.execute(query.group_by(c.source_id))}


def members_of(conn: sa.Connection, segment: str, positions: Sequence[int] | None = None) -> list[Member]:
    """Whose the vectors at `positions` of a segment are, all without `positions`; dead ones are left out."""
    m = t.index_members.c
    query = sa.select(*_MEMBER).where(m.segment == segment, m.deleted_at.is_(None)).order_by(m.position)
    if positions is None:
        return [Member(*row) for row in conn.execute(query)]
    found = (row for chunk in chunks(positions) for row in conn.execute(query.where(m.position.in_(chunk))))
    return [Member(*row) for row in found]


def hits(conn: sa.Connection, source_ids: Sequence[int] | None, subjects: Sequence[tuple[str, int]]) -> list[Found]:
    """The media that show these pictures now, at a place where they are present.

    Args:
        conn: a connection.
        source_ids: only media of these sources; None for all that are not removed.
        subjects: image digest and part of pictures.

    Returns:
        One for each media and part, in no particular order.
    """
    p, l = t.parts.c, t.locations.c  # noqa: E741 - l for location, as in the query's SQL
    query = (
        sa.select(
            p.image_digest,
            p.part,
            t.sources.c.name.label("source"),
            t.media.c.uuid.label("media"),
            t.contents.c.digest,
            p.time_s,
            p.page,
            l.path,
        )
        .join(t.contents, t.contents.c.id == p.content_id)
        .join(t.media, t.media.c.content_id == p.content_id)
        .join(t.sources, t.sources.c.id == t.media.c.source_id)
        .join(t.locations, l.media_id == t.media.c.id)
        .where(l.state == "present", t.sources.c.state != "removed")
    )
    if source_ids is not None:
        query = query.where(t.sources.c.id.in_(source_ids))
    wanted = set(subjects)
    places: dict[Found, set[bytes]] = {}
    for chunk in chunks(sorted({digest for digest, _part in wanted})):
        for row in conn.execute(query.where(p.image_digest.in_(chunk))).mappings():
            if (row["image_digest"], row["part"]) in wanted:
                facts = dict(row)
                path = bytes(facts.pop("path"))
                places.setdefault(Found(**facts, paths=()), set()).add(path)
    return [replace(found, paths=tuple(sorted(paths))) for found, paths in places.items()]


def publish(
    conn: sa.Connection,
    lease: leases.Lease,
    draft: ManifestDraft,
    new_members: Sequence[Member],
    dropped_segments: Sequence[SegmentEntry],
    intent_ids: Sequence[int] = (),
    notes: Sequence[int] = (),
) -> Manifest:
    """Make a draft the published manifest, in the caller's transaction: all of it is visible at its commit, or nothing.

    Args:
        conn: a writing transaction.
        lease: of this index; checked here, so that a builder that was overtaken changes nothing.
        draft: the manifest.
        new_members: all members of the segments that the base version did not have.
        dropped_segments: of the base version; their members go, and their objects are named no more.
        intent_ids: what announced the new segments; ended here.
        notes: of the inbox, which are done with this.

    Raises:
        LeaseLost: the lease ran out, is another's, or another build was published since the draft was made.
        Failed: `internal` when members and segments do not agree; the caller's transaction must not be committed.
    """
    leases.check(conn, lease)
    base = manifest(conn, draft.source_id, draft.recipe)
    if (base.version if base else 0) != draft.base_version:
        raise LeaseLost(f"Another build of the index {lease.name} was published meanwhile.")
    at = now(conn)
    _replace_members(conn, draft, new_members, [segment.sha256 for segment in dropped_segments])
    _bury(conn, draft, at)
    vectors = _count_live(conn, draft)
    kept = {segment.key for segment in draft.segments}
    for segment in draft.segments:
        intents.name_object(conn, segment.key, "segment", segment.sha256, segment.bytes)
    intents.forget_objects(conn, [segment.key for segment in dropped_segments if segment.key not in kept])
    intents.end(conn, intent_ids)
    inbox.forget(conn, notes)
    new = {
        **{name: getattr(draft, name) for name in ("source_id", "recipe", "model", "dim", "recall_at_10", "run_id")},
        "version": draft.base_version + 1,
        "token": lease.token,
        "vectors": vectors,
        "published_at": at,
    }
    manifests = t.index_manifests
    conn.execute(manifests.insert().values(segments=[asdict(segment) for segment in draft.segments], **new))
    conn.execute(
        manifests.delete().where(
            manifests.c.source_id == draft.source_id,
            manifests.c.recipe == draft.recipe,
            manifests.c.version <= draft.base_version + 1 - _KEEP_VERSIONS,
        )
    )
    return Manifest(segments=draft.segments, **new)


def shown(source_ids: Sequence[int], image_digest: Any, part: Any, states: Sequence[str]) -> sa.Exists:
    """For a query: whether a current content of the sources' media has this picture, at a place in one of `states`."""
    p, m, l = t.parts.c, t.media.c, t.locations.c  # noqa: E741 - as in `hits`
    return (
        sa.select(sa.literal(1))
        .select_from(t.parts.join(t.media, m.content_id == p.content_id).join(t.locations, l.media_id == m.id))
        .where(p.image_digest == image_digest, p.part == part, _Late(m.source_id).in_(source_ids), l.state.in_(states))
        .exists()
    )


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


def lease_name(source: str, recipe: str) -> str:
    """Of the right to publish a source's index under a recipe."""
    return f"index/{source}/{recipe}"


_m = t.index_members.c
_MEMBER = (_m.image_digest, _m.part, _m.segment, _m.position)


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


def _replace_members(conn: sa.Connection, draft: ManifestDraft, new: Sequence[Member], dropped: Sequence[str]) -> None:
    mine = (_m.source_id == draft.source_id, _m.recipe == draft.recipe)
    conn.execute(t.index_members.delete().where(*mine, _m.segment.in_(dropped)))
    # A picture that returns leaves its tombstone: a part has one row in an index.
    dead = sa.select(_m.id, _m.image_digest, _m.part).where(*mine, _m.deleted_at.is_not(None))
    subjects = {(member.image_digest, member.part) for member in new}
    ids = [
        row[0]
        for chunk in chunks(sorted({digest for digest, _part in subjects}))
        for row in conn.execute(dead.where(_m.image_digest.in_(chunk)))
        if (row[1], row[2]) in subjects
    ]
    for chunk in chunks(ids):
        conn.execute(t.index_members.delete().where(_m.id.in_(chunk)))
    rows = [{"source_id": draft.source_id, "recipe": draft.recipe, **asdict(member)} for member in new]
    if rows:
        conn.execute(t.index_members.insert(), rows)


def _bury(conn: sa.Connection, draft: ManifestDraft, at: datetime) -> None:
    positions: dict[str, list[int]] = {}
    for member in draft.tombstones:
        positions.setdefault(member.segment, []).append(member.position)
    for segment, dead in positions.items():
        for chunk in chunks(dead):
            where = (_m.source_id == draft.source_id, _m.segment == segment, _m.position.in_(chunk))
            conn.execute(t.index_members.update().where(*where).values(deleted_at=at))


def _count_live(conn: sa.Connection, draft: ManifestDraft) -> int:
    """Live members, after making sure that every member lies in a segment of the draft."""
    found = conn.execute(
        sa.select(_m.segment, sa.func.count(), sa.func.count(_m.deleted_at), sa.func.max(_m.position))
        .where(_m.source_id == draft.source_id, _m.recipe == draft.recipe)
        .group_by(_m.segment)
    ).all()
    room = {segment.sha256: segment.count for segment in draft.segments}
    if any(count > room.get(segment, 0) or last >= room[segment] for segment, count, _dead, last in found):
        raise Failed("internal", "The members of an index do not fit its segments; nothing was published.")
    return sum(count - dead for _segment, count, dead, _last in found)
