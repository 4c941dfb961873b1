"""What of a lane can be run now.

What belongs here: which lane waits for which. What does not: what is pending at all (`catalog.batches`), and asking for
runs (`sensors`).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog.batches import PendingBatch
from mirror_realm_assets.stages.stage import Lane, Stage, lane_features

# A batch goes through the lanes one after the other.
_BEFORE: dict[Lane, tuple[Lane, ...]] = {"search": (), "enhance": ("search",), "archive": ("search", "enhance")}


def pending_of(
    conn: sa.Connection, stages: Sequence[Stage], lane: Lane, *, source_id: int | None = None
) -> list[PendingBatch]:
    """Batches with open items of a lane which the lanes before are done with, most urgent first.

    A batch of a source whose policy waits for nothing of a lane before (`Stage.after`) does not wait for it either.
    """
    features = lane_features(stages, lane)
    before = [feature for other in _BEFORE[lane] for feature in lane_features(stages, other)]
    found = batches.pending(conn, lane, features, after=before, source_id=source_id)
    if lane != "archive":
        return found
    needed = lane_features(stages, "search")
    early = batches.pending(conn, lane, features, after=needed, source_id=source_id)
    policies = {source.name: source.policy for source in sources.all_sources(conn)}
    mine = [stage for stage in stages if stage.lane == lane]
    known = {batch.id for batch in found}
    return [
        batch for batch in early if batch.id in known or not any(stage.after(policies[batch.source]) for stage in mine)
    ]
