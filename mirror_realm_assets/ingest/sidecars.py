"""What a sidecar says about its picture: a short list of sanitised values.

What belongs here: reading one sidecar, within bounds, and judging what is in it. What does not: whose it is
(`catalog.companions`), and noticing that it came (`sidecar_watch`). Names of people are never taken: whom a picture
shows is decided by people in this library. Nothing here writes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.parsers import expat

from mirror_realm_assets.catalog.companions import AAE, TAKEOUT, XMP
from mirror_realm_assets.errors import MirrorRealmError, Refused, as_error
from mirror_realm_assets.ingest.beneath import open_beneath, reason_of
from mirror_realm_assets.ingest.exif import sanitised

MAX_BYTES = 1_000_000
_MAX_DESCRIPTION = 2000
_MAX_KEYWORDS = 100
_MAX_DEPTH, _MAX_ELEMENTS = 64, 20_000

Value = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Sidecar:
    """What one reading of a sidecar gave.

    Attributes:
        size: of the file as it was read, in bytes.
        mtime_ns: likewise.
        values: `rating`, `title`, `description`, `keywords`, `taken_at`, `latitude`, `longitude`, `favorited`,
            `edited`, as far as it has them.
        refused: why it says nothing, when it is at fault.
    """

    size: int
    mtime_ns: int
    values: dict[str, Value] = field(default_factory=dict)
    refused: MirrorRealmError | None = None


def read(root: bytes, path: bytes, kind: str) -> Sidecar:
    """Read the sidecar at `path` beneath `root`.

    It need not rest: half of one is no valid one, and the whole one has another size or time, so that it is read again.

    Args:
        root: the source's folder.
        path: relative to it.
        kind: `xmp`, `takeout` or `aae`.

    Raises:
        Failed: it cannot be read now.
    """
    fd = open_beneath(root, path)
    try:
        seen = os.fstat(fd)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1) if seen.st_size <= MAX_BYTES else None
    except OSError as error:
        raise reason_of(error) from error
    finally:
        os.close(fd)
    try:
        return Sidecar(seen.st_size, seen.st_mtime_ns, parse(kind, data))
    except MirrorRealmError as error:
        return Sidecar(seen.st_size, seen.st_mtime_ns, refused=error)


def parse(kind: str, data: bytes | None) -> dict[str, Value]:
    """The values in a sidecar's bytes.

    Args:
        kind: `xmp`, `takeout` or `aae`.
        data: None when they are too many.

    Raises:
        Refused: `too_many_bytes`, `empty_file`, `corrupt`, or `unsupported` for what is no sidecar of this kind.
    """
    if data is None or len(data) > MAX_BYTES:
        raise Refused("too_many_bytes", "Sidecars of more than 1 MB are not read.")
    if not data.strip(b"\0 \t\r\n"):
        raise Refused("empty_file", "The sidecar is empty.")
    try:
        return {XMP: _xmp, TAKEOUT: _takeout, AAE: _aae}[kind](data)
    except (MirrorRealmError, MemoryError):
        raise
    except Exception as error:  # whatever hostile bytes do to a parser, the picture is fine
        why = as_error(error).message
        raise Refused("corrupt", f"The sidecar cannot be understood: {why}") from error


# --- XMP ---

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_XML_LANG = "http://www.w3.org/XML/1998/namespace lang"
_DC, _BASIC, _EXIF = (
    "http://purl.org/dc/elements/1.1/ ",
    "http://ns.adobe.com/xap/1.0/ ",
    "http://ns.adobe.com/exif/1.0/ ",
)
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/ "
_TITLE, _DESCRIPTION, _KEYWORDS, _RATING = _DC + "title", _DC + "description", _DC + "subject", _BASIC + "Rating"
_LATITUDE, _LONGITUDE = _EXIF + "GPSLatitude", _EXIF + "GPSLongitude"
_TIMES = (_EXIF + "DateTimeOriginal", _PHOTOSHOP + "DateCreated", _BASIC + "CreateDate")
_WANTED = frozenset({_TITLE, _DESCRIPTION, _KEYWORDS, _RATING, _LATITUDE, _LONGITUDE, *_TIMES})
# Where programs write whom a picture shows; most repeat it among the keywords.
_PEOPLE = frozenset(
    {
        "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ PersonInImage",
        "http://www.metadataworkinggroup.com/schemas/regions/ Name",
        "http://ns.microsoft.com/photo/1.2/t/Region# PersonDisplayName",
    }
)
_HIERARCHIES = frozenset(
    {"http://ns.adobe.com/lightroom/1.0/ hierarchicalSubject", "http://www.digikam.org/ns/1.0/ TagsList"}
)
_PEOPLE_ABOVE = frozenset({"people", "personen", "personnes", "personas", "persone"})
_PACKETS = frozenset({"adobe:ns:meta/ xmpmeta", "adobe:ns:meta/ xapmeta"})
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(?:\.\d+)?(Z|[+-]\d\d:\d\d)?")
_POSITION = re.compile(r"(\d{1,3}(?:\.\d{1,12})?)(?:,(\d{1,2}(?:\.\d{1,12})?))?(?:,(\d{1,2}(?:\.\d{1,12})?))?([NSEW])")


class _Xmp:
    """Collects the wanted properties of one XMP packet, whether they stand as attributes or as elements."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}
        self.people: set[str] = set()
        self._path: list[str] = []
        self._elements = 0
        self._text: list[str] = []
        self._default = False

    def parse(self, data: bytes) -> None:
        """Read a packet; raises what expat raises, and `Refused` for what is never read."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        # The parser itself says so, whatever the encoding. Without a document type there are no entities.
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = self._refuse
        # Some programs fill up with zeros; in UTF-16 every second byte is one.
        parser.Parse(data if b"\0" in data[:4] else data.rstrip(b"\0"), True)

    @staticmethod
    def _refuse(*_declared: object) -> None:
        raise Refused("unsupported", "It declares a document type or entities, which are never read.")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        if len(self._path) >= _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise Refused("unsupported", "It is nested too deep, or has too many elements.")
        self._path.append(name)
        for attribute, value in attributes.items():
            self._value(attribute, value, depth=len(self._path), default=False)
        self._text.clear()
        self._default = attributes.get(_XML_LANG) == "x-default"

    def _end(self, _name: str) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text.strip():
            owner = next((name for name in reversed(self._path) if not name.startswith(_RDF)), "")
            depth = self._path.index(owner) if owner else 0
            self._value(owner, text, depth=depth, default=self._default)
        self._path.pop()

    def _value(self, name: str, text: str, *, depth: int, default: bool) -> None:
        if name in _PEOPLE or name in _HIERARCHIES:
            self._person(name, text)
        # Only those of the picture itself: parts of it and its history have titles and dates as well.
        elif name in _WANTED and all(above.startswith(_RDF) or above in _PACKETS for above in self._path[:depth]):
            values = self.found.setdefault(name, [])
            values.insert(0 if default else len(values), text)

    def _person(self, name: str, text: str) -> None:
        first, *below = text.strip().replace("|", "/").split("/")
        if name in _PEOPLE:
            self.people.add(_folded(text))
        elif below and first.casefold() in _PEOPLE_ABOVE:
            self.people.add(_folded(below[-1]))


def _folded(text: str) -> str:
    return (sanitised(text) or "").casefold()


def _xmp(data: bytes) -> dict[str, Value]:
    packet = _Xmp()
    packet.parse(data)
    found = {name: values[0] for name, values in packet.found.items()}
    keywords = dict.fromkeys(word for text in packet.found.get(_KEYWORDS, ()) if (word := sanitised(text)))
    kept = [word for word in keywords if word.casefold() not in packet.people][:_MAX_KEYWORDS]
    values: dict[str, Value | None] = {
        "rating": _rating(found.get(_RATING)),
        "title": sanitised(found.get(_TITLE)),
        "description": sanitised(found.get(_DESCRIPTION), limit=_MAX_DESCRIPTION),
        "keywords": kept or None,
        "taken_at": next((iso for name in _TIMES if (iso := _iso(found.get(name)))), None),
    }
    latitude = _degrees(found.get(_LATITUDE), "NS", 90)
    longitude = _degrees(found.get(_LONGITUDE), "EW", 180)
    return _present(values) | _position(latitude, longitude)


def _rating(text: str | None) -> int | None:
    """-1 is "rejected", 0 is "not rated"."""
    match = re.fullmatch(r"(-?\d)(?:\.0*)?", text.strip()) if text else None
    return int(match[1]) if match and -1 <= int(match[1]) <= 5 else None


def _iso(text: str | None) -> str | None:
    match = _DATE.fullmatch(text.strip()) if text else None
    if not match:
        return None
    day, minute, second, zone = match.groups()
    try:
        return datetime.fromisoformat(f"{day}T{minute}{second or ':00'}{zone or ''}").isoformat()
    except ValueError:
        return None


def _degrees(text: str | None, signs: str, limit: int) -> float | None:
    match = _POSITION.fullmatch(text.strip()) if text else None
    if not match or match[4] not in signs:
        return None
    degrees = sum(float(part or 0) / 60**power for power, part in enumerate(match.groups()[:3]))
    return (-degrees if match[4] in "SW" else degrees) if degrees <= limit else None


def _position(latitude: float | None, longitude: float | None) -> dict[str, Value]:
    if latitude is None or longitude is None:
        return {}
    return {"latitude": round(latitude, 7), "longitude": round(longitude, 7)}


def _present(values: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value is not None}


# --- Google Takeout ---


def _takeout(data: bytes) -> dict[str, Value]:
    found = json.loads(data.decode("utf-8-sig"))
    if not isinstance(found, dict) or not isinstance(found.get("photoTakenTime"), dict):
        raise Refused("unsupported", "It is not what Google Takeout writes about a picture.")
    values: dict[str, Value | None] = {
        "title": sanitised(found.get("title")),
        "description": sanitised(found.get("description"), limit=_MAX_DESCRIPTION),
        "taken_at": _moment(found["photoTakenTime"].get("timestamp")),
        "favorited": True if found.get("favorited") is True else None,
    }
    position = _place(found.get("geoData")) or _place(found.get("geoDataExif"))
    return _present(values) | position


def _moment(seconds: object) -> str | None:
    if not re.fullmatch(r"-?\d{1,12}", str(seconds)):
        return None
    try:
        return datetime.fromtimestamp(int(str(seconds)), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _place(geo: Any) -> dict[str, Value]:
    """Google writes 0, 0 for "unknown"."""
    if not isinstance(geo, dict):
        return {}
    latitude, longitude = _coordinate(geo.get("latitude"), 90), _coordinate(geo.get("longitude"), 180)
    return {} if not latitude and not longitude else _position(latitude, longitude)


def _coordinate(number: object, limit: int) -> float | None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return float(number) if abs(number) <= limit and math.isfinite(number) else None


# --- Apple ---


def _aae(data: bytes) -> dict[str, Value]:
    """An edit exists; what it does only Apple's programs know."""
    if b"plist" not in data[:512]:
        raise Refused("corrupt", "It is no property list.")
    return {"edited": True}
