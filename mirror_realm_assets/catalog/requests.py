"""Which batches to ask Dagster for now: a pure function over the ledger's pending batches and Dagster's runs.

What belongs here: the decision. What does not: queries, and Dagster's types (`sensors`). It looks only at its
arguments, so that a tick which was killed half-way is repaired by the next, and an old one that outlives its time-out
does no harm: a run key is spent once, whoever asks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mirror_realm_assets.catalog.batches import PendingBatch

Ended = Literal["succeeded", "failed"]
# A run's own time limit: five times its estimate, at least half an hour.
_RUNTIME_FACTOR = 5
_RUNTIME_MIN_SECONDS = 1800


@dataclass(frozen=True)
class RunWish:
    """A run to be asked for; `run_key` makes asking twice harmless."""

    batch: PendingBatch
    run_key: str
    max_runtime: int


@dataclass
class Decision:
    """What a tick does: runs to ask for, and attempts whose run ended with work left (with True for a failed run)."""

    wishes: list[RunWish] = field(default_factory=list)
    ended: list[tuple[PendingBatch, bool]] = field(default_factory=list)
    leased: int = 0
    backing_off: int = 0


def run_key(batch: PendingBatch) -> str:
    """`<batch>:<attempt>`."""
    return f"{batch.key}:{batch.attempt}"


def decide(
    pending: Sequence[PendingBatch],
    active: Collection[str],
    ended: Mapping[str, Ended],
    *,
    room: int,
    slice_seconds: float | None = None,
) -> Decision:
    """Choose what to ask for.

    Args:
        pending: batches with open items, most urgent first.
        active: keys of batches that have a queued or running run, or one that Dagster will retry by itself.
        ended: run keys whose last run is over, with how.
        room: how many runs may be asked for.
        slice_seconds: length of a sliced run, which then is its estimate.
    """
    decision = Decision()
    for batch in pending:
        if batch.key in active:
            continue
        if batch.leased:
            decision.leased += 1
            continue
        if batch.not_before is not None:
            decision.backing_off += 1
            continue
        key = run_key(batch)
        if key in ended:
            decision.ended.append((batch, ended[key] == "failed"))
            continue
        if len(decision.wishes) < room:
            estimate = slice_seconds if slice_seconds is not None else batch.estimate_seconds
            runtime = max(_RUNTIME_MIN_SECONDS, int(_RUNTIME_FACTOR * estimate))
            decision.wishes.append(RunWish(batch, key, runtime))
    return decision
