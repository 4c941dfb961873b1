"""Items of a batch: where each stands, marking them running, settling them.

What belongs here: the meeting of `batch_items` with `wants`. An item is one wanted feature of one file; its state is
computed from what is recorded, and `settled_at` only remembers the result so that an idle tick costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import features as feature_rows
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch, lock_items
from mirror_realm_assets.catalog.engine import chunks, now
from mirror_realm_assets.catalog.features import FeatureKey
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import (
    PartFacts,
    Recipe,
    Record,
    Rule,
    State,
    Verdict,
    Want,
    judge,
    waiting_for,
    wanted,
)
from mirror_realm_assets.errors import REASONS

RAW = "raw_media"  # the one feature whose subject is a location while its bytes are unread


@dataclass(frozen=True)
class Subject:
    """What an item is about: a place, and a part of the content there once it is known.

    Attributes:
        location_id, root, path: the place (raw bytes), None for an item of a media without one.
        media_id, digest, mime: the content, None while it is unread.
        size, mtime_ns: of the place as the ledger last saw it, else of the content.
        part, kind, image_digest, width, height: the part, None while it is unread.
    """

    location_id: int | None
    root: bytes
    path: bytes | None
    media_id: int | None
    digest: str | None
    mime: str | None
    size: int
    part: int = 0
    mtime_ns: int = 0
    kind: str | None = None
    image_digest: str | None = None
    width: int = 0
    height: int = 0

    @property
    def pixels(self) -> int:
        """Width times height, 0 while unknown."""
        return self.width * self.height


@dataclass(frozen=True)
class Work:
    """One open item on one subject, with its verdict and the recipe that is wanted (None: not wanted)."""

    item_id: int
    n: int
    feature: str
    subject: Subject
    verdict: Verdict
    recipe: Recipe | None
    record: Record | None
    running: bool
    worker_id: str | None
    crashes: int
    deadline: datetime | None
    cancelled: bool
    of_bytes: bool = False

    @property
    def key(self) -> FeatureKey:
        """Key of the feature this work records; only for subjects that are known."""
        if self.recipe is None:
            raise ValueError(f"item {self.item_id} is not wanted")
        digest = self.subject.digest if self.of_bytes else self.subject.image_digest
        if digest is None:
            raise ValueError(f"the subject of item {self.item_id} is not known yet")
        return FeatureKey(digest, 0 if self.of_bytes else self.subject.part, self.feature, self.recipe.digest)


def open_work(
    conn: sa.Connection,
    batch: Batch,
    source: Source,
    rules: Sequence[Rule],
    limits: Mapping[str, float],
    feature: str | None = None,
    after: str | None = None,
) -> list[Work]:
    """Every open item of a batch with its verdict, in the batch's order.

    Args:
        conn: a connection.
        batch: the batch.
        source: its source.
        rules: of all features, in dependency order.
        limits: today's limits by name (`max_pixels`, `max_file_bytes`, ...).
        feature: only the items of this one.
        after: only those whose verdict can be another since this feature was worked on: its own, those of what waits
            for it, and those of files that have changed or that a person has spoken about.
    """
    at, policy = now(conn), source.policy.merged(batch.request)
    query = _open_rows(batch.id, [rule.feature for rule in rules if rule.of_bytes])
    if feature is not None:
        query = query.where(t.batch_items.c.feature == feature)
    if after is not None and batch.cancel_requested_at is None:
        features = [rule.feature for rule in rules]
        query = query.where(_is_concerned([RAW, *waiting_for(rules, policy, after)], features, at))
    rows = conn.execute(query).mappings().all()
    if not rows:
        return []
    subjects = [(_subject(row, source), row) for row in rows]
    wants_by_facts = {facts: wanted(rules, policy, facts) for facts in {_facts(subject) for subject, _row in subjects}}
    wants_of = [wants_by_facts[_facts(subject)] for subject, _row in subjects]
    keys_of = [_keys(subject, wants) for (subject, _row), wants in zip(subjects, wants_of, strict=True)]
    known = feature_rows.records(conn, {key for keys in keys_of for key in keys.values()})
    found = []
    # Most subjects stand alike: the same wants, and of each the same record, which `known` keeps alive.
    judged: dict[tuple[int, ...], Mapping[str, Verdict]] = {}
    for (subject, row), wants, keys in zip(subjects, wants_of, keys_of, strict=True):
        by_feature = {name: record for name, key in keys.items() if (record := known.get(key)) is not None}
        if subject.digest is None and RAW in wants and (place := _location_record(row, limits)) is not None:
            by_feature[RAW] = place
            verdicts: Mapping[str, Verdict] = judge(wants, by_feature, at, limits)
        else:
            alike = (id(wants), *(id(by_feature.get(name)) for name in wants))
            if alike not in judged:
                judged[alike] = judge(wants, by_feature, at, limits)
            verdicts = judged[alike]
        verdict = verdicts.get(row["feature"], Verdict(State.NOT_WANTED, "not_wanted"))
        found.append(_work(row, subject, verdict, wants.get(row["feature"]), by_feature.get(row["feature"])))
    return found


def settle(
    conn: sa.Connection,
    batch: Batch,
    source: Source,
    rules: Sequence[Rule],
    limits: Mapping[str, float],
    feature: str | None = None,
    after: str | None = None,
) -> list[Work]:
    """Settle the items that need nothing more and note when the others are due; returns what is still open.

    With `feature`, only its items, and not those that a change of their file has overtaken. `after` as in `open_work`.
    """
    one = [] if feature is None else [t.batch_items.c.feature == feature]
    lock_items(conn, t.batch_items.c.batch_id == batch.id, t.batch_items.c.settled_at.is_(None), *one)
    at = now(conn)
    still_open: list[Work] = []
    endings: dict[tuple[str, str | None], list[int]] = {}
    dues: dict[datetime | None, list[int]] = {}
    open_items = open_work(conn, batch, source, rules, limits, feature, after)
    to_be_read = {work.n for work in open_items if work.feature == RAW}
    for item_id, group in groupby(open_items, key=lambda work: work.item_id):
        works = list(group)
        ending = _ending(works, batch, at) or (_overtaken(works[0], to_be_read) if feature is None else None)
        if ending:
            endings.setdefault(ending, []).append(item_id)
            continue
        times = [work.verdict.due for work in works if work.verdict.due]
        due = min(times) if len(times) == len(works) else None
        dues.setdefault(due, []).append(item_id)
        still_open.extend(works)
    for (outcome, code), ids in endings.items():
        _settle_items(conn, ids, outcome, code, at)
    for due, ids in dues.items():
        _note_due(conn, ids, due)
    return still_open


def claim(conn: sa.Connection, works: Iterable[Work], worker_id: str, lease_seconds: float) -> None:
    """Mark items running before a decoder or model sees them."""
    items = t.batch_items
    values = {
        "state": "running",
        "worker_id": worker_id,
        "lease_until": now(conn) + timedelta(seconds=lease_seconds),
        "attempt": items.c.attempt + 1,
    }
    for ids in chunks(sorted(work.item_id for work in works)):
        where = (items.c.id.in_(ids), items.c.settled_at.is_(None))  # cancelled ones stay settled
        lock_items(conn, *where)
        conn.execute(items.update().where(*where).values(**values))


def release(conn: sa.Connection, works: Iterable[Work]) -> None:
    """Put running items back to waiting: their work was not begun, or recorded and not final."""
    for ids in chunks(sorted(work.item_id for work in works)):
        where = (t.batch_items.c.id.in_(ids), t.batch_items.c.state == "running")
        lock_items(conn, *where)
        conn.execute(t.batch_items.update().where(*where).values(state="waiting", worker_id=None, lease_until=None))


def count_crashes(conn: sa.Connection, batch_id: int, feature: str) -> list[int]:
    """Items found running by the one who holds the batch's lease: their worker died on them.

    Returns:
        Ids of the items, which now have one crash more and wait again.
    """
    items = t.batch_items
    where = (items.c.batch_id == batch_id, items.c.feature == feature, items.c.state == "running")
    ids = lock_items(conn, *where)
    conn.execute(
        items.update()
        .where(*where)
        .values(state="waiting", worker_id=None, lease_until=None, crashes=items.c.crashes + 1)
    )
    return ids


def progress(conn: sa.Connection, item_id: int, done: float) -> None:
    """How far a running item is, from 0 to 1."""
    conn.execute(t.batch_items.update().where(t.batch_items.c.id == item_id).values(progress=done))


# Whether the bytes that a place holds now are known.
_IDENTIFIED = sa.and_(
    t.locations.c.media_id.is_not(None),
    t.locations.c.identified_size == t.locations.c.size,
    t.locations.c.identified_mtime_ns == t.locations.c.mtime_ns,
)


def _is_concerned(features: Sequence[str], known: Sequence[str], at: datetime) -> sa.ColumnElement[bool]:
    c = t.batch_items.c
    return sa.or_(
        c.feature.in_(features),
        c.feature.not_in(known),  # of a stage that is no more
        sa.and_(c.location_id.is_not(None), sa.not_(sa.func.coalesce(_IDENTIFIED, sa.false()))),
        c.deadline <= at,
        c.cancel_requested_at.is_not(None),
    )


def _open_rows(batch_id: int, of_bytes: Sequence[str]) -> sa.Select[Any]:
    items, loc, med, con, par = t.batch_items, t.locations, t.media, t.contents, t.parts
    return (
        sa.select(
            items.c.id.label("item_id"),
            items.c.n,
            items.c.feature,
            items.c.part.label("wanted_part"),
            items.c.state.label("item_state"),
            items.c.worker_id,
            items.c.crashes,
            items.c.deadline,
            items.c.cancel_requested_at,
            loc.c.id.label("location_id"),
            loc.c.path,
            loc.c.size.label("location_size"),
            loc.c.mtime_ns.label("location_mtime_ns"),
            loc.c.state.label("location_state"),
            loc.c.code.label("location_code"),
            loc.c.attempts.label("location_attempts"),
            loc.c.next_attempt_at.label("location_next"),
            _IDENTIFIED.label("identified"),
            med.c.id.label("media_id"),
            con.c.digest,
            con.c.mime,
            con.c.size.label("content_size"),
            par.c.part,
            par.c.kind,
            par.c.image_digest,
            par.c.width,
            par.c.height,
        )
        .select_from(items)
        .outerjoin(loc, loc.c.id == items.c.location_id)
        .outerjoin(med, med.c.id == sa.func.coalesce(items.c.media_id, loc.c.media_id))
        .outerjoin(con, con.c.id == med.c.content_id)
        .outerjoin(
            par,
            sa.and_(
                par.c.content_id == con.c.id,
                # What is of the whole file has one row, however many parts there are.
                par.c.part
                == sa.case((items.c.feature.in_(of_bytes), 0), else_=sa.func.coalesce(items.c.part, par.c.part)),
            ),
        )
        .where(items.c.batch_id == batch_id, items.c.settled_at.is_(None))
        .order_by(items.c.n, items.c.id, par.c.part)
    )


def _subject(row: sa.RowMapping, source: Source) -> Subject:
    path = bytes(row["path"]) if row["path"] is not None else None
    if row["location_id"] is not None and not row["identified"]:
        return Subject(
            row["location_id"],
            source.root,
            path,
            None,
            None,
            None,
            row["location_size"],
            mtime_ns=row["location_mtime_ns"],
        )
    return Subject(
        location_id=row["location_id"],
        root=source.root,
        path=path,
        media_id=row["media_id"],
        digest=row["digest"],
        mime=row["mime"],
        size=row["location_size"] or row["content_size"] or 0,
        mtime_ns=row["location_mtime_ns"] or 0,
        part=row["part"] or 0,
        kind=row["kind"],
        image_digest=row["image_digest"],
        width=row["width"] or 0,
        height=row["height"] or 0,
    )


def _facts(subject: Subject) -> PartFacts | None:
    return PartFacts(subject.width, subject.height, subject.kind) if subject.kind else None


def _keys(subject: Subject, wants: Mapping[str, Want]) -> dict[str, FeatureKey]:
    """Under which each wanted feature of a subject is recorded, as far as the subject is known."""
    found = {}
    for feature, want in wants.items():
        digest = subject.digest if want.of_bytes else subject.image_digest
        if want.recipe is not None and digest is not None:
            part = 0 if want.of_bytes else subject.part
            found[feature] = FeatureKey(digest, part, feature, want.recipe.digest)
    return found


def _location_record(row: sa.RowMapping, limits: Mapping[str, float]) -> Record | None:
    """What the place itself says about `raw_media` while its bytes are unread."""
    code = row["location_code"]
    if row["location_state"] in ("missing", "deleted", "ignored"):
        return Record("failed", "file_gone")  # if it returns, it gets a batch again
    if code not in REASONS:
        return None
    if code == "too_many_bytes":
        return Record("refused", code) if row["location_size"] > limits.get("max_file_bytes", 0) else None
    if REASONS[code].refusal:
        return Record("refused", code)
    due = row["location_next"]
    return Record("failed", code, due is not None, row["location_attempts"], next_attempt_at=due)


def _work(row: sa.RowMapping, subject: Subject, verdict: Verdict, want: Want | None, record: Record | None) -> Work:
    return Work(
        item_id=row["item_id"],
        n=row["n"],
        feature=row["feature"],
        subject=subject,
        verdict=verdict,
        recipe=want.recipe if want else None,
        record=record,
        running=row["item_state"] == "running",
        worker_id=row["worker_id"],
        crashes=row["crashes"],
        deadline=row["deadline"],
        cancelled=row["cancel_requested_at"] is not None,
        of_bytes=want.of_bytes if want else False,
    )


_WORST_FIRST = ("failed", "refused", "blocked", "ok", "empty", "not_wanted")


def _ending(works: Sequence[Work], batch: Batch, at: datetime) -> tuple[str, str | None] | None:
    """Outcome and code of an item whose parts all need nothing more, else None."""
    if batch.cancel_requested_at is not None or works[0].cancelled:
        return "cancelled", "cancelled"
    if all(work.verdict.final or work.verdict.state is State.NOT_WANTED for work in works):
        outcomes = {work.verdict.outcome or "blocked": work.verdict.code for work in works}
        worst = next(outcome for outcome in _WORST_FIRST if outcome in outcomes)
        return worst, outcomes[worst]
    if works[0].deadline is not None and works[0].deadline <= at:
        return "failed", "deadline_exceeded"
    return None


def _overtaken(work: Work, to_be_read: Collection[int]) -> tuple[str, str] | None:
    """The ending of an item whose file has changed since this batch read it.

    The new bytes get a batch of their own, with every feature. That one is formed when this one is over, so it must not
    wait for them.
    """
    waits = work.subject.location_id is not None and work.subject.digest is None and work.n not in to_be_read
    return ("blocked", "changed_while_reading") if waits else None


def _settle_items(conn: sa.Connection, ids: Sequence[int], outcome: str, code: str | None, at: datetime) -> None:
    values = {
        "state": "settled",
        "outcome": outcome,
        "code": code,
        "settled_at": at,
        "not_before": None,
        "worker_id": None,
        "lease_until": None,
        "progress": None,
    }
    for chunk in chunks(sorted(ids)):
        conn.execute(t.batch_items.update().where(t.batch_items.c.id.in_(chunk)).values(**values))


def _note_due(conn: sa.Connection, ids: Sequence[int], due: datetime | None) -> None:
    items = t.batch_items
    for chunk in chunks(sorted(ids)):
        where = (items.c.id.in_(chunk), items.c.not_before.is_distinct_from(due))
        conn.execute(items.update().where(*where).values(not_before=due))
