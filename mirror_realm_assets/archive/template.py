"""Where a file goes in an archive: templates like `year={year}/month={month}/{filename}`.

What belongs here: the fields, and making a safe name of what they hold. What does not: writing (`places`). A name is
made of the file's own name and of numbers that we formatted; nothing else that stands in a file ever reaches it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mirror_realm_assets.errors import SetupError

FIELDS: Mapping[str, str] = {
    "filename": "the file's name; of an enhanced picture with `.enhanced` before its suffix",
    "stem": "the file's name without suffix",
    "suffix": "the suffix without its dot, in lower case",
    "year": "four digits: when it was taken, else when it was last written",
    "month": "two digits",
    "day": "two digits",
    "kind": "`originals` or `enhanced`",
    "digest": "sha256 of the original's bytes, 64 digits",
}
"""What may stand in braces, and what it means."""

PLACE_FIELDS: Mapping[str, str] = {
    "source": "name of the source",
    "folder": "the folders of the original below the source's own; a part of its own, left out where there are none",
}
"""What may stand there besides where files keep the order that they have in their source."""

_FOLDER = "folder"
_OF_FOLDERS = [("", _FOLDER)]
_NAMING = frozenset({"filename", "stem", "digest"})
_MAX_PART_BYTES = 200  # file systems take 255; a collision adds up to 17
_MAX_BYTES = 900  # S3 takes 1024, with the archive's prefix
# What Windows and network shares refuse, and what separates.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*/\\\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LITERAL = re.compile(r"[^<>:\"|?*\\\x00-\x1f\x7f]*")


@dataclass(frozen=True)
class Subject:
    """What a name is made of.

    Attributes:
        name: the file's own name, without folders; bytes that are no UTF-8 as surrogates.
        digest: sha256 of the original's bytes.
        at: when it was taken, or else last written.
        enhanced: suffix of the enhanced picture that is to be named, or None for the original.
        source: name of its source, for `PLACE_FIELDS`.
        folders: those that it lies in below the source's own, likewise.
    """

    name: str
    digest: str
    at: datetime
    enhanced: str | None = None
    source: str = ""
    folders: tuple[str, ...] = ()


class Template:
    """A checked template.

    Args:
        text: the template; folders are separated by `/`.
        fields: what may stand in it.

    Raises:
        SetupError: `invalid_argument`, naming what is wrong with it.
    """

    def __init__(self, text: str, fields: Mapping[str, str] = FIELDS) -> None:
        self.text = text
        self._parts = [_parsed(part, text, fields) for part in text.split("/")]
        named = {field for part in self._parts for _literal, field in part if field}
        if not named & _NAMING or self._parts[-1] == _OF_FOLDERS:
            raise _wrong(text, "it names no file; use {filename}, {stem} or {digest}")

    def name(self, subject: Subject) -> str:
        """The name of one file: a relative path of one or more parts, each safe on every file system."""
        values = _values(subject)
        parts: list[str] = []
        for pieces in self._parts:
            if pieces == _OF_FOLDERS:
                parts += subject.folders
            else:
                parts.append("".join(f"{literal}{values[field] if field else ''}" for literal, field in pieces))
        *folders, last = [_part(part) for part in parts]
        name = "/".join([*folders, last])
        if len(name.encode()) <= _MAX_BYTES:
            return name
        return "/".join([*folders[:1], f"{subject.digest}{suffix_of(last)}"])


def with_digest(name: str, digest: str) -> str:
    """`name` for other bytes than those that have it: with the first eight digits of the digest before its suffix."""
    folder, slash, last = name.rpartition("/")
    suffix = suffix_of(last)
    return f"{folder}{slash}{last.removesuffix(suffix)}-{digest[:8]}{suffix}"


def when(taken_at: str | None, mtime_ns: int) -> datetime:
    """When a picture was taken, as the camera's clock said; else when its file was last written, in UTC."""
    if taken_at:
        try:
            return datetime.fromisoformat(taken_at)
        except ValueError:
            pass  # a camera wrote no date
    return datetime.fromtimestamp(mtime_ns / 1e9, UTC)


def _parsed(part: str, text: str, fields: Mapping[str, str]) -> list[tuple[str, str | None]]:
    if not part or part in (".", ".."):
        raise _wrong(text, "it has an empty part, or one that leads elsewhere")
    try:
        found = list(string.Formatter().parse(part))
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    for literal, field, spec, conversion in found:
        if not _LITERAL.fullmatch(literal):
            raise _wrong(text, "it has a character that some file systems do not take")
        if field is not None and (field not in fields or spec or conversion):
            raise _wrong(text, f"{{{field}}} is no field; there are {', '.join(sorted(fields))}")
        if field == _FOLDER and part != f"{{{_FOLDER}}}":
            raise _wrong(text, f"{{{_FOLDER}}} stands for folders, and needs a part of its own")
    return [(literal, field) for literal, field, _spec, _conversion in found]


def _wrong(text: str, why: str) -> SetupError:
    return SetupError("invalid_argument", f"The template {text!r} cannot be used: {why}.")


def _values(subject: Subject) -> dict[str, str]:
    stem, dot, suffix = subject.name.rpartition(".")
    if not stem:
        stem, dot, suffix = subject.name, "", ""
    if subject.enhanced is not None:
        dot, suffix = ".", subject.enhanced
    middle = ".enhanced" if subject.enhanced is not None else ""
    return {
        "filename": f"{stem}{middle}{dot}{suffix}",
        "stem": stem,
        "suffix": suffix.lower(),
        "year": f"{subject.at.year:04d}",
        "month": f"{subject.at.month:02d}",
        "day": f"{subject.at.day:02d}",
        "kind": "originals" if subject.enhanced is None else "enhanced",
        "digest": subject.digest,
        "source": subject.source,
    }


def _part(text: str) -> str:
    """One part of a name that every file system takes, and that leads nowhere."""
    safe = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).lstrip(" ").rstrip(". ")
    if not safe or safe.startswith(".") or _RESERVED.fullmatch(safe):
        safe = f"_{safe}"  # no hidden files, no devices
    suffix = suffix_of(safe)
    room = _MAX_PART_BYTES - len(suffix.encode())
    return (safe.removesuffix(suffix).encode()[:room].decode(errors="ignore") + suffix).rstrip(". ")


def suffix_of(name: str) -> str:
    """The suffix with its dot; a long one is none."""
    stem, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix}" if stem and len(suffix.encode()) <= 16 else ""
