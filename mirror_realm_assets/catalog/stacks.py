"""Files that are one photograph: a Live Photo's still and film, a raw file and its JPEG, a picture and its edited copy.

What belongs here: who is in a stack with whom, from the places where media are present now. What does not: which names
belong together (`companions`). Nothing about stacks is stored, so nothing of it can be out of date.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import companions, files
from mirror_realm_assets.catalog import tables as t

_CHUNK = 400  # stays below SQLite's limit of bound variables
_RAW = frozenset({"image/x-adobe-dng", "image/x-dcraw"})
# Who stands for the stack comes first.
_ROLES = ("jpeg", "still", "raw", "edited", "live_video")


@dataclass(frozen=True)
class Member:
    """One media of a stack, at one of its places.

    Attributes:
        media: uuid.
        digest: of its bytes.
        mime: told by content.
        role: `jpeg` beside a raw file, else `still`; `raw`, `live_video`, `edited`.
        path: relative to the root, raw bytes.
    """

    media: str
    digest: str
    mime: str
    role: str
    path: bytes


@dataclass(frozen=True)
class Stack:
    """Media that are one photograph; `members` begin with the one that stands for all."""

    members: tuple[Member, ...]

    @property
    def primary(self) -> Member:
        """The member that stands for all."""
        return self.members[0]


def of_media(conn: sa.Connection, uuids: Sequence[str]) -> dict[str, Stack]:
    """The stack of each of these media that is in one; of one that lies in several folders, the first it is in."""
    keys: set[tuple[int, int]] = set()
    m, loc = t.media.c, t.locations.c
    for start in range(0, len(uuids), _CHUNK):
        query = sa.select(loc.source_id, loc.stem_key).join(t.media, m.id == loc.media_id)
        where = (m.uuid.in_(uuids[start : start + _CHUNK]), loc.state == "present", loc.stem_key.is_not(None))
        keys.update((row[0], row[1]) for row in conn.execute(query.where(*where)))
    groups: defaultdict[tuple[int, bytes, str], list[Any]] = defaultdict(list)
    for row in _places(conn, keys):
        folder, name = companions.split(bytes(row.path))
        stem = companions.stem_of(name)
        if stem is not None:
            groups[row.source_id, folder, stem.name].append(row)
    found: dict[str, Stack] = {}
    for group in sorted(groups):
        if stack := stacked((row.uuid, row.digest, row.mime, bytes(row.path)) for row in groups[group]):
            for member in stack.members:
                found.setdefault(member.media, stack)
    wanted = set(uuids)
    return {media: stack for media, stack in found.items() if media in wanted}


def _places(conn: sa.Connection, keys: Iterable[tuple[int, int]]) -> Iterator[Any]:
    """The places with these keys where a media is present that we could read."""
    loc = t.locations.c
    query = (
        sa.select(loc.source_id, loc.path, t.media.c.uuid, t.contents.c.digest, t.contents.c.mime)
        .join(t.media, t.media.c.id == loc.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .where(loc.state == "present", t.contents.c.mime.is_not(None), sa.not_(files.unidentified()))
        .order_by(loc.path)
    )
    by_source: defaultdict[int, list[int]] = defaultdict(list)
    for source_id, key in sorted(keys):
        by_source[source_id].append(key)
    for source_id, mine in by_source.items():
        for start in range(0, len(mine), _CHUNK):
            where = (loc.source_id == source_id, loc.stem_key.in_(mine[start : start + _CHUNK]))
            yield from conn.execute(query.where(*where))


def stacked(group: Iterable[tuple[str, str, str, bytes]]) -> Stack | None:
    """The stack that files of one folder and one stem are, or None.

    They are one only when there is just one of each kind: of two stills and a film nobody can say which still it is of.

    Args:
        group: uuid of the media, digest, mime and path of each.
    """
    members: dict[str, Member] = {}
    for media, digest, mime, path in group:
        stem = companions.stem_of(companions.split(path)[1])
        if kind := _kind(mime, edited=bool(stem and stem.edited)):
            members.setdefault(media, Member(media, digest, mime, kind, path))
    kinds = [member.role for member in members.values()]
    if len(kinds) < 2 or len(set(kinds)) < len(kinds):
        return None
    role = {"still": "jpeg"} if "raw" in kinds else {}
    named = [_named(member, role) for member in members.values()]
    return Stack(tuple(sorted(named, key=lambda member: _ROLES.index(member.role))))


def _kind(mime: str, *, edited: bool) -> str | None:
    if mime.startswith("video/"):
        return "live_video"
    if not mime.startswith("image/"):
        return None
    if edited:
        return "edited"
    return "raw" if mime in _RAW else "still"


def _named(member: Member, role: Mapping[str, str]) -> Member:
    return Member(member.media, member.digest, member.mime, role.get(member.role, member.role), member.path)
