"""Counts for people: what became of the files of a source.

What belongs here: counting. What does not: printing, and single files (`listing`). Unread files are counted under every
wanted feature as pending; a failure that will be retried by itself is pending too, and so is a refusal under a limit
that has been raised since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import files
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import Record, Rule, State, verdict
from mirror_realm_assets.errors import REASONS

_NO_LIMIT = 2**62
_NO_LIMITS: Mapping[str, float] = MappingProxyType({})
_ANY_TIME = datetime.max.replace(tzinfo=UTC)  # a verdict on a refusal asks for no time
STATUSES = ("ok", "empty", "failed", "refused", "pending", "running", "not_wanted")


@dataclass
class SourceStatus:
    """Counts of one source; `features` maps a feature to counts by status."""

    files: int = 0
    bytes: int = 0
    batches: int = 0
    locations: dict[str, int] = field(default_factory=dict)
    features: dict[str, dict[str, int]] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    state: str = "active"
    state_reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The form of `status --json`."""
        return {
            "files": self.files,
            "bytes": self.bytes,
            "batches": self.batches,
            "locations": self.locations,
            "features": self.features,
            "index": self.index,
            "state": self.state,
            "state_reason": self.state_reason,
        }

    @property
    def settled(self) -> bool:
        """Whether nothing is pending or running."""
        return not any(counts["pending"] or counts["running"] for counts in self.features.values())


def of_source(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float] = _NO_LIMITS
) -> SourceStatus:
    """The counts of one source.

    Args:
        conn: a connection.
        source: the source.
        rules: of all features, in dependency order.
        limits: today's limits by name; without them a refusal counts as it was recorded.
    """
    loc = t.locations.c
    rows = conn.execute(
        sa.select(loc.state, sa.func.count(), sa.func.coalesce(sa.func.sum(loc.size), 0))
        .where(loc.source_id == source.id)
        .group_by(loc.state)
    ).all()
    found = SourceStatus(
        files=sum(row[1] for row in rows if row[0] in ("present", "unreadable")),
        bytes=sum(int(row[2]) for row in rows if row[0] in ("present", "unreadable")),
        batches=conn.execute(
            sa.select(sa.func.count()).select_from(t.batches).where(t.batches.c.source_id == source.id)
        ).scalar_one(),
        locations={row[0]: row[1] for row in rows},
        state=source.state,
        state_reason=source.state_reason,
    )
    unread = _unread(conn, source, limits)
    running = _running(conn, source)
    raw = next((recipe.digest for r in rules if r.feature == RAW and (recipe := r.recipe(source.policy))), "")
    for rule in rules:
        counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        wanted = rule.recipe(source.policy) is not None
        if rule.feature == RAW:
            counts.update(_raw(conn, source, rule, limits))
            counts.update(unread)
        else:
            counts.update(_parts(conn, source, rule, raw, limits))
            counts["pending" if wanted else "not_wanted"] += unread["pending"]
        at_work = min(running.get(rule.feature, 0), counts["pending"])
        counts["pending"] -= at_work
        counts["running"] += at_work
        found.features[rule.feature] = {status: counts[status] for status in STATUSES}
    found.index = _index(conn, source, rules)
    return found


def _unread(conn: sa.Connection, source: Source, limits: Mapping[str, float]) -> Counter[str]:
    """Present locations whose bytes are not identified, by what that makes of `raw_media`."""
    loc = t.locations.c
    # A subquery, because PostgreSQL does not see that two expressions with parameters are the same one.
    each = (
        sa.select(loc.code, sa.or_(loc.next_attempt_at.is_not(None), files.fits_again(limits)).label("again"))
        .where(loc.source_id == source.id, loc.state.in_(("present", "unreadable")), files.unidentified())
        .subquery()
    )
    rows = conn.execute(sa.select(*each.c, sa.func.count()).group_by(*each.c))
    counts: Counter[str] = Counter()
    for row in rows:
        code, again, count = row[0], row[1], row[2]
        if code is None or again:
            counts["pending"] += count
        else:
            counts["refused" if REASONS[code].refusal else "failed"] += count
    return counts


def _raw(conn: sa.Connection, source: Source, rule: Rule, limits: Mapping[str, float]) -> Counter[str]:
    recipe = rule.recipe(source.policy)
    if recipe is None:
        return Counter()
    rows = conn.execute(
        sa.select(*_recorded(t.features), sa.func.count())
        .select_from(t.locations)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .outerjoin(t.features, _is(t.contents.c.digest, sa.literal(0), rule.feature, recipe.digest))
        .where(t.locations.c.source_id == source.id, t.locations.c.state == "present", ~files.unidentified())
        .group_by(*_recorded(t.features))
    )
    counts: Counter[str] = Counter()
    for row in rows:
        counts[_told(row[:3], limits)] += row[3]
    return counts


def _parts(
    conn: sa.Connection, source: Source, rule: Rule, raw_recipe: str, limits: Mapping[str, float]
) -> Counter[str]:
    """Pictures by what became of one feature.

    A media whose bytes are known and not decoded yet counts as one picture; one that cannot be decoded now counts only
    with what is recorded, because nothing more will ever be done with it.
    """
    recipe = rule.recipe(source.policy)
    shown = (
        sa.select(t.locations.c.id)
        .where(t.locations.c.media_id == t.media.c.id, t.locations.c.state == "present", ~files.unidentified())
        .exists()
    )
    limit = rule.max_pixels(source.policy)
    pixels = t.parts.c.width * t.parts.c.height
    raw = t.features.alias("raw")
    # A subquery, because PostgreSQL does not see that two expressions with parameters are the same one.
    each = (
        sa.select(
            *_recorded(t.features),
            *[column.label(f"raw_{column.name}") for column in _recorded(raw)],
            sa.or_(
                pixels > (limit if limit is not None else _NO_LIMIT),
                sa.and_(sa.literal(rule.stills_only), t.parts.c.kind != "still"),
            ).label("left_out"),
        )
        .select_from(t.media)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .outerjoin(
            t.parts,
            sa.and_(
                t.parts.c.content_id == t.media.c.content_id,
                t.parts.c.part == 0 if rule.of_bytes else sa.true(),
            ),
        )
        .outerjoin(
            t.features,
            _is(
                t.contents.c.digest if rule.of_bytes else t.parts.c.image_digest,
                sa.literal(0) if rule.of_bytes else t.parts.c.part,
                rule.feature,
                recipe.digest if recipe else "",
            ),
        )
        .outerjoin(raw, _is(t.contents.c.digest, sa.literal(0), RAW, raw_recipe, of=raw))
        .where(t.media.c.source_id == source.id, shown)
        .subquery()
    )
    counts: Counter[str] = Counter()
    for row in conn.execute(sa.select(*each.c, sa.func.count()).group_by(*each.c)):
        own, read, left_out, count = row[:3], row[3:6], row[6], row[7]
        if own[0] is None and _told(read, limits) in ("refused", "failed"):
            continue
        counts["not_wanted" if recipe is None or left_out else _told(own, limits)] += count
    return counts


def _recorded(features: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """What tells how a recorded feature counts: its status, whether it is tried again, the limits of a refusal."""
    f = features.c
    return [f.status, f.next_attempt_at.is_not(None).label("again"), f.limits]


def _told(recorded: Sequence[Any], limits: Mapping[str, float]) -> str:
    """The status under which people see it, from what `_recorded` selects."""
    status: str | None = recorded[0]
    again, refused_under = recorded[1], recorded[2]
    if status is None or (status == "failed" and again):
        return "pending"
    if status == "refused":
        raised = verdict(Record("refused", limits=refused_under), _ANY_TIME, limits).state is State.PENDING
        return "pending" if raised else "refused"
    return status


def _is(
    digest: sa.ColumnElement[Any],
    part: sa.ColumnElement[Any],
    feature: str,
    recipe: str,
    of: sa.FromClause = t.features,
) -> sa.ColumnElement[bool]:
    f = of.c
    return sa.and_(f.image_digest == digest, f.part == part, f.feature == feature, f.recipe == recipe)


def _running(conn: sa.Connection, source: Source) -> Mapping[str, int]:
    rows = conn.execute(
        sa.select(t.batch_items.c.feature, sa.func.count())
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .where(
            t.batches.c.source_id == source.id,
            t.batch_items.c.settled_at.is_(None),
            t.batch_items.c.state == "running",
        )
        .group_by(t.batch_items.c.feature)
    )
    return {row[0]: row[1] for row in rows}


def _index(conn: sa.Connection, source: Source, rules: Sequence[Rule]) -> dict[str, Any]:
    empty = {"vectors": 0, "tombstones": 0, "segments": 0, "model": None, "recall_at_10": None}
    recipe = next((rule.recipe(source.policy) for rule in rules if rule.feature == "embeddings"), None)
    if recipe is None:
        return empty
    m = t.index_manifests.c
    row = (
        conn.execute(
            sa.select(t.index_manifests)
            .where(m.source_id == source.id, m.recipe == recipe.digest)
            .order_by(m.version.desc())
            .limit(1)
        )
        .mappings()
        .first()
    )
    if row is None:
        return empty
    mem = t.index_members.c
    dead = conn.execute(
        sa.select(sa.func.count())
        .select_from(t.index_members)
        .where(mem.source_id == source.id, mem.recipe == recipe.digest, mem.deleted_at.is_not(None))
    ).scalar_one()
    return {
        "vectors": row["vectors"],
        "tombstones": dead,
        "segments": len(row["segments"]),
        "model": row["model"],
        "recall_at_10": row["recall_at_10"],
    }
