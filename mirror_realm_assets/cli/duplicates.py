"""The command `duplicates`: the same file twice, the same picture in other bytes, and pictures that look alike.

What belongs here: from groups of contents to what is printed. What does not: finding them (`catalog.duplicates`,
`ingest.near`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, human_bytes, json_option, paths_json, safe, say, show
from mirror_realm_assets.ingest.near import DEFAULT_DISTANCE, MAX_DISTANCE

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.duplicates import Copy
    from mirror_realm_assets.catalog.engine import Catalog
    from mirror_realm_assets.catalog.sources import Source

_KINDS = {
    "exact": "the same file",
    "same_picture": "the same picture in other bytes",
    "near": "nearly the same picture",
}


@click.command()
@click.option("--source", help="In one source.")
@click.option(
    "--distance",
    default=DEFAULT_DISTANCE,
    show_default=True,
    type=click.IntRange(0, MAX_DISTANCE),
    help="Of the 64 bits that describe a picture's looks, so many may differ between near ones.",
)
@json_option
def duplicates(source: str | None, distance: int, as_json: bool) -> None:
    """Files that are there several times, and pictures that nearly look the same; nothing is deleted."""
    with opened() as (_settings, services):
        groups = _groups(services.catalog, source, distance)
    if as_json:
        emit([group.as_json() for group in groups])
    elif groups:
        show("\n".join(line for group in groups for line in group.lines()))
    counts = {kind: sum(group.kind == kind for group in groups) for kind in _KINDS}
    say(f"Groups: {', '.join(f'{count} of {_KINDS[kind]}' for kind, count in counts.items())}.")


@dataclass(frozen=True)
class _Member:
    """One media of a group, with the bits by which it differs from the best one."""

    copy: Copy
    source: Source
    distance: int

    @property
    def paths(self) -> list[bytes]:
        return [os.path.join(self.source.root, path) for path in self.copy.paths]  # noqa: PTH118 - bytes

    def as_json(self) -> dict[str, Any]:
        return {
            "media": self.copy.media,
            "digest": self.copy.digest,
            "source": self.source.name,
            **paths_json(self.paths),
            "width": self.copy.width,
            "height": self.copy.height,
            "bytes": self.copy.bytes,
            "distance": self.distance,
        }

    def lines(self) -> Iterator[str]:
        copy = self.copy
        size = f"{copy.width} x {copy.height}" if copy.width else "-"
        facts = f"{size:>13}  {human_bytes(copy.bytes):>8}  {self.distance:>2}  {self.source.name}"
        for n, path in enumerate(paths_json(self.paths)["paths"]):
            yield f"  {facts if n == 0 else ' ' * len(facts)}  {safe(path)}"


@dataclass(frozen=True)
class _Group:
    """Files that are alike, the best first."""

    kind: str
    members: Sequence[_Member]

    @property
    def distance(self) -> int:
        return max(member.distance for member in self.members)

    @property
    def spare_bytes(self) -> int:
        """What all copies but the best take."""
        sizes = [member.copy.bytes for member in self.members for _path in member.copy.paths]
        return sum(sizes) - sizes[0]

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "distance": self.distance, "members": [each.as_json() for each in self.members]}

    def lines(self) -> Iterator[str]:
        yield f"{_KINDS[self.kind]}: {human_bytes(self.spare_bytes)} besides the first"
        for member in self.members:
            yield from member.lines()


def _groups(catalog: Catalog, only: str | None, distance: int) -> list[_Group]:
    from mirror_realm_assets.catalog import duplicates as queries
    from mirror_realm_assets.catalog import sources

    with catalog.read() as conn:
        chosen = {each.id: each for each in ([sources.get(conn, only)] if only else sources.all_sources(conn))}
        ids = list(chosen)
        alike = [
            *(("exact", {content: 0}) for content in queries.same_bytes(conn, ids)),
            *(("same_picture", dict.fromkeys(contents, 0)) for contents in queries.same_picture(conn, ids)),
        ]
        hashed = list(queries.hashed(conn, ids))
    # Comparing a million hashes takes seconds, in which the catalog is not held.
    alike += (("near", contents) for contents in _near(hashed, distance))
    with catalog.read() as conn:
        wanted = sorted({content for _kind, contents in alike for content in contents})
        found = queries.copies(conn, ids, wanted)
    groups = (_Group(kind, _members(contents, found, chosen)) for kind, contents in alike)
    still_alike = [group for group in groups if _are_several(group)]
    return sorted(still_alike, key=lambda group: (list(_KINDS).index(group.kind), -group.spare_bytes))


def _near(hashed: Sequence[tuple[int, str]], distance: int) -> Iterator[dict[int, int]]:
    """Contents that are near each other, each with its distance from the best of them, which comes first."""
    from mirror_realm_assets.ingest.near import near_groups
    from mirror_realm_assets.ingest.phash import has_structure

    kept = [(content, bits) for content, text in hashed if has_structure(bits := int(text, 16))]
    for group in near_groups([bits for _content, bits in kept], distance):
        yield {kept[n][0]: apart for n, apart in zip(group.members, group.distances, strict=True)}


def _members(
    contents: Mapping[int, int], found: Mapping[int, Iterable[Copy]], chosen: Mapping[int, Source]
) -> list[_Member]:
    members = [
        _Member(copy, chosen[copy.source_id], apart)
        for content, apart in contents.items()
        for copy in found.get(content, ())
    ]
    return sorted(members, key=lambda each: (-each.copy.pixels, -each.copy.bytes, each.copy.digest, each.source.name))


def _are_several(group: _Group) -> bool:
    """Whether it is a group: a file may have gone meanwhile, and the same picture in other bytes is not a near one."""
    if group.kind == "exact":
        return sum(len(member.copy.paths) for member in group.members) > 1
    if group.kind == "same_picture":
        return len({member.copy.digest for member in group.members}) > 1
    return len({member.copy.image_digest for member in group.members}) > 1


COMMANDS = [duplicates]
