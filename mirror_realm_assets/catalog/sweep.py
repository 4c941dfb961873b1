"""Known media whose wanted features are missing: after a model change, a raised limit, a retry.

What belongs here: comparing recorded features with wanted recipes over a whole source. What does not: forming batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from mirror_realm_assets.catalog import features as feature_rows
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import NewItem
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.features import FeatureKey
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import PartFacts, Rule, State, Verdict, judge, wanted

_PAGE = 1000


def has_media(conn: sa.Connection, source_id: int) -> bool:
    """Whether anything is known of the source's files."""
    return conn.execute(sa.select(t.media.c.id).where(t.media.c.source_id == source_id).limit(1)).first() is not None


def missing_media(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float]
) -> Iterator[tuple[NewItem, tuple[str, ...]]]:
    """Media of the source with features to be done that no open item holds, with those features."""
    held = _held(conn, source.id)
    at = now(conn)
    last = 0
    while True:
        rows = conn.execute(_page(source.id, last)).mappings().all()
        if not rows:
            return
        last = rows[-1]["media_id"]
        facts = [PartFacts(r["width"], r["height"], r["kind"]) if r["kind"] else None for r in rows]
        wants = [wanted(rules, source.policy, fact) for fact in facts]
        keys = [
            {
                feature: FeatureKey(digest, 0 if want.of_bytes else row["part"] or 0, feature, want.recipe.digest)
                for feature, want in found.items()
                if want.recipe and (digest := row["digest"] if want.of_bytes else row["image_digest"])
            }
            for row, found in zip(rows, wants, strict=True)
        ]
        records = feature_rows.records(conn, [key for found in keys for key in found.values()])
        found_by_media: dict[int, tuple[NewItem, set[str]]] = {}
        for row, want, found_keys in zip(rows, wants, keys, strict=True):
            known = {feature: records[key] for feature, key in found_keys.items() if key in records}
            todo = _todo(judge(want, known, at, limits)) - held.get(row["media_id"], set())
            item = NewItem(media_id=row["media_id"], location_id=row["location_id"], size=row["size"])
            found_by_media.setdefault(row["media_id"], (item, set()))[1].update(todo)
        for item, missing in found_by_media.values():
            if missing:
                yield item, tuple(rule.feature for rule in rules if rule.feature in missing)


def _todo(verdicts: Mapping[str, Verdict]) -> set[str]:
    """What can be done now, or will be once something else of the same list is done."""
    return {
        feature
        for feature, verdict in verdicts.items()
        if verdict.state is State.PENDING or (verdict.state is State.BLOCKED and not verdict.final)
    }


def _page(source_id: int, after: int) -> sa.Select[tuple[int]]:
    """Media with a present place, their current content and its parts; whole media only, by id."""
    place = (
        sa.select(sa.func.min(t.locations.c.id).label("location_id"), t.locations.c.media_id)
        .where(t.locations.c.source_id == source_id, t.locations.c.state == "present")
        .group_by(t.locations.c.media_id)
        .subquery()
    )
    page = (
        sa.select(t.media.c.id, t.media.c.content_id, place.c.location_id)
        .join(place, place.c.media_id == t.media.c.id)
        .where(t.media.c.source_id == source_id, t.media.c.id > after)
        .order_by(t.media.c.id)
        .limit(_PAGE)
        .subquery()
    )
    return (
        sa.select(
            page.c.id.label("media_id"),
            page.c.location_id,
            t.contents.c.digest,
            t.contents.c.size,
            t.parts.c.part,
            t.parts.c.kind,
            t.parts.c.image_digest,
            t.parts.c.width,
            t.parts.c.height,
        )
        .join(t.contents, t.contents.c.id == page.c.content_id)
        .outerjoin(t.parts, t.parts.c.content_id == t.contents.c.id)
        .order_by(page.c.id, t.parts.c.part)
    )


def _held(conn: sa.Connection, source_id: int) -> dict[int, set[str]]:
    """Features that open items hold, by media."""
    media_id = sa.func.coalesce(t.batch_items.c.media_id, t.locations.c.media_id)
    rows = conn.execute(
        sa.select(media_id, t.batch_items.c.feature)
        .select_from(t.batch_items)
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .outerjoin(t.locations, t.locations.c.id == t.batch_items.c.location_id)
        .where(t.batches.c.source_id == source_id, t.batch_items.c.settled_at.is_(None))
    )
    held: dict[int, set[str]] = {}
    for row in rows:
        if row[0] is not None:
            held.setdefault(row[0], set()).add(row[1])
    return held


def forget_damaged(conn: sa.Connection, source_id: int, feature: str | None = None) -> int:
    """Have the originals read again whose proxies could not be read: their features failed with `store_corrupt`.

    Only where `features.forget_failures` with the same `feature` puts these back, too: else nothing would ask for them.

    Returns:
        How many contents.
    """
    f = t.features.c
    damaged = sa.select(f.image_digest).where(f.status == "failed", f.code == "store_corrupt", f.feature != RAW)
    if feature is not None:
        damaged = damaged.where(f.feature == feature)
    contents = (
        sa.select(t.contents.c.digest)
        .join(t.parts, t.parts.c.content_id == t.contents.c.id)
        .join(t.media, t.media.c.content_id == t.contents.c.id)
        .where(t.media.c.source_id == source_id, t.parts.c.image_digest.in_(damaged))
    )
    return conn.execute(t.features.delete().where(f.feature == RAW, f.image_digest.in_(contents))).rowcount


def digests_of(source_id: int) -> sa.Subquery:
    """Digests under which features of a source's current media are recorded, as a subquery."""
    content = (
        sa.select(t.contents.c.digest.label("digest"))
        .join(t.media, t.media.c.content_id == t.contents.c.id)
        .where(t.media.c.source_id == source_id)
    )
    picture = (
        sa.select(t.parts.c.image_digest.label("digest"))
        .join(t.media, t.media.c.content_id == t.parts.c.content_id)
        .where(t.media.c.source_id == source_id)
    )
    return sa.union(content, picture).subquery()
