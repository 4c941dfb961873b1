"""Indexes as the ledger sees them: what the published manifest holds, and publishing the next one.

What belongs here: index manifests and their members, and the way from members back to media and files. What does not:
what an index lacks (`lacking`), vectors, segments' bytes and scores (`search`), and running a build.

A *tombstone* is a member whose picture no media of the source shows any more; it is no member for what is pending, so
that a picture that returns is added anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from mirror_realm_assets.catalog import inbox, intents, leases
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import chunks, now
from mirror_realm_assets.errors import Failed, LeaseLost

# Enough to see what happened lately; one a build would be thousands a day.
_KEEP_VERSIONS = 20


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
    query = sa.select(*MEMBER).where(m.segment == segment, m.deleted_at.is_(None)).order_by(m.position)
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


def lease_name(source: str, recipe: str) -> str:
    """Of the right to publish a source's index under a recipe."""
    return f"index/{source}/{recipe}"


_m = t.index_members.c
MEMBER = (_m.image_digest, _m.part, _m.segment, _m.position)


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
