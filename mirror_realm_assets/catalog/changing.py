"""How much of a source a change of a recipe concerns.

What belongs here: counting, by the database, so that a library of millions is counted in seconds. What does not: which
recipe a policy means (`wants`), and the work that follows (`sweep`).
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t

# As for an index: a file that is missing may be on a drive that is unplugged.
_KEPT = ("present", "missing")


class Counts(NamedTuple):
    """Pictures that a source shows, those that have nothing settled under a recipe, and the pixels of these."""

    pictures: int
    left: int
    pixels: int


def count(
    conn: sa.Connection,
    source_id: int,
    feature: str,
    recipe: str,
    *,
    max_pixels: int | None = None,
    stills_only: bool = False,
) -> Counts:
    """Count the different pictures of a source, and which of them the recipe has not settled yet.

    Args:
        conn: a connection.
        source_id: the source.
        feature: name of the feature.
        recipe: digest of the new recipe.
        max_pixels: larger pictures are not wanted.
        stills_only: frames and pages are not wanted.
    """
    p, f = t.parts.c, t.features.c
    shown = sa.exists().where(t.locations.c.media_id == t.media.c.id, t.locations.c.state.in_(_KEPT))
    pixels = sa.cast(p.width, sa.BigInteger) * p.height
    query = (
        sa.select(p.image_digest, p.part, pixels.label("pixels"))
        .join(t.media, t.media.c.content_id == p.content_id)
        .where(t.media.c.source_id == source_id, shown)
        .distinct()
    )
    if stills_only:
        query = query.where(p.kind == "still")
    if max_pixels is not None:
        query = query.where(pixels <= max_pixels)
    picture = query.subquery()
    settled = (
        sa.select(sa.literal(1))
        .where(
            f.image_digest == picture.c.image_digest,
            f.part == picture.c.part,
            f.feature == feature,
            f.recipe == recipe,
            sa.or_(f.status != "failed", f.next_attempt_at.is_(None)),
        )
        .exists()
    )
    left = sa.case((settled, 0), else_=1)
    row = conn.execute(
        sa.select(sa.func.count(), sa.func.sum(left), sa.func.sum(left * picture.c.pixels)).select_from(picture)
    ).one()
    return Counts(row[0], int(row[1] or 0), int(row[2] or 0))
