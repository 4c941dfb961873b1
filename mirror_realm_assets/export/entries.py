"""What a manifest says of each exported file, and what a run wants to be there.

What belongs here: these values and their JSON. What does not: files (`manifest`, `placing`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mirror_realm_assets.catalog.sources import display_path

ENHANCED, ORIGINAL, SIDECAR = "enhanced", "original", "sidecar"
KINDS = (ENHANCED, ORIGINAL, SIDECAR)
_MAX_PART_BYTES = 255


@dataclass(frozen=True)
class Entry:
    """One exported file as the manifest tells of it.

    Attributes:
        name: below the folder, parts separated by `/`.
        source: name of the source.
        path: of the original, below the source's folder, for people; bytes that are no UTF-8 as escapes.
        path_b64: the same in base64, only where it is no UTF-8.
        digest: sha256 of the original's bytes.
        kind: `enhanced`, `original`, or `sidecar`.
        of: the kind of the picture; of a sidecar that of the one it lies beside.
        model: of an enhanced picture.
        recipe: digest of an enhanced picture's recipe.
        sha256: of the exported bytes.
        bytes: of the exported file.
        mtime_ns: that it had when it was written.
        link: `copy`, `clone` or `hard`: how it got its bytes.
        edited: whether somebody else has changed the file since; then the last four are those from before.
    """

    name: str
    source: str
    path: str
    path_b64: str | None
    digest: str
    kind: str
    of: str
    model: str | None
    recipe: str | None
    sha256: str
    bytes: int
    mtime_ns: int
    link: str = "copy"
    edited: bool = False

    @property
    def identity(self) -> tuple[str, str, str]:
        """What it is, under whatever name."""
        return (self.digest, self.kind, self.of)

    def as_json(self) -> str:
        """A line of the manifest."""
        body = {key: value for key, value in asdict(self).items() if value is not None and value is not False}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Wanted:
    """A file that is to be there.

    Attributes:
        entry: what the manifest will say of it; `link` is not known yet.
        key: of the store's object, or None where the bytes come from elsewhere.
        said: what a sidecar is to say, merged.
    """

    entry: Entry
    key: str | None = None
    said: Mapping[str, Any] | None = None

    def named(self, name: str) -> Wanted:
        """The same under another name."""
        return replace(self, entry=replace(self.entry, name=name))

    def as_json(self) -> str:
        """One line, for `wanted_of`; ASCII alone."""
        return json.dumps({"entry": asdict(self.entry), "key": self.key, "said": self.said}, separators=(",", ":"))


def wanted_of(line: str) -> Wanted:
    """What `Wanted.as_json` wrote."""
    found = json.loads(line)
    return Wanted(Entry(**found["entry"]), found["key"], found["said"])


def entry_of(line: str) -> Entry:
    """An entry from a line that a person may have changed.

    Raises:
        ValueError: it is none, or its name leads elsewhere.
    """
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("no object")
    values = {field.name: found.get(field.name, field.default) for field in fields(Entry)}
    # What may be left out when it is None has no default of its own.
    for name in ("path_b64", "model", "recipe"):
        values[name] = found.get(name)
    entry = Entry(**values)
    texts = (entry.name, entry.source, entry.path, entry.digest, entry.sha256, entry.link)
    numbers = (entry.bytes, entry.mtime_ns)
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
        raise ValueError("a field is missing, or of another type")
    if entry.kind not in KINDS or entry.of not in KINDS:
        raise ValueError("an unknown kind")
    _check_name(entry.name)
    return entry


def path_fields(path: bytes) -> tuple[str, str | None]:
    """`path` and `path_b64` of an entry."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return display_path(path), base64.b64encode(path).decode()
    return display_path(path), None


def _check_name(name: str) -> None:
    """Files are removed by these names."""
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part or "\n" in part or "\t" in part:
            raise ValueError("a name that leads elsewhere")
        if len(part.encode()) > _MAX_PART_BYTES:
            raise ValueError("a name that is too long")
