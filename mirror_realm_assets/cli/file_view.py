"""What `file` shows of one file: where it is, what it is, what became of it, and what can be done.

What belongs here: the page and its JSON. What does not: finding the file (`catalog.one_file`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror_realm_assets import address
from mirror_realm_assets.cli.output import human_bytes, human_seconds, paths_json, safe, show
from mirror_realm_assets.errors import REASONS

if TYPE_CHECKING:
    import sqlalchemy as sa

    from mirror_realm_assets.catalog.listing import FileRow
    from mirror_realm_assets.catalog.one_file import Found
    from mirror_realm_assets.catalog.sidecars import Sidecar
    from mirror_realm_assets.catalog.stacks import Stack
    from mirror_realm_assets.settings import Settings

_COLOURS = {"ok": "green", "empty": "green", "failed": "red", "refused": "yellow", "pending": "cyan", "running": "cyan"}
_DIGITS = 12  # of a digest, where its whole is not wanted
_RECIPE_DIGITS = 8
_WORK = ("crashes", "next_attempt_at", "seconds", "model_digest", "run_id", "updated_at")


def row_json(row: FileRow, root: bytes) -> dict[str, Any]:
    """A line of `files --json`."""
    return {
        "media": row.media,
        "digest": row.digest,
        "part": row.part,
        "source": row.source,
        **paths_json([os.path.join(root, path) for path in row.paths]),  # noqa: PTH118 - bytes
        "location_state": row.location_state,
        "reason": row.reason,
        "mime": row.mime,
        "bytes": row.bytes,
        "width": row.width,
        "height": row.height,
        "features": row.features,
        "stack": row.stack,
    }


@dataclass(frozen=True)
class Page:
    """One file, as JSON and for people."""

    settings: Settings
    found: Sequence[Found]
    body: dict[str, Any]
    asked: str

    def show(self) -> None:
        """Print it for people."""
        names = [Path(place["path"]).name for place in self.body["places"]]
        show(f"[bold]{safe(self.asked if self.asked in names else names[0])}[/]")
        for name, words in self._head():
            show(f"  {name:<9} {words}")
        show("")
        show(self._features())
        for line in [*self._past(), *self._advice()]:
            show(line)

    def _head(self) -> Iterator[tuple[str, str]]:
        body = self.body
        for n, place in enumerate(body["places"]):
            why = f": {safe(place['reason'])}" if place["reason"] else ""
            yield "" if n else "at", f"{safe(place['path'])}  ({safe(place['source'])}, {place['state']}{why})"
        size = f"{body['width']} x {body['height']} pixels, " if body["width"] else ""
        parts = len({each.row.part for each in self.found if each.row.media == body["media"]})
        several = f", {parts} parts" if parts > 1 else ""
        yield "is", f"{size}{human_bytes(body['bytes'])}, {safe(body['mime'] or 'type unknown')}{several}"
        yield "digest", body["digest"] or "not read yet"
        if body["image_digest"]:
            yield "picture", body["image_digest"]
        if body["taken_at"] or body["exif"]:
            yield "taken", ", ".join(_exif(body["taken_at"], body["exif"] or {}))
        if body["media"]:
            yield "media", body["media"]
        yield from self._companions()

    def _companions(self) -> Iterator[tuple[str, str]]:
        for sidecar in self.body["sidecars"]:
            words = [f"{name} {value}" for name, value in sidecar["values"].items()]
            said = (
                f"{sidecar['code']}: {sidecar['reason']}" if sidecar["code"] else ", ".join(words) or sidecar["state"]
            )
            yield "sidecar", safe(f"{Path(sidecar['paths'][0]).name}: {said}")
        for member in (self.body["stack"] or {}).get("members", ()):
            yield "stack", safe(f"{member['role'].replace('_', ' ')} {Path(member['paths'][0]).name}")

    def _features(self) -> Any:
        from rich import box
        from rich.table import Table

        # With the names of our own models it fits into 80 columns.
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for title in ("feature", "status", "tries", "took", "when", "made by"):
            table.add_column(title, no_wrap=title != "made by", overflow="fold")
        for feature, value in self.body["features"].items():
            colour = _COLOURS.get(value["status"], "none")
            took = _took(value["seconds"])
            status = f"[{colour}]{value['status']}[/]"
            when = _time(value["updated_at"]).rpartition(":")[0] or "-"
            table.add_row(feature, status, str(value["attempts"] or "-"), took, when, _by(value))
        return table

    def _past(self) -> Iterator[str]:
        for feature, value in self.body["features"].items():
            for path in value["output_paths"]:
                yield f"{feature}: {safe(path)}"
        if len(self.body["history"]) > 1:
            for version in self.body["history"]:
                until = f"until {_time(version['seen_to'])}" if version["seen_to"] else "now"
                yield f"version {version['digest'][:_DIGITS]}: from {_time(version['seen_from'])} {until}"
        for batch in self.body["batches"]:
            # Once: a file at two places stands in a batch twice.
            outcomes = dict.fromkeys(f"{item['feature']}={item['outcome'] or 'open'}" for item in batch["items"])
            retired = ", retired" if batch["retired_at"] else ""  # its partition is not in the UI any more
            facts = f"{batch['kind']}, {_time(batch['created_at'])}{retired}"
            yield f"batch {safe(batch['key'])} ({facts}): {' '.join(outcomes)}"
            for run in batch["runs"]:
                yield f"  {run['lane']} run {_time(run['started_at'])}: {run['url']}"

    def _advice(self) -> Iterator[str]:
        source = safe(self.body["source"])
        for feature, value in self.body["features"].items():
            status, code = value["status"], value["code"]
            why = f" {safe(value['reason'])}" if value["reason"] else ""
            if status == "failed":
                yield f"[red]{feature} failed: {code}.[/]{why}"
                yield f"  {safe(REASONS[code].remedy) if code in REASONS else ''}"
                yield f"  Once more: mirror-realm retry --source {source} --feature {feature}"
            elif status == "refused":
                yield f"[yellow]{feature} is refused: {code}.[/]{why}"
                yield f"  {safe(REASONS[code].remedy) if code in REASONS else ''}"
            elif status == "pending" and code:
                yield f"{feature} is tried again {_due(value['next_attempt_at'])} after {code}.{why}"
            elif status == "not_wanted":
                yield f"{feature} is not wanted:{why} (mirror-realm sources set {source} --option KEY=VALUE)"


def page(settings: Settings, conn: sa.Connection, found: Sequence[Found], asked: str) -> Page:
    """Everything known about a file.

    Args:
        settings: of this process.
        conn: a connection.
        found: the file, and after it the same bytes in other sources, and further parts.
        asked: the name by which it was asked for.
    """
    from mirror_realm_assets.catalog import listing, one_file

    first = found[0]
    facts = one_file.facts(conn, first)
    work = facts.pop("work")
    places = [_place(first, place) for place in facts.pop("places")]
    facts |= _companions(facts, first.source.root)
    seen = {first.row.media}
    for other in found[1:]:
        if other.row.media not in seen:
            seen.add(other.row.media)
            places += [_place(other, place) for place in one_file.facts(conn, other)["places"]]
    body = row_json(first.row, first.source.root) | facts | {"places": places}
    body["features"] = {
        feature: value
        | {name: work.get(feature, {}).get(name) for name in _WORK}
        | {"output_paths": _output_paths(settings, value["output"])}
        for feature, value in first.row.features.items()
    }
    body |= listing.history(conn, first.media_uuid, first.location_ids)
    ui = address.url(settings)
    for batch in body["batches"]:
        for run in batch["runs"]:
            run["url"] = f"{ui}/runs/{run['run_id']}"
    body["others"] = [row_json(other.row, other.source.root) for other in found[1:]]
    return Page(settings, found, body, asked)


def _companions(facts: dict[str, Any], root: bytes) -> dict[str, Any]:
    """Sidecars and stack as JSON knows them."""
    stack: Stack | None = facts["stack"]
    sidecars: list[Sidecar] = facts["sidecars"]
    names = ("kind", "state", "code", "reason", "values", "read_at")
    return {
        "sidecars": [{**_full(root, each.path), **{name: getattr(each, name) for name in names}} for each in sidecars],
        "stack": stack
        and {
            "primary": stack.primary.media,
            "members": [
                {"media": each.media, "digest": each.digest, "role": each.role, **_full(root, each.path)}
                for each in stack.members
            ],
        },
    }


def _full(root: bytes, path: bytes) -> dict[str, Any]:
    return paths_json([os.path.join(root, path)])  # noqa: PTH118 - bytes


def _place(found: Found, place: dict[str, Any]) -> dict[str, Any]:
    full = f"{found.source.root_display.rstrip('/')}/{place['path']}"
    return {"source": found.source.name} | place | {"path": full}


def _output_paths(settings: Settings, output: Any) -> list[str]:
    """Where what was made lies, for a store that is a folder."""
    folder = settings.store_folder
    if not output or folder is None:
        return []
    proxies = (output.get("proxies") or {}).values()
    keys = [output.get("key"), output.get("shard"), *(proxy.get("key") for proxy in proxies)]
    return [str(folder / key) for key in keys if key]


def _exif(taken_at: str | None, exif: dict[str, Any]) -> Iterator[str]:
    if taken_at:
        yield safe(taken_at)
    camera = " ".join(str(exif[name]) for name in ("make", "model") if exif.get(name))
    if camera:
        yield safe(camera)
    for name, unit in (("lens", ""), ("focal_length", " mm"), ("exposure", " s"), ("iso", " ISO")):
        if exif.get(name) is not None:
            yield safe(f"{exif[name]}{unit}")
    if exif.get("f_number") is not None:
        yield safe(f"f/{exif['f_number']}")


def _by(value: dict[str, Any]) -> str:
    output = value["output"] or {}
    model, *rest = [str(output[name]) for name in ("model", "precision", "device") if output.get(name)] or [""]
    recipe = f"recipe {value['recipe'][:_RECIPE_DIGITS]}" if value["recipe"] else ""
    return safe("\n".join(line for line in (model, ", ".join(rest), recipe) if line) or "-")


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 10 else human_seconds(seconds)


def _due(at: datetime | None) -> str:
    return f"at {_time(at)}" if at else "soon"


def _time(at: datetime | None) -> str:
    """In the time zone of whoever looks."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else "-"
