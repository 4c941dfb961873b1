"""Listings of single files: what is known about each, for `files` and `file`.

What belongs here: queries that describe files. What does not: printing, and counts (`status`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import features as feature_rows
from mirror_realm_assets.catalog import files, stacks, texts
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.features import FeatureKey
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import PartFacts, Rule, State, Verdict, Want, judge, wanted
from mirror_realm_assets.errors import REASONS

_PAGE = 500


@dataclass(frozen=True)
class FileRow:
    """One part of one media with all its places, or one unread place."""

    media: str | None
    digest: str | None
    part: int
    source: str
    paths: list[bytes]
    location_state: str
    reason: str | None
    mime: str | None
    bytes: int
    width: int | None
    height: int | None
    features: dict[str, dict[str, Any]]
    path_states: list[str] = field(default_factory=list)  # in the order of `paths`
    stack: str | None = None  # uuid of the media that stands for the stack that this one is in


def of_source(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], text: str | None = None
) -> Iterator[FileRow]:
    """Every file of a source: unread places first, then media by id.

    Args:
        conn: a connection.
        source: the source.
        rules: of all features, in dependency order.
        limits: today's limits by name.
        text: only files with all of its words, see `texts.found_by`; the words of what changed lately must be written.
    """
    pages = _Pages(source, rules, limits, text)
    while (page := pages.read(conn)) is not None:
        yield from page


def in_pages(
    catalog: Catalog, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], text: str | None = None
) -> Iterator[FileRow]:
    """As `of_source`, but no transaction is open while a row is used, however long that takes."""
    pages = _Pages(source, rules, limits, text)
    while True:
        with catalog.read() as conn:
            page = pages.read(conn)
        if page is None:
            return
        yield from page


class _Pages:
    """The files of a source, page by page; see `of_source`."""

    def __init__(self, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], text: str | None) -> None:
        self._source, self._rules, self._limits, self._text = source, rules, limits, text
        self._found: sa.Select[Any] | None = None
        self._last: int | None = None  # None until the unread places were read

    def read(self, conn: sa.Connection) -> list[FileRow] | None:
        """The next page; None when there are no more."""
        if self._last is None:
            self._last = 0
            if self._text is not None:
                self._found = texts.found_by(conn, self._text)
                if self._found is None:
                    return None
            return self._unread_rows(conn)
        known = sa.select(t.media.c.id).where(t.media.c.source_id == self._source.id, t.media.c.id > self._last)
        if self._found is not None:
            places = sa.select(t.locations.c.media_id).where(t.locations.c.id.in_(self._found))
            known = known.where(t.media.c.id.in_(places))
        ids = list(conn.execute(known.order_by(t.media.c.id).limit(_PAGE)).scalars())
        if not ids:
            return None
        self._last = ids[-1]
        return list(_media_rows(conn, self._source, self._rules, self._limits, ids))

    def _unread_rows(self, conn: sa.Connection) -> list[FileRow]:
        source, being_read = self._source, _being_read(conn, self._source.id)
        unread = _unread(source.id)
        if self._found is not None:
            unread = unread.where(t.locations.c.id.in_(self._found))
        return [
            _unread_row(row, source, self._rules, self._limits, is_running=row["id"] in being_read)
            for row in conn.execute(unread).mappings()
        ]


def of_media(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], media_ids: Sequence[int]
) -> list[FileRow]:
    """The parts of just these media of a source."""
    return list(_media_rows(conn, source, rules, limits, media_ids))


def of_unread(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], location_id: int
) -> FileRow | None:
    """One place of a source whose bytes are not read, or None when they are."""
    row = conn.execute(_unread(source.id).where(t.locations.c.id == location_id)).mappings().first()
    if row is None:
        return None
    return _unread_row(row, source, rules, limits, is_running=location_id in _being_read(conn, source.id))


def _unread(source_id: int) -> sa.Select[Any]:
    loc = t.locations
    return (
        sa.select(loc)
        .where(loc.c.source_id == source_id, sa.or_(files.unidentified(), loc.c.state == "ignored"))
        .order_by(loc.c.path)
    )


def _being_read(conn: sa.Connection, source_id: int) -> set[int]:
    """Ids of the places that a worker reads right now."""
    items = t.batch_items.c
    query = (
        sa.select(items.location_id)
        .join(t.batches, t.batches.c.id == items.batch_id)
        .where(
            t.batches.c.source_id == source_id,
            items.feature == RAW,
            items.settled_at.is_(None),
            items.state == "running",
        )
    )
    return set(conn.execute(query).scalars())


def _unread_row(
    row: sa.RowMapping, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], *, is_running: bool
) -> FileRow:
    code = row["code"]
    status = "pending"
    fits_again = code == "too_many_bytes" and row["size"] <= limits.get("max_file_bytes", 0)
    if row["state"] == "ignored":
        status = "refused"
    elif code and row["next_attempt_at"] is None and not fits_again:
        status = "refused" if REASONS[code].refusal else "failed"
    raw = {
        "status": "running" if is_running and status == "pending" else status,
        "reason": row["reason"] or (REASONS[code].remedy if code else None),
        "code": code,
        "attempts": row["attempts"],
        "output": None,
        "recipe": None,
    }
    found: dict[str, dict[str, Any]] = {RAW: raw}
    for rule in rules:
        if rule.feature != RAW:
            wants = rule.recipe(source.policy) is not None
            open_ = status == "pending"
            state = ("pending" if open_ else "blocked") if wants else "not_wanted"
            found[rule.feature] = _feature(state, None if open_ else "raw_media")
    return FileRow(
        media=None,
        digest=None,
        part=0,
        source=source.name,
        paths=[bytes(row["path"])],
        location_state=row["state"],
        reason=row["reason"] or code,
        mime=None,
        bytes=row["size"],
        width=None,
        height=None,
        features=found,
        path_states=[row["state"]],
    )


def _media_rows(
    conn: sa.Connection, source: Source, rules: Sequence[Rule], limits: Mapping[str, float], ids: Sequence[int]
) -> Iterator[FileRow]:
    places: dict[int, list[tuple[bytes, str]]] = {}
    loc = t.locations.c
    for place in conn.execute(
        sa.select(loc.media_id, loc.path, loc.state)
        .where(loc.media_id.in_(ids), ~files.unidentified())
        .order_by(loc.path)
    ):
        places.setdefault(place[0], []).append((bytes(place[1]), place[2]))
    rows = (
        conn.execute(
            sa.select(
                t.media.c.id,
                t.media.c.uuid,
                t.contents.c.digest,
                t.contents.c.mime,
                t.contents.c.size,
                t.parts.c.part,
                t.parts.c.kind,
                t.parts.c.image_digest,
                t.parts.c.width,
                t.parts.c.height,
            )
            .join(t.contents, t.contents.c.id == t.media.c.content_id)
            .outerjoin(t.parts, t.parts.c.content_id == t.contents.c.id)
            .where(t.media.c.id.in_(ids))
            .order_by(t.media.c.id, t.parts.c.part)
        )
        .mappings()
        .all()
    )
    running = _running(conn, ids)
    outputs = _outputs(conn, [d for row in rows for d in (row["digest"], row["image_digest"]) if d])
    at = now(conn)
    shown = [row for row in rows if row["id"] in places]
    in_stacks = stacks.of_media(conn, list({row["uuid"] for row in shown}))
    facts = [PartFacts(row["width"], row["height"], row["kind"]) if row["kind"] else None for row in shown]
    wanted_of = [wanted(rules, source.policy, each) for each in facts]
    keys_of = [_keys(row, wants) for row, wants in zip(shown, wanted_of, strict=True)]
    records = feature_rows.records(conn, [key for keys in keys_of for key in keys.values()])
    for row, wants, keys in zip(shown, wanted_of, keys_of, strict=True):
        verdicts = judge(wants, {f: records[k] for f, k in keys.items() if k in records}, at, limits)
        described = {
            feature: _described(
                verdict, wants[feature], keys.get(feature), outputs, is_running=(row["id"], feature) in running
            )
            for feature, verdict in verdicts.items()
        }
        states = [state for _path, state in places[row["id"]]]
        yield FileRow(
            media=row["uuid"],
            digest=row["digest"],
            part=row["part"] or 0,
            source=source.name,
            paths=[path for path, _state in places[row["id"]]],
            location_state="present" if "present" in states else states[0],
            reason=described[RAW]["reason"],
            mime=row["mime"],
            bytes=row["size"],
            width=row["width"],
            height=row["height"],
            features=described,
            path_states=states,
            stack=in_stacks[row["uuid"]].primary.media if row["uuid"] in in_stacks else None,
        )


def _keys(row: sa.RowMapping, wants: Mapping[str, Want]) -> dict[str, FeatureKey]:
    found: dict[str, FeatureKey] = {}
    for feature, want in wants.items():
        digest = row["digest"] if want.of_bytes else row["image_digest"]
        if want.recipe and digest:
            part = 0 if want.of_bytes else row["part"] or 0
            found[feature] = FeatureKey(digest, part, feature, want.recipe.digest)
    return found


def _described(
    verdict: Verdict,
    want: Want,
    key: FeatureKey | None,
    outputs: Mapping[FeatureKey, sa.RowMapping],
    *,
    is_running: bool,
) -> dict[str, Any]:
    """One feature of one part as `files --json` shows it."""
    stored = outputs.get(key) if key is not None else None
    status = verdict.outcome if verdict.final and verdict.outcome else "pending"
    found = _feature("running" if is_running and verdict.state is State.PENDING else status, want.reason)
    found["code"] = verdict.code
    found["recipe"] = key.recipe if key is not None else None
    if stored is not None:
        found["reason"] = want.reason or stored["reason"]
        found.update({name: stored[name] for name in ("code", "attempts", "output")})
    return found


def _outputs(conn: sa.Connection, digests: Sequence[str]) -> dict[FeatureKey, sa.RowMapping]:
    found: dict[FeatureKey, sa.RowMapping] = {}
    for start in range(0, len(digests), _PAGE):
        query = sa.select(t.features).where(t.features.c.image_digest.in_(digests[start : start + _PAGE]))
        for row in conn.execute(query).mappings():
            found[FeatureKey(row["image_digest"], row["part"], row["feature"], row["recipe"])] = row
    return found


def _running(conn: sa.Connection, ids: Sequence[int]) -> set[tuple[int, str]]:
    media_id = sa.func.coalesce(t.batch_items.c.media_id, t.locations.c.media_id)
    rows = conn.execute(
        sa.select(media_id, t.batch_items.c.feature)
        .select_from(t.batch_items)
        .outerjoin(t.locations, t.locations.c.id == t.batch_items.c.location_id)
        .where(t.batch_items.c.settled_at.is_(None), t.batch_items.c.state == "running", media_id.in_(ids))
    )
    return {(row[0], row[1]) for row in rows}


def _feature(status: str, reason: str | None) -> dict[str, Any]:
    return {"status": status, "reason": reason, "code": None, "attempts": 0, "output": None, "recipe": None}


def history(conn: sa.Connection, media_uuid: str | None, location_ids: Sequence[int]) -> dict[str, Any]:
    """Versions of a media, and the batches that held it or its places, with their runs and times."""
    found: dict[str, Any] = {"history": [], "batches": []}
    media_id = None
    if media_uuid is not None:
        media_id = conn.execute(sa.select(t.media.c.id).where(t.media.c.uuid == media_uuid)).scalar()
        versions = conn.execute(
            sa.select(t.contents.c.digest, t.media_versions.c.seen_from, t.media_versions.c.seen_to)
            .join(t.contents, t.contents.c.id == t.media_versions.c.content_id)
            .where(t.media_versions.c.media_id == media_id)
            .order_by(t.media_versions.c.id)
        )
        found["history"] = [{"digest": v[0], "seen_from": v[1], "seen_to": v[2]} for v in versions]
    where: list[sa.ColumnElement[bool]] = [t.batch_items.c.location_id.in_(location_ids)]
    if media_id is not None:
        where.append(t.batch_items.c.media_id == media_id)
    rows = conn.execute(
        sa.select(
            t.batches.c.id,
            t.batches.c.key,
            t.batches.c.kind,
            t.batches.c.created_at,
            t.batches.c.retired_at,
            t.batch_items.c.feature,
            t.batch_items.c.outcome,
            t.batch_items.c.code,
            t.batch_items.c.crashes,
            t.batch_items.c.settled_at,
        )
        .join(t.batches, t.batches.c.id == t.batch_items.c.batch_id)
        .where(sa.or_(*where))
        .order_by(t.batches.c.id, t.batch_items.c.id)
    ).mappings()
    by_batch: dict[int, dict[str, Any]] = {}
    for row in rows:
        batch = by_batch.setdefault(
            row["id"],
            {name: row[name] for name in ("key", "kind", "created_at", "retired_at")} | {"items": [], "runs": []},
        )
        batch["items"].append({k: row[k] for k in ("feature", "outcome", "code", "crashes", "settled_at")})
    for run in conn.execute(sa.select(t.batch_runs).where(t.batch_runs.c.batch_id.in_(by_batch))).mappings():
        by_batch[run["batch_id"]]["runs"].append({k: run[k] for k in ("run_id", "lane", "started_at")})
    found["batches"] = list(by_batch.values())
    return found


def places_of(conn: sa.Connection, source_id: int, paths: Sequence[bytes]) -> list[int]:
    """Ids of the locations at these paths of a source."""
    loc = t.locations.c
    query = sa.select(loc.id).where(loc.source_id == source_id, loc.path.in_(list(paths)))
    return list(conn.execute(query).scalars())
