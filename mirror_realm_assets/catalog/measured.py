"""What work has really taken here, as the ledger recorded it.

What belongs here: speeds for estimates. What does not: the speed of the last minutes (`progress`).
"""

from __future__ import annotations

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t

_NEWEST = 500
# Smaller pictures tell the cost of starting, not of pixels.
_MIN_PIXELS = 40_000
_MIN_PIXELS_IN_ALL = 200_000
_MIN_EMBEDDED = 64  # fewer are mostly the loading of the model


def enhancement_rate(conn: sa.Connection, model: str, device: str, precision: str) -> float | None:
    """Seconds a megapixel of input that enhancement took here, or None while too little was done to tell.

    Only what was made by the same model on the same device in the same precision counts, and the newest of it.
    """
    f, p = t.features.c, t.parts.c
    rows = conn.execute(
        sa.select(f.id, f.seconds, p.width, p.height, f.output)
        .join(t.parts, sa.and_(p.image_digest == f.image_digest, p.part == f.part))
        .where(f.feature == "enhanced_images", f.status == "ok", f.seconds.is_not(None))
        .order_by(f.id.desc())
        .limit(_NEWEST)
    )
    seconds, pixels, seen = 0.0, 0, set()
    for feature_id, took, width, height, output in rows:
        made_by = tuple((output or {}).get(name) for name in ("model", "device", "precision"))
        if made_by == (model, device, precision) and width * height >= _MIN_PIXELS and feature_id not in seen:
            seen.add(feature_id)  # two files may hold the same picture
            seconds += took
            pixels += width * height
    return seconds / (pixels / 1e6) if pixels >= _MIN_PIXELS_IN_ALL else None


def embedding_seconds(conn: sa.Connection, model_digest: str) -> float | None:
    """Mean seconds of a picture's embedding by the model with these weights, of the newest; None after too few."""
    f = t.features.c
    rows = conn.execute(
        sa.select(f.seconds)
        .where(f.feature == "embeddings", f.model_digest == model_digest, f.status == "ok", f.seconds.is_not(None))
        .order_by(f.id.desc())
        .limit(_NEWEST)
    ).all()
    return sum(row[0] for row in rows) / len(rows) if len(rows) >= _MIN_EMBEDDED else None
