"""What we keep of a picture's metadata: a short list of sanitised values, never the raw tags.

What belongs here: reading EXIF (and the XMP rating) of an opened picture inside the decoder's child. What does not:
sidecar files, and judging pictures: broken metadata never fails one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

_MAX_TEXT = 200
_MAX_DESCRIPTION = 2000
# Control characters, surrogates, and the marks that turn the direction of the text around them.
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_XMP_RATING = re.compile(rb'xmp:Rating(?:\s*=\s*["\']|>)\s*(-?\d)')
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"[+-]\d\d:\d\d|Z")

_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_TEXTS = {0x010F: "make", 0x0110: "model", 0x0131: "software"}
_EXIF_NUMBERS = {0x829A: "exposure", 0x829D: "f_number", 0x8827: "iso", 0x920A: "focal_length"}
_DESCRIPTION, _ORIENTATION, _RATING, _LENS = 0x010E, 0x0112, 0x4746, 0xA434
_MODIFIED, _ORIGINAL, _DIGITIZED = 0x0132, 0x9003, 0x9004
_OFFSET_MODIFIED, _OFFSET_ORIGINAL, _OFFSET_DIGITIZED = 0x9010, 0x9011, 0x9012

Value = str | int | float


@dataclass(frozen=True)
class Metadata:
    """What was found.

    Attributes:
        values: JSON-safe; which keys there may be says `ingest.decoded.Decoded.exif`.
        taken_at: ISO 8601; without an offset where the camera recorded none, as its time zone is then unknown.
        orientation: 1 to 8; 1 where none or an invalid one is recorded.
        notes: what was wrong.
    """

    values: dict[str, Value] = field(default_factory=dict)
    taken_at: str | None = None
    orientation: int = 1
    notes: tuple[str, ...] = ()


def sanitised(value: object, *, limit: int = _MAX_TEXT) -> str | None:
    """`value` as one line of harmless text of at most `limit` characters; None when nothing is left of it."""
    if isinstance(value, bytes):
        value = value.split(b"\0")[0].decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    text = _UNWANTED.sub(" ", value.split("\0")[0]).strip()
    return text[:limit] or None


def read_metadata(image: Image.Image, *, xmp: bytes = b"", stored_orientation: int | None = None) -> Metadata:
    """The metadata of the opened `image`.

    Args:
        image: its XMP removed from `info`: Pillow would take an orientation from there, which browsers ignore and which
            is often stale.
        xmp: that XMP, for the rating.
        stored_orientation: what a TIFF said before loading applied and dropped it.
    """
    notes: list[str] = []
    values: dict[str, Value] = {}
    main: Mapping[int, Any] = {}
    exif: Mapping[int, Any] = {}
    gps: Mapping[int, Any] = {}
    try:
        found = image.getexif()
        main = dict(found)
        exif, gps = dict(found.get_ifd(_EXIF_IFD)), dict(found.get_ifd(_GPS_IFD))
    except Exception:  # whatever hostile tags do to the parser, the picture is fine
        notes.append("broken EXIF ignored")
    recorded = main.get(_ORIENTATION) if stored_orientation is None else stored_orientation
    orientation = recorded if isinstance(recorded, int) and 1 <= recorded <= 8 else None
    if orientation is not None:
        values["orientation"] = orientation
    elif recorded is not None:
        notes.append("invalid orientation ignored")
    values.update(_texts(main, exif))
    values.update(_numbers(exif))
    rating = _rating(main.get(_RATING), xmp)
    if rating is not None:
        values["rating"] = rating
    values.update(_position(gps))
    raw, taken_at = _taken(main, exif, gps)
    if raw:
        values["taken_at"] = raw
    return Metadata(values, taken_at, orientation or 1, tuple(notes))


def _texts(main: Mapping[int, Any], exif: Mapping[int, Any]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for source, names in ((main, _TEXTS), (exif, {_LENS: "lens"})):
        for tag, name in names.items():
            if text := sanitised(source.get(tag)):
                values[name] = text
    if text := sanitised(main.get(_DESCRIPTION), limit=_MAX_DESCRIPTION):
        values["description"] = text
    return values


def _numbers(exif: Mapping[int, Any]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for tag, name in _EXIF_NUMBERS.items():
        if (number := _number(exif.get(tag))) is not None and number >= 0:
            values[name] = number
    return values


def _number(value: object) -> float | int | None:
    """A finite number from whatever type a tag has, or None."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**53 else None
    try:
        number = float(value)  # type: ignore[arg-type]  # Pillow's rationals are numbers without saying so
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return round(number, 7) if math.isfinite(number) else None


def _rating(tag: object, xmp: bytes) -> int | None:
    number = _number(tag)
    if number is None and (match := _XMP_RATING.search(xmp)):
        number = int(match[1])
    return int(number) if number is not None and -1 <= number <= 5 else None


def _position(gps: Mapping[int, Any]) -> dict[str, Value]:
    latitude, longitude = _degrees(gps.get(2), gps.get(1), 90), _degrees(gps.get(4), gps.get(3), 180)
    return {} if latitude is None or longitude is None else {"latitude": latitude, "longitude": longitude}


def _degrees(parts: object, reference: object, limit: int) -> float | None:
    if not isinstance(parts, tuple) or len(parts) != 3:
        return None
    numbers = [_number(part) for part in parts]
    if any(number is None or number < 0 for number in numbers):
        return None
    degrees = sum(float(number or 0) / 60**power for power, number in enumerate(numbers))
    if degrees > limit:
        return None
    return round(-degrees if sanitised(reference) in ("S", "W") else degrees, 7)


def _taken(main: Mapping[int, Any], exif: Mapping[int, Any], gps: Mapping[int, Any]) -> tuple[str | None, str | None]:
    """The recorded text of the most trustworthy date and its ISO form."""
    candidates = [
        (exif.get(_ORIGINAL), exif.get(_OFFSET_ORIGINAL)),
        (exif.get(_DIGITIZED), exif.get(_OFFSET_DIGITIZED)),
        (_gps_time(gps), "Z"),  # satellites know no time zones
        (main.get(_MODIFIED), exif.get(_OFFSET_MODIFIED)),  # last: editing programs overwrite it
    ]
    for value, offset in candidates:
        raw = sanitised(value)
        if raw and (iso := _iso(raw, sanitised(offset))):
            return raw, iso
    return next((raw for value, _ in candidates if (raw := sanitised(value))), None), None


def _gps_time(gps: Mapping[int, Any]) -> str | None:
    day, clock = sanitised(gps.get(29)), gps.get(7)
    if not day or not isinstance(clock, tuple) or len(clock) != 3:
        return None
    numbers = [_number(part) for part in clock]
    if any(number is None for number in numbers):
        return None
    return f"{day} " + ":".join(f"{int(number or 0):02d}" for number in numbers)


def _iso(raw: str, offset: str | None) -> str | None:
    match = _DATE.match(raw)
    if not match:
        return None
    zone = offset if offset and _OFFSET.fullmatch(offset) else ""
    try:
        return datetime.fromisoformat("{}-{}-{}T{}:{}:{}".format(*match.groups()) + zone).isoformat()
    except ValueError:  # "0000:00:00 00:00:00" is common
        return None
