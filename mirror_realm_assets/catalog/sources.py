"""Sources: the registry of watched folders."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import activity
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import insert, now
from mirror_realm_assets.catalog.policy import SourcePolicy, check_source_name, parse_policy
from mirror_realm_assets.errors import SetupError

_INDEX_BACKOFF_SECONDS = 10
_INDEX_BACKOFF_MAX_SECONDS = 900


@dataclass(frozen=True)
class Source:
    """A registered source; `root` is the folder's path as raw bytes."""

    id: int
    uuid: str
    name: str
    kind: str
    root: bytes
    root_display: str
    root_identity: Mapping[str, Any] | None
    policy: SourcePolicy
    state: str
    state_reason: str | None
    scan_generation: int
    scanned_at: datetime | None
    held_deletions: int
    deletions_confirmed: bool
    swept_recipes: Mapping[str, Any] | None
    project_id: int
    owner_id: int
    index_attempts: int
    index_next_at: datetime | None
    index_error: str | None
    created_at: datetime

    @property
    def active(self) -> bool:
        """Whether new work of this source is started."""
        return self.state == "active"

    def is_quiet(self, at: datetime) -> bool:
        """Whether its quiet hours are at that time, by the clock of this machine's time zone."""
        return self.policy.is_quiet(at.astimezone())


def display_path(path: bytes) -> str:
    r"""A path for people and JSON: bytes that are no UTF-8 appear as `\udcXX` escapes."""
    return path.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode("utf-8")


def add(conn: sa.Connection, name: str, root: bytes, options: Mapping[str, Any]) -> Source:
    """Register a folder under `name`.

    Raises:
        SetupError: `invalid_argument` for the name or an option, `already_exists` for a name in use.
    """
    check_source_name(name)
    policy = parse_policy(options)
    at = now(conn)
    values: dict[str, Any] = {
        "root": root,
        "root_display": display_path(root),
        "policy": policy.as_options(),
        "state": "active",
        "state_reason": None,
        "updated_at": at,
    }
    project = conn.execute(sa.select(t.projects.c.id).where(t.projects.c.name == "default")).scalar_one()
    owner = conn.execute(sa.select(t.users.c.id).where(t.users.c.name == "default")).scalar_one()
    new = insert(conn, t.sources).values(
        uuid=str(uuid.uuid4()),
        name=name,
        project_id=project,
        owner_id=owner,
        kind="folder",
        scan_generation=0,
        held_deletions=0,
        deletions_confirmed=False,
        next_seq=1,
        index_attempts=0,
        created_at=at,
        **values,
    )
    if conn.execute(new.on_conflict_do_nothing(index_elements=["name"])).rowcount != 1:
        _revive(conn, name, values)
    activity.note(conn, "source_added", name, {"folder": values["root_display"], "options": values["policy"]})
    return get(conn, name)


def _revive(conn: sa.Connection, name: str, values: dict[str, Any]) -> None:
    """Register a removed source again: its history and numbers go on."""
    c = t.sources.c
    row = conn.execute(sa.select(c.state, c.root).where(c.name == name).with_for_update()).one()
    if row.state != "removed":
        raise SetupError("already_exists", f"There is a source {name!r} already.")
    if bytes(row.root) != values["root"]:
        # Another folder: what the old one was known by says nothing about it.
        values |= {"root_identity": None, "held_deletions": 0, "deletions_confirmed": False}
    conn.execute(t.sources.update().where(c.name == name).values(**values))


def get(conn: sa.Connection, name: str) -> Source:
    """The source called `name`.

    Raises:
        SetupError: `not_found`.
    """
    row = conn.execute(sa.select(t.sources).where(t.sources.c.name == name)).mappings().first()
    if row is None or row["state"] == "removed":
        raise SetupError("not_found", f"There is no source {name!r}.")
    return _source(row)


def by_id(conn: sa.Connection, source_id: int) -> Source:
    """The source with this id, removed ones included."""
    return _source(conn.execute(sa.select(t.sources).where(t.sources.c.id == source_id)).mappings().one())


def all_sources(conn: sa.Connection) -> list[Source]:
    """All sources that are not removed, by name."""
    query = sa.select(t.sources).where(t.sources.c.state != "removed").order_by(t.sources.c.name)
    return [_source(row) for row in conn.execute(query).mappings()]


_STATES = {"active": "source_resumed", "paused": "source_paused", "removed": "source_removed"}


def set_state(conn: sa.Connection, name: str, state: str, reason: str | None = None, *, by: str | None = None) -> None:
    """Pause, resume or remove a source; files are never touched.

    Args:
        conn: a writing transaction.
        name: the source.
        state: `active`, `paused` or `removed`.
        reason: why, for people.
        by: who does it; by default the person who runs this process.

    Raises:
        SetupError: `not_found`.
    """
    get(conn, name)
    activity.note(conn, _STATES[state], name, {"reason": reason} if reason else None, by=by)
    values = {"state": state, "state_reason": reason, "updated_at": now(conn)}
    conn.execute(t.sources.update().where(t.sources.c.name == name).values(**values))


_WITH_ALL = "everything is paused"


def pause_all(conn: sa.Connection, reason: str | None = None) -> list[str]:
    """Pause every active source, so that nothing new is begun; returns their names.

    Those that are paused already keep their own reason, and stay paused when all go on.
    """
    names = [source.name for source in all_sources(conn) if source.active]
    for name in names:
        set_state(conn, name, "paused", f"{_WITH_ALL}: {reason}" if reason else _WITH_ALL)
    return names


def resume_all(conn: sa.Connection) -> list[str]:
    """Let the sources go on that `pause_all` paused; returns their names."""
    paused = [source for source in all_sources(conn) if source.state == "paused"]
    names = [source.name for source in paused if (source.state_reason or "").startswith(_WITH_ALL)]
    for name in names:
        set_state(conn, name, "active")
    return names


def set_policy(conn: sa.Connection, name: str, options: Mapping[str, Any]) -> Source:
    """Change options of a source; the next sweep compares its media with what is wanted now."""
    old = get(conn, name).policy
    policy = old.merged(options)
    before, after = (each.model_dump(mode="json", by_alias=True) for each in (old, policy))
    changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    if changed:
        activity.note(conn, "source_changed", name, {"options": changed})
    conn.execute(
        t.sources.update().where(t.sources.c.name == name).values(policy=policy.as_options(), updated_at=now(conn))
    )
    return get(conn, name)


def set_root(conn: sa.Connection, name: str, root: bytes) -> Source:
    """Another folder is this source's now; its next complete scan says what that is known by."""
    old = get(conn, name).root_display
    activity.note(conn, "source_moved", name, {"folder": [old, display_path(root)]})
    values = {
        "root": root,
        "root_display": display_path(root),
        "root_identity": None,
        "held_deletions": 0,
        "deletions_confirmed": False,
        "updated_at": now(conn),
    }
    conn.execute(t.sources.update().where(t.sources.c.name == name).values(**values))
    return get(conn, name)


def begin_scan(conn: sa.Connection, source_id: int) -> int:
    """The number of a new scan of the source."""
    conn.execute(
        t.sources.update().where(t.sources.c.id == source_id).values(scan_generation=t.sources.c.scan_generation + 1)
    )
    return int(conn.execute(sa.select(t.sources.c.scan_generation).where(t.sources.c.id == source_id)).scalar_one())


def end_scan(
    conn: sa.Connection, source_id: int, identity: Mapping[str, Any], *, held: int = 0, used_up: bool = False
) -> None:
    """A complete scan of the right root ended.

    Args:
        conn: a writing transaction.
        source_id: the source.
        identity: what the root is known by from now on.
        held: how many deletions wait for a person.
        used_up: a person's confirmation was used.
    """
    values: dict[str, Any] = {"scanned_at": now(conn), "root_identity": dict(identity), "held_deletions": held}
    if used_up:
        values["deletions_confirmed"] = False
    conn.execute(t.sources.update().where(t.sources.c.id == source_id).values(**values))


def confirm_deletions(conn: sa.Connection, name: str) -> int:
    """Let the next complete scan delete whatever is not there, however many; returns how many were held back.

    Raises:
        SetupError: `not_found`.
    """
    held = get(conn, name).held_deletions
    activity.note(conn, "deletions_confirmed", name, {"held": held})
    conn.execute(t.sources.update().where(t.sources.c.name == name).values(deletions_confirmed=True))
    return held


def set_swept(conn: sa.Connection, source_id: int, recipes: Mapping[str, Any]) -> None:
    """Remember the recipes and limits with which the source's media were compared."""
    conn.execute(t.sources.update().where(t.sources.c.id == source_id).values(swept_recipes=dict(recipes)))


def sweep_again(conn: sa.Connection) -> None:
    """Have the known media of all sources compared once more, as something that was recorded is no more."""
    conn.execute(t.sources.update().values(swept_recipes={}))


NOT_PUBLISHED = "The last index run has not published yet."
"""What stands for the error of an index run that has been asked for; it is no failure unless it stays."""


def index_failed(conn: sa.Connection, source_id: int, error: str) -> None:
    """An index run failed: the next one waits twice as long, at most 15 minutes."""
    attempts = conn.execute(sa.select(t.sources.c.index_attempts).where(t.sources.c.id == source_id)).scalar_one()
    wait = min(_INDEX_BACKOFF_SECONDS * 2**attempts, _INDEX_BACKOFF_MAX_SECONDS)
    conn.execute(
        t.sources.update()
        .where(t.sources.c.id == source_id)
        .values(index_attempts=attempts + 1, index_next_at=now(conn) + timedelta(seconds=wait), index_error=error)
    )


def set_index_error(conn: sa.Connection, source_id: int, error: str) -> None:
    """Say why the last index run failed; the back-off was set when it was asked for."""
    conn.execute(t.sources.update().where(t.sources.c.id == source_id).values(index_error=error))


def index_succeeded(conn: sa.Connection, source_id: int) -> None:
    """An index was published: the back-off ends."""
    conn.execute(
        t.sources.update()
        .where(t.sources.c.id == source_id)
        .values(index_attempts=0, index_next_at=None, index_error=None)
    )


def _source(row: sa.RowMapping) -> Source:
    names = [name for name in Source.__dataclass_fields__ if name != "policy"]
    return Source(policy=parse_policy(row["policy"]), **{name: row[name] for name in names})
