"""What is going on: what runs now, how fast it goes, what went wrong last.

What belongs here: questions about the last minutes. What does not: counts of what there is (`status`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import sweep
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.catalog.sources import Source, display_path
from mirror_realm_assets.catalog.wants import Rule
from mirror_realm_assets.errors import REASONS

WINDOW = timedelta(minutes=10)
# Of the newest results; with more of them the last ten minutes were busy enough to tell a speed from fewer.
_RESULTS = 2000
_MIN_RESULTS = 2
_MIN_SECONDS = 2.0
_IDLE_SECONDS = 120.0


@dataclass(frozen=True)
class Running:
    """Items that a worker has in hand: of which batch and feature, how many, since when its last sign of life was."""

    source: str
    batch: str
    feature: str
    items: int
    pid: int | None
    host: str | None
    run_id: str | None
    heartbeat_at: datetime | None


@dataclass(frozen=True)
class Failure:
    """The newest failure of a source that nothing tries again by itself."""

    feature: str
    code: str
    reason: str | None
    path: str | None
    at: datetime | None


def running(conn: sa.Connection) -> list[Running]:
    """What workers have in hand right now, by batch and feature."""
    items, w = t.batch_items.c, t.workers.c
    rows = conn.execute(
        sa.select(
            t.sources.c.name,
            t.batches.c.key,
            items.feature,
            sa.func.count(),
            w.pid,
            w.host,
            w.run_id,
            w.heartbeat_at,
        )
        .select_from(t.batch_items)
        .join(t.batches, t.batches.c.id == items.batch_id)
        .join(t.sources, t.sources.c.id == t.batches.c.source_id)
        .outerjoin(t.workers, w.id == items.worker_id)
        .where(items.settled_at.is_(None), items.state == "running")
        .group_by(t.sources.c.name, t.batches.c.key, items.feature, w.pid, w.host, w.run_id, w.heartbeat_at)
        .order_by(t.batches.c.key, items.feature)
    )
    return [Running(*row) for row in rows]


def speeds(conn: sa.Connection) -> dict[str, float | None]:
    """Pictures a second of each feature over the last ten minutes; None where too little was done to tell.

    The speed of the machine, not of one source: sources share it.
    """
    f = t.features.c
    newest = sa.select(f.feature, f.updated_at, f.seconds).order_by(f.id.desc()).limit(_RESULTS)
    at = now(conn)
    times: dict[str, list[tuple[datetime, float]]] = {}
    for feature, ended_at, seconds in conn.execute(newest):
        if ended_at > at - WINDOW:
            times.setdefault(feature, []).append((ended_at, seconds or 0.0))
    return {feature: speed(ended, at) for feature, ended in times.items()}


def speed(ended: Sequence[tuple[datetime, float]], at: datetime) -> float | None:
    """Results a second, from the times at which they were recorded and the seconds that each took.

    None when that says nothing about now: too few results, in too short a time, or nothing for longer than two minutes
    and than the work before that took.
    """
    if len(ended) < _MIN_RESULTS:
        return None
    first, first_seconds = min(ended)
    last, _seconds = max(ended)
    worked = (last - first).total_seconds() + first_seconds
    if worked < _MIN_SECONDS:
        return None  # one batch that was recorded at once: its start, which took most of the time, is not in it
    idle = (at - last).total_seconds()
    return len(ended) / worked if idle <= max(worked, _IDLE_SECONDS) else None


def seconds_left(
    counts: Mapping[str, Mapping[str, int]], features: Sequence[str], rates: Mapping[str, float | None]
) -> float | None:
    """Until the given features of a source have nothing pending, or None when no speed is known for one that has."""
    left = 0.0
    for feature in features:
        waiting = counts[feature]["pending"] + counts[feature]["running"] if feature in counts else 0
        rate = rates.get(feature)
        if waiting and not rate:
            return None
        if waiting and rate:
            left = max(left, waiting / rate)
    return left


def last_failure(conn: sa.Connection, source: Source, rules: Sequence[Rule]) -> Failure | None:
    """The newest failure of a source, or None."""
    loc = t.locations.c
    refusals = [code for code, reason in REASONS.items() if reason.refusal]
    place = conn.execute(
        sa.select(loc.code, loc.reason, loc.display, loc.last_seen_at)
        .where(
            loc.source_id == source.id,
            loc.state == "unreadable",
            loc.code.is_not(None),
            loc.code.not_in(refusals),
            loc.next_attempt_at.is_(None),
        )
        .order_by(loc.last_seen_at.desc())
        .limit(1)
    ).first()
    found = [Failure(RAW, place[0], place[1], place[2], place[3])] if place else []
    f = t.features.c
    recipes = [recipe.digest for rule in rules if (recipe := rule.recipe(source.policy))]
    row = conn.execute(
        sa.select(f.feature, f.code, f.reason, f.image_digest, f.updated_at)
        .where(
            f.feature.in_([rule.feature for rule in rules]),
            f.recipe.in_(recipes),
            f.status == "failed",
            f.next_attempt_at.is_(None),
            f.image_digest.in_(sa.select(sweep.digests_of(source.id))),
        )
        .order_by(f.updated_at.desc())
        .limit(1)
    ).first()
    if row is not None:
        found.append(Failure(row[0], row[1], row[2], _place_of(conn, source.id, row[3]), row[4]))
    return max(found, key=lambda each: each.at or _NEVER) if found else None


_NEVER = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _place_of(conn: sa.Connection, source_id: int, digest: str) -> str | None:
    """A place of the media with these bytes or this picture."""
    content = sa.select(t.contents.c.id).where(t.contents.c.digest == digest)
    picture = sa.select(t.parts.c.content_id).where(t.parts.c.image_digest == digest)
    path: Any = conn.execute(
        sa.select(t.locations.c.path)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        .where(t.media.c.source_id == source_id, t.media.c.content_id.in_(content.union(picture)))
        .order_by(t.locations.c.id)
        .limit(1)
    ).scalar()
    return display_path(bytes(path)) if path is not None else None
