"""Recorded features: one row for what one recipe made of one part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from mirror_realm_assets.catalog import driver, inbox
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import insert, now
from mirror_realm_assets.catalog.wants import Recipe, Record, failure_record

_CHUNK = 400


class FeatureKey(NamedTuple):
    """What a feature is of: the digest of its subject (see `tables.features`), part, feature, digest of the recipe."""

    # A tuple, because a batch compares tens of thousands of them.

    image_digest: str
    part: int
    feature: str
    recipe: str


@dataclass(frozen=True)
class Finding:
    """What a stage found for one subject.

    Attributes:
        status: `ok`, `empty`, `failed` or `refused`.
        output: facts and stored objects of an `ok` or `empty` one, small and JSON-safe.
        code: reason code of a `failed` or `refused` one.
        reason: one sentence for people, without paths.
        limits: limits a refusal was made under.
        seconds: wall time it took.
    """

    status: str
    output: Mapping[str, Any] | None = None
    code: str | None = None
    reason: str | None = None
    limits: Mapping[str, float] | None = None
    seconds: float | None = None


def records(conn: sa.Connection, keys: Iterable[FeatureKey]) -> dict[FeatureKey, Record]:
    """The recorded features among `keys`."""
    wanted = set(keys)
    digests = sorted({key.image_digest for key in wanted})
    found: dict[FeatureKey, Record] = {}
    c = t.features.c
    columns = [c.image_digest, c.part, c.feature, c.recipe, *(c[name] for name in Record.__dataclass_fields__)]
    for start in range(0, len(digests), _CHUNK):
        query = sa.select(*columns).where(c.image_digest.in_(digests[start : start + _CHUNK]))
        for digest, part, feature, recipe, *facts in conn.execute(query):
            key = FeatureKey(digest, part, feature, recipe)
            if key in wanted:
                found[key] = _DONE if facts == _DONE_FACTS else Record(*facts)
    return found


# What most records say; as one object it is compared and judged once.
_DONE = Record("ok")
_DONE_FACTS = [getattr(_DONE, name) for name in Record.__dataclass_fields__]


def is_ok(conn: sa.Connection, key: FeatureKey) -> bool:
    """Whether an `ok` feature is recorded; asked once for every file that is read."""
    found = driver.fetch(conn, _IS_OK, (key.image_digest, key.part, key.feature, key.recipe))
    return bool(found)


_IS_OK = (
    "SELECT 1 FROM features "
    "WHERE image_digest = {0} AND part = {0} AND feature = {0} AND recipe = {0} AND status = 'ok'"
)


def outputs(conn: sa.Connection, feature: str, recipe: str, subjects: Sequence[tuple[str, int]]) -> dict[Any, Any]:
    """Outputs of the `ok` features of `(image digest, part)` subjects under one recipe."""
    c = t.features.c
    digests = sorted({digest for digest, _part in subjects})
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for start in range(0, len(digests), _CHUNK):
        rows = conn.execute(
            sa.select(c.image_digest, c.part, c.output).where(
                c.image_digest.in_(digests[start : start + _CHUNK]),
                c.feature == feature,
                c.recipe == recipe,
                c.status == "ok",
            )
        )
        found.update({(row[0], row[1]): row[2] for row in rows})
    return found


@dataclass(frozen=True)
class Made:
    """A finding that is to be recorded; see `write`."""

    key: FeatureKey
    recipe: Recipe
    finding: Finding
    crashes: int = 0
    final: bool = False


def write_all(conn: sa.Connection, found: Sequence[Made], *, run_id: str | None = None) -> None:
    """Record findings of different subjects as `write` does each, and those of new ones in one statement.

    Args:
        conn: a connection of `Catalog.write`.
        found: at most one of each key, in the order of their keys.
        run_id: the Dagster run.
    """
    if not found:
        return
    at = now(conn)
    rows = [
        _subject(made.key) | {"created_at": at} | _values(made, _result(made, None, at), None, run_id, at)
        for made in found
    ]
    columns = [t.features.c[name] for name in _subject(found[0].key)]
    new = insert(conn, t.features).on_conflict_do_nothing().returning(*columns)
    written = {tuple(row) for row in conn.execute(new, rows)}
    _note(conn, [made for made in found if tuple(_subject(made.key).values()) in written])
    for made in found:
        if tuple(_subject(made.key).values()) not in written:
            write(conn, made.key, made.recipe, made.finding, run_id=run_id, crashes=made.crashes, final=made.final)


def write(
    conn: sa.Connection,
    key: FeatureKey,
    recipe: Recipe,
    finding: Finding,
    *,
    run_id: str | None = None,
    crashes: int = 0,
    final: bool = False,
) -> Record:
    """Record a finding, counting attempts; an `ok` or `empty` one is recorded only after its output was verified.

    Args:
        conn: a connection of `Catalog.write`.
        key: what the finding is of.
        recipe: how it was made.
        finding: what was found.
        run_id: the Dagster run.
        crashes: how many workers died on it.
        final: a failure that is not tried again by itself, whatever its class says.
    """
    made = Made(key, recipe, finding, crashes, final)
    while True:
        written = _write(conn, made, run_id)
        if written is not None:
            return written


def _write(conn: sa.Connection, made: Made, run_id: str | None) -> Record | None:
    """Try to write; None when another writer of the same new key was first, so that its row counts as ours before."""
    subject = _subject(made.key)
    where = [t.features.c[name] == value for name, value in subject.items()]
    row = conn.execute(sa.select(t.features).where(*where).with_for_update()).mappings().first()
    at = now(conn)  # after waiting for the row
    previous = _record(row) if row else None
    result = _result(made, previous, at)
    values = _values(made, result, previous, run_id, at)
    if row:
        conn.execute(t.features.update().where(*where).values(**values))
    else:
        new = insert(conn, t.features).values(**subject, created_at=at, **values).on_conflict_do_nothing()
        if conn.execute(new).rowcount != 1:
            return None
    _note(conn, [made])
    return result


def _note(conn: sa.Connection, made: Sequence[Made]) -> None:
    """What is a vector has to come into an index."""
    by_recipe: dict[str, list[tuple[str, int]]] = {}
    for one in made:
        if one.key.feature == inbox.FEATURE and one.finding.status == "ok":
            by_recipe.setdefault(one.key.recipe, []).append((one.key.image_digest, one.key.part))
    for recipe, subjects in by_recipe.items():
        inbox.embedded(conn, recipe, subjects)


def _subject(key: FeatureKey) -> dict[str, Any]:
    return {"image_digest": key.image_digest, "part": key.part, "feature": key.feature, "recipe": key.recipe}


def _result(made: Made, previous: Record | None, at: datetime) -> Record:
    finding = made.finding
    if finding.status == "failed":
        result = failure_record(finding.code or "internal", previous, at)
        return replace(result, retryable=False, next_attempt_at=None) if made.final else result
    attempts = (previous.attempts if previous else 0) + 1
    return Record(finding.status, finding.code, attempts=attempts, limits=finding.limits)


def _values(made: Made, result: Record, previous: Record | None, run_id: str | None, at: datetime) -> dict[str, Any]:
    finding, recipe = made.finding, made.recipe
    return {
        "status": finding.status,
        "code": finding.code,
        "reason": finding.reason,
        "limits": dict(finding.limits) if finding.limits else None,
        "retryable": result.retryable,
        "attempts": result.attempts,
        "crashes": max(made.crashes, previous.crashes if previous else 0),
        "next_attempt_at": result.next_attempt_at,
        "output": dict(finding.output) if finding.output is not None else None,
        "code_version": recipe.code_version,
        "model_digest": recipe.model_digest,
        "seconds": finding.seconds,
        "verified": finding.status in ("ok", "empty"),
        "run_id": run_id,
        "updated_at": at,
    }


def forget(conn: sa.Connection, key: FeatureKey) -> None:
    """Delete one feature, so that it is pending again."""
    c = t.features.c
    conn.execute(
        t.features.delete().where(
            c.image_digest == key.image_digest,
            c.part == key.part,
            c.feature == key.feature,
            c.recipe == key.recipe,
        )
    )


def forget_failures(conn: sa.Connection, feature: str | None, subjects: sa.Subquery | None) -> int:
    """Delete `failed` rows, so that they are pending again; with `subjects`, only those image digests."""
    c = t.features.c
    where: list[sa.ColumnElement[bool]] = [c.status == "failed"]
    if feature:
        where.append(c.feature == feature)
    if subjects is not None:
        where.append(c.image_digest.in_(sa.select(subjects)))
    return conn.execute(t.features.delete().where(*where)).rowcount


def mean_seconds(conn: sa.Connection, feature: str) -> float | None:
    """Mean wall time of the feature's `ok` results here, or None before the first."""
    c = t.features.c
    found = conn.execute(
        sa.select(sa.func.avg(c.seconds)).where(c.feature == feature, c.status == "ok", c.seconds.is_not(None))
    ).scalar()
    return float(found) if found is not None else None


def _record(row: sa.RowMapping) -> Record:
    return Record(
        status=row["status"],
        code=row["code"],
        retryable=row["retryable"],
        attempts=row["attempts"],
        crashes=row["crashes"],
        next_attempt_at=row["next_attempt_at"],
        limits=row["limits"],
    )
