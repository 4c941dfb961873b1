"""How waiting files are cut into batches: pure functions over values.

What belongs here: sizes, ages, keys. What does not: SQL (`batches`) and the clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

KEY = re.compile(r"(?P<source>[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?)\.(?P<time>[0-9]{8}T[0-9]{6})\.(?P<seq>[0-9]{4,})")
_MAX_KEY = 63  # a Kubernetes label
# The first batch of a burst is small, so that something is searchable before the big ones run.
_FIRST_ITEMS = 32


@dataclass(frozen=True)
class Candidate:
    """A file that waits for a batch.

    Attributes:
        id: of its location or media.
        size: bytes.
        seconds: estimated work of the search lane.
        waiting_since: when it was first seen to need work, aware UTC.
    """

    id: int
    size: int
    seconds: float
    waiting_since: datetime


@dataclass(frozen=True)
class BatchLimits:
    """The limits of one batch: items, bytes, estimated seconds; and the age at which a partial batch is closed."""

    items: int = 1000
    bytes: int = 4 * 1024**3
    seconds: float = 300.0
    age: float = 1.0


def cut(candidates: Sequence[Candidate], limits: BatchLimits, now: datetime, *, busy: bool) -> list[list[Candidate]]:
    """Cut candidates into batches; what is left over stays waiting.

    Args:
        candidates: in the order they should be worked on.
        limits: of one batch.
        now: aware UTC.
        busy: whether the source has an unfinished batch. Then only full batches are cut, so that a trickle collects
            while a run is active; else the rest is cut as well once its oldest file is older than the age limit.

    Returns:
        Batches in order; no candidate stands in two of them.
    """
    if not candidates:
        return []
    ripe = not busy and (now - min(c.waiting_since for c in candidates)).total_seconds() >= limits.age
    batches: list[list[Candidate]] = []
    rest = list(candidates)
    if ripe and len(rest) > _FIRST_ITEMS:
        first = _take(rest, BatchLimits(min(_FIRST_ITEMS, limits.items), limits.bytes, limits.seconds))
        batches.append(first)
        rest = rest[len(first) :]
    while rest:
        group = _take(rest, limits)
        full = len(group) < len(rest) or len(group) == limits.items
        if not full and not ripe:
            break
        batches.append(group)
        rest = rest[len(group) :]
    return batches


def batch_key(source: str, at: datetime, seq: int) -> str:
    """The partition key `<source>.<UTC yyyymmddThhmmss>.<nnnn>`; only the sequence makes it unique.

    Raises:
        ValueError: if it does not follow the grammar.
    """
    key = f"{source}.{at:%Y%m%dT%H%M%S}.{seq:04d}"
    if len(key) > _MAX_KEY or not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no batch key")
    return key


def source_of(key: str) -> str:
    """The source's name in a batch key.

    Raises:
        ValueError: if `key` is no batch key.
    """
    found = KEY.fullmatch(key)
    if not found or len(key) > _MAX_KEY:
        raise ValueError(f"{key!r} is no batch key")
    return found["source"]


def _take(candidates: Sequence[Candidate], limits: BatchLimits) -> list[Candidate]:
    taken: list[Candidate] = []
    size, seconds = 0, 0.0
    for candidate in candidates:
        over = size + candidate.size > limits.bytes or seconds + candidate.seconds > limits.seconds
        if taken and (over or len(taken) >= limits.items):
            break
        taken.append(candidate)
        size += candidate.size
        seconds += candidate.seconds
    return taken
