"""What a file of declared sources changes in the registry, and doing it, all or nothing.

What belongs here: the comparison and its application. What does not: reading the file (`declared`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.policy import SourcePolicy, parse_policy
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest.relocation import require_same
from mirror_realm_assets.registry.declared import Declared

_STATES = {"active": "active", "inactive": "paused"}
_NAMES = {"active": "active", "paused": "inactive"}
_REASON = "by a file"

Check = Callable[[Path, SourcePolicy], None]
"""Whether a folder can be a source with that policy; raises `SetupError`."""


@dataclass(frozen=True)
class Change:
    """A source that differs: fields (`folder`, `state`, options) with what they are and what they come to be."""

    name: str
    fields: Mapping[str, tuple[Any, Any]]


@dataclass
class Changes:
    """What is to be done.

    Attributes:
        added: new sources.
        changed: sources that differ.
        removed: sources that the file does not name, if those are to go.
        unchanged: names of those that are as declared.
        others: names of sources that the file does not name and that stay.
    """

    added: list[Declared] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def as_json(self) -> dict[str, Any]:
        """The form of `sources apply --json`."""
        return {
            "added": [one.name for one in self.added],
            "changed": [
                {"name": one.name, "fields": {k: list(v) for k, v in one.fields.items()}} for one in self.changed
            ],
            "removed": self.removed,
            "unchanged": self.unchanged,
            "others": self.others,
        }


def plan(catalog: Catalog, declared: Sequence[Declared], check: Check, *, remove: bool = False) -> Changes:
    """Compare; nothing is written.

    Args:
        catalog: the registry.
        declared: what the file wants.
        check: asked of every new or changed source.
        remove: whether sources that the file does not name are to be removed.

    Raises:
        SetupError: `folder_missing` for a new or other folder that is not there, `invalid_argument` for another folder
            that does not hold the source's files, and what `check` raises.
    """
    with catalog.read() as conn:
        return _compare(conn, declared, check, remove=remove)


def apply(catalog: Catalog, declared: Sequence[Declared], check: Check, *, remove: bool = False) -> Changes:
    """Compare and change, in one transaction; see `plan`."""
    with catalog.write() as conn:
        changes = _compare(conn, declared, check, remove=remove)
        wanted = {one.name: one for one in declared}
        for new in changes.added:
            sources.add(conn, new.name, os.fsencode(new.folder), _all_options(new))
            if new.state != "active":
                sources.set_state(conn, new.name, _STATES[new.state], _REASON)
        for change in changes.changed:
            _change(conn, change, wanted[change.name])
        for name in changes.removed:
            sources.set_state(conn, name, "removed", _REASON)
    return changes


def _compare(conn: sa.Connection, declared: Sequence[Declared], check: Check, *, remove: bool) -> Changes:
    there = {source.name: source for source in sources.all_sources(conn)}
    changes = Changes()
    for want in declared:
        have = there.get(want.name)
        fields = _differences(have, want) if have else {}
        if have is None and not want.folder.is_dir():
            raise SetupError("folder_missing", f"There is no folder {want.folder}, of source {want.name}.")
        if have is not None and "folder" in fields:
            require_same(conn, have, os.fsencode(want.folder))
        if have is None:
            changes.added.append(want)
        elif fields:
            changes.changed.append(Change(want.name, fields))
        else:
            changes.unchanged.append(want.name)
        if have is None or fields:
            check(want.folder, parse_policy(_all_options(want)))
    named = {want.name for want in declared}
    (changes.removed if remove else changes.others).extend(name for name in there if name not in named)
    return changes


def _differences(have: Source, want: Declared) -> dict[str, tuple[Any, Any]]:
    fields: dict[str, tuple[Any, Any]] = {}
    if have.root != os.fsencode(want.folder):
        fields["folder"] = (have.root_display, sources.display_path(os.fsencode(want.folder)))
    if have.state != _STATES[want.state]:
        fields["state"] = (_NAMES.get(have.state, have.state), want.state)
    before = have.policy.model_dump(mode="json", by_alias=True)
    after = parse_policy(want.options).model_dump(mode="json", by_alias=True)
    return fields | {name: (before[name], after[name]) for name in after if before[name] != after[name]}


def _change(conn: sa.Connection, change: Change, want: Declared) -> None:
    if "folder" in change.fields:
        sources.set_root(conn, want.name, os.fsencode(want.folder))
    if set(change.fields) - {"folder", "state"}:
        sources.set_policy(conn, want.name, _all_options(want))
    if "state" in change.fields:
        sources.set_state(conn, want.name, _STATES[want.state], None if want.state == "active" else _REASON)


def _all_options(want: Declared) -> dict[str, Any]:
    """Every option, so that those that the file does not name go back to their defaults."""
    return parse_policy(want.options).model_dump(mode="json", by_alias=True)
