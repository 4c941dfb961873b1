"""What is wanted, and what of it is missing: pure functions over values.

What belongs here: recipes, rules and the verdict on one feature of one part. What does not: SQL, clocks, models. The
verdict is the only place that decides whether work is done, so that a re-run, a model change, a raised limit and a
retry all follow from the same comparison of wanted recipes with recorded features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.errors import REASONS


@dataclass(frozen=True)
class Recipe:
    """Everything that a feature's result depends on besides the picture.

    Attributes:
        feature: name of the feature.
        code_version: of the stage's own code; raised when its results change.
        params: parameters that change the result (never limits: those only decide whether it is tried).
        model_digest: sha256 of the weights, or None.
        inputs: versions of just those inputs that the feature reads (`{"proxy": "1-1440"}`).
    """

    feature: str
    code_version: str
    params: Mapping[str, Any] = field(default_factory=dict)
    model_digest: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 hex over the canonical JSON of all attributes."""
        body = {
            "feature": self.feature,
            "code": self.code_version,
            "params": dict(self.params),
            "model": self.model_digest,
            "inputs": dict(self.inputs),
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class PartFacts:
    """What is known of a part once its bytes were read: upright width and height in pixels, and its kind."""

    width: int
    height: int
    kind: str = "still"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


@dataclass(frozen=True)
class Rule:
    """When a feature is wanted, and by which recipe.

    Attributes:
        feature: name of the feature.
        needs: features that must be `ok` or `empty` before.
        recipe: the recipe under a policy, or None when the policy does not want the feature.
        max_pixels: the largest picture that the policy wants it for, or None for any.
        stills_only: whether it is of stills alone, and neither of frames of videos nor of pages.
        of_bytes: whether it is of the file's bytes, once a file, and not of each picture in it.
        after: features that it waits for under a policy, however they end.
    """

    feature: str
    needs: tuple[str, ...]
    recipe: Callable[[SourcePolicy], Recipe | None]
    max_pixels: Callable[[SourcePolicy], int | None] = lambda _policy: None
    stills_only: bool = False
    of_bytes: bool = False
    after: Callable[[SourcePolicy], tuple[str, ...]] = lambda _policy: ()


@dataclass(frozen=True)
class Want:
    """One wanted feature; `recipe` is None when it is not wanted, and then `reason` says why."""

    feature: str
    needs: tuple[str, ...]
    recipe: Recipe | None
    reason: str | None = None
    of_bytes: bool = False
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A recorded feature, as far as the verdict needs it."""

    status: str
    code: str | None = None
    retryable: bool = False
    attempts: int = 1
    crashes: int = 0
    next_attempt_at: datetime | None = None
    limits: Mapping[str, float] | None = None


class State(StrEnum):
    """What a verdict can be."""

    DONE = "done"
    PENDING = "pending"
    WAITING = "waiting"  # a retry that is not due yet
    BLOCKED = "blocked"  # something it needs is not there; final if that is final
    NOT_WANTED = "not_wanted"


@dataclass(frozen=True)
class Verdict:
    """Where one feature of one part stands.

    Attributes:
        state: see `State`.
        outcome: the recorded status when done; `not_wanted`, or `blocked` when it can never run as things are.
        code: reason code, if any.
        final: whether nothing will happen to it by itself any more.
        due: when it can be tried again, for `WAITING`.
    """

    state: State
    outcome: str | None = None
    code: str | None = None
    final: bool = False
    due: datetime | None = None


def wanted(rules: Sequence[Rule], policy: SourcePolicy, facts: PartFacts | None) -> dict[str, Want]:
    """The wanted features of a part under a policy that already has node and request merged in.

    Args:
        rules: in dependency order.
        policy: `source policy <- workflow node <- request`.
        facts: of the part, or None while its bytes are unread; then only the policy decides.

    Returns:
        A want for every rule, by feature.
    """
    wants: dict[str, Want] = {}
    for rule in rules:
        recipe = rule.recipe(policy)
        reason = None if recipe else "not wanted by the source's policy"
        limit = rule.max_pixels(policy)
        if recipe and facts and limit is not None and facts.pixels > limit:
            recipe, reason = None, f"more than {limit} pixels"
        if recipe and facts and rule.stills_only and facts.kind != "still":
            recipe, reason = None, f"of stills alone, and this is a {facts.kind}"
        wants[rule.feature] = Want(rule.feature, rule.needs, recipe, reason, rule.of_bytes, rule.after(policy))
    return wants


def waiting_for(rules: Sequence[Rule], policy: SourcePolicy, feature: str) -> list[str]:
    """A feature and all that need it or wait for it, directly or through others.

    Args:
        rules: in dependency order.
        policy: as for `wanted`.
        feature: name of the feature.
    """
    found = [feature]
    for rule in rules:
        if rule.feature not in found and not set(found).isdisjoint((*rule.needs, *rule.after(policy))):
            found.append(rule.feature)
    return found


def verdict(record: Record | None, now: datetime, limits: Mapping[str, float]) -> Verdict:
    """Where a wanted feature stands by its record alone.

    Args:
        record: the feature recorded under the wanted recipe, or None.
        now: aware UTC.
        limits: today's limits by name; a refusal under a lower one is pending again.
    """
    if record is None:
        return Verdict(State.PENDING)
    if record.status in ("ok", "empty"):
        return Verdict(State.DONE, record.status, final=True)
    if record.status == "refused":
        raised = any(limits.get(name, 0) > value for name, value in (record.limits or {}).items())
        return Verdict(State.PENDING) if raised else Verdict(State.DONE, "refused", record.code, final=True)
    if not record.retryable or record.next_attempt_at is None:
        return Verdict(State.DONE, "failed", record.code, final=True)
    if record.next_attempt_at > now:
        return Verdict(State.WAITING, "failed", record.code, due=record.next_attempt_at)
    return Verdict(State.PENDING, code=record.code)


def judge(
    wants: Mapping[str, Want],
    records: Mapping[str, Record],
    now: datetime,
    limits: Mapping[str, float],
) -> dict[str, Verdict]:
    """Verdicts on all wanted features of one part, with what blocks what.

    Args:
        wants: by feature, in dependency order (as `wanted` returns them).
        records: the record under the wanted recipe, by feature.
        now: aware UTC.
        limits: today's limits by name.
    """
    verdicts: dict[str, Verdict] = {}
    for feature, want in wants.items():
        if want.recipe is None:
            verdicts[feature] = Verdict(State.NOT_WANTED, "not_wanted", final=True)
            continue
        own = verdict(records.get(feature), now, limits)
        if own.state is State.PENDING:
            own = _blocked_by([verdicts[need] for need in want.needs if need in verdicts]) or own
        if own.state is State.PENDING and not all(verdicts[other].final for other in want.after if other in verdicts):
            own = Verdict(State.BLOCKED)
        verdicts[feature] = own
    return verdicts


def missing(
    wants: Mapping[str, Want],
    records: Mapping[str, Record],
    now: datetime,
    limits: Mapping[str, float],
) -> list[str]:
    """The features that can be computed now, in dependency order."""
    return [name for name, found in judge(wants, records, now, limits).items() if found.state is State.PENDING]


def failure_record(code: str, previous: Record | None, now: datetime) -> Record:
    """The record of one more failed attempt, with the retry its error class allows.

    Args:
        code: a key of `errors.REASONS`.
        previous: the record of the attempt before, under the same recipe.
        now: aware UTC.
    """
    attempts = (previous.attempts if previous and previous.status == "failed" else 0) + 1
    crashes = previous.crashes if previous else 0
    due = REASONS[code].retry.next_attempt(attempts, now)
    return Record("failed", code, due is not None, attempts, crashes, due)


def _blocked_by(needs: Sequence[Verdict]) -> Verdict | None:
    unmet = [need for need in needs if not (need.state is State.DONE and need.outcome in ("ok", "empty"))]
    if not unmet:
        return None
    final = any(need.final for need in unmet)
    code = next((need.code for need in unmet if need.final), None)
    return Verdict(State.BLOCKED, "blocked" if final else None, code, final=final)
