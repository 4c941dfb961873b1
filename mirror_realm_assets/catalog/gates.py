"""What the asset checks and the materializations ask of the ledger about one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.errors import SetupError


@dataclass
class Failures:
    """Failures of one feature of one batch: items in all, and failed ones by code."""

    items: int = 0
    codes: dict[str, int] = field(default_factory=dict)


def failures(conn: sa.Connection, batch_key: str, feature: str) -> Failures:
    """Settled failures of a batch's feature."""
    i = t.batch_items.c
    rows = conn.execute(
        sa.select(i.outcome, i.code, sa.func.count())
        .join(t.batches, t.batches.c.id == i.batch_id)
        .where(t.batches.c.key == batch_key, i.feature == feature)
        .group_by(i.outcome, i.code)
    ).all()
    found = Failures(items=sum(row[2] for row in rows))
    for outcome, code, count in rows:
        if outcome == "failed":
            found.codes[code or "internal"] = found.codes.get(code or "internal", 0) + count
    return found


def outcomes(conn: sa.Connection, batch_key: str, feature: str) -> dict[str, int]:
    """Items of a batch's feature by outcome; those that are not settled count as `open`."""
    i = t.batch_items.c
    rows = conn.execute(
        sa.select(i.outcome, sa.func.count())
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .where(t.batches.c.key == batch_key, i.feature == feature)
        .group_by(i.outcome)
    ).all()
    return {outcome or "open": count for outcome, count in rows}


def policy_of(conn: sa.Connection, batch_key: str) -> SourcePolicy:
    """The policy a batch is worked under now: its source's, with what its request asks for on top.

    Raises:
        SetupError: `not_found` for an unknown batch.
    """
    batch = batches.get(conn, batch_key)
    if batch is None:
        raise SetupError("not_found", f"There is no batch {batch_key!r}.", remedy="See `mirror-realm status`.")
    return sources.by_id(conn, batch.source_id).policy.merged(batch.request)


def outputs_of_batch(conn: sa.Connection, batch_key: str, feature: str) -> list[Mapping[str, Any]]:
    """Outputs of the `ok` features of the pictures in a batch, under every recipe that has some."""
    media_id = sa.func.coalesce(t.batch_items.c.media_id, t.locations.c.media_id)
    rows = conn.execute(
        sa.select(t.features.c.output)
        .select_from(t.batch_items)
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .outerjoin(t.locations, t.locations.c.id == t.batch_items.c.location_id)
        .join(t.media, t.media.c.id == media_id)
        .join(t.parts, t.parts.c.content_id == t.media.c.content_id)
        .join(
            t.features,
            sa.and_(
                t.features.c.image_digest == t.parts.c.image_digest,
                t.features.c.part == t.parts.c.part,
                t.features.c.feature == feature,
                t.features.c.status == "ok",
            ),
        )
        .where(t.batches.c.key == batch_key, t.batch_items.c.feature == feature)
    )
    return [row[0] for row in rows]
