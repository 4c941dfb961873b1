"""Counts for people: what became of the files of a source.

What belongs here: counting. What does not: printing, and single files (`listing`). Unread files are counted under every
wanted feature as pending; a failure that will be retried by itself is pending too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import files
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import Rule
from mirror_realm_assets.errors import REASONS

_NO_LIMIT = 2**62
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


def of_source(conn: sa.Connection, source: Source, rules: Sequence[Rule]) -> SourceStatus:
    """The counts of one source.

    Args:
        conn: a connection.
        source: the source.
        rules: of all features, in dependency order.
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
    unread = _unread(conn, source)
    running = _running(conn, source)
    raw = next((recipe.digest for r in rules if r.feature == RAW and (recipe := r.recipe(source.policy))), "")
    for rule in rules:
        counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        counts.update(_raw(conn, source, rule) if rule.feature == RAW else _parts(conn, source, rule, raw))
        wanted = rule.recipe(source.policy) is not None
        if rule.feature == RAW:
            counts.update(unread)
        else:
            counts["pending" if wanted else "not_wanted"] += unread["pending"]
        at_work = min(running.get(rule.feature, 0), counts["pending"])
        counts["pending"] -= at_work
        counts["running"] += at_work
        found.features[rule.feature] = {status: counts[status] for status in STATUSES}
    found.index = _index(conn, source, rules)
    return found


def _unread(conn: sa.Connection, source: Source) -> Counter[str]:
    """Present locations whose bytes are not identified, by what that makes of `raw_media`."""
    loc = t.locations.c
    rows = conn.execute(
        sa.select(loc.code, loc.next_attempt_at.is_not(None), sa.func.count())
        .where(loc.source_id == source.id, loc.state.in_(("present", "unreadable")), files.unidentified())
        .group_by(loc.code, loc.next_attempt_at.is_not(None))
    )
    counts: Counter[str] = Counter()
    for code, again, count in rows:
        if code is None or again:
            counts["pending"] += count
        else:
            counts["refused" if REASONS[code].refusal else "failed"] += count
    return counts


def _raw(conn: sa.Connection, source: Source, rule: Rule) -> Counter[str]:
    recipe = rule.recipe(source.policy)
    if recipe is None:
        return Counter()
    rows = conn.execute(
        sa.select(t.features.c.status, t.features.c.next_attempt_at.is_not(None), sa.func.count())
        .select_from(t.locations)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .outerjoin(t.features, _is(t.contents.c.digest, sa.literal(0), rule.feature, recipe.digest))
        .where(t.locations.c.source_id == source.id, t.locations.c.state == "present", ~files.unidentified())
        .group_by(t.features.c.status, t.features.c.next_attempt_at.is_not(None))
    )
    return _by_status(rows)


def _parts(conn: sa.Connection, source: Source, rule: Rule, raw_recipe: str) -> Counter[str]:
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
    hopeless = sa.or_(raw.c.status == "refused", sa.and_(raw.c.status == "failed", raw.c.next_attempt_at.is_(None)))
    # A subquery, because PostgreSQL does not see that two expressions with parameters are the same one.
    each = (
        sa.select(
            t.features.c.status,
            t.features.c.next_attempt_at.is_not(None).label("again"),
            (pixels > (limit if limit is not None else _NO_LIMIT)).label("too_large"),
        )
        .select_from(t.media)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .outerjoin(t.parts, t.parts.c.content_id == t.media.c.content_id)
        .outerjoin(
            t.features, _is(t.parts.c.image_digest, t.parts.c.part, rule.feature, recipe.digest if recipe else "")
        )
        .outerjoin(raw, _is(t.contents.c.digest, sa.literal(0), RAW, raw_recipe, of=raw))
        .where(
            t.media.c.source_id == source.id,
            shown,
            sa.or_(t.features.c.status.is_not(None), sa.not_(sa.func.coalesce(hopeless, sa.false()))),
        )
        .subquery()
    )
    rows = conn.execute(
        sa.select(each.c.status, each.c.again, each.c.too_large, sa.func.count()).group_by(
            each.c.status, each.c.again, each.c.too_large
        )
    ).all()
    unwanted = sum(row[3] for row in rows if recipe is None or row[2])
    counts = _by_status([(row[0], row[1], row[3]) for row in rows if recipe is not None and not row[2]])
    counts["not_wanted"] += unwanted
    return counts


def _by_status(rows: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for status, again, count in rows:
        counts["pending" if status is None or (status == "failed" and again) else status] += count
    return counts


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
