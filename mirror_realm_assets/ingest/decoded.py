"""What a decoder's child tells us about one file, and how it crosses the border between the processes.

What belongs here: the value and the check of what comes from the child, which a hostile file may have taken over. What
does not: producing it (`ingest.decoding`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mirror_realm_assets.ingest.exif import Value, sanitised
from mirror_realm_assets.ingest.formats import FORMATS

_TEXT_KEYS = frozenset({"make", "model", "lens", "software", "description", "taken_at"})
_NUMBER_KEYS = frozenset(
    {"orientation", "iso", "exposure", "f_number", "focal_length", "rating", "latitude", "longitude"}
)
EXIF_KEYS = _TEXT_KEYS | _NUMBER_KEYS
"""The keys that `Decoded.exif` may have."""

PART_KINDS = frozenset({"still", "frame", "page"})
"""What a part may be."""

MAX_PARTS = 32
"""So many key frames of a video, or pages of a document, are kept and searched."""

_MIMES = frozenset(format_.mime for format_ in FORMATS)
_MAX_TEXT = 2000


@dataclass(frozen=True)
class DecodedPart:
    """One picture of a file: the still itself, a key frame of a video, or a page of a document.

    Attributes:
        kind: `still`, `frame` or `page`.
        width: of the upright picture at full size, in pixels; of a page, as it would be printed at 150 dpi.
        height: likewise.
        image_digest: names what the picture shows, see `ingest.image_digest`.
        proxy: JPEG, quality 95, 4:4:4, upright, sRGB, transparency on white.
        proxy_width: in pixels.
        proxy_height: in pixels.
        time_s: of a frame, seconds since the beginning.
        page: of a page, from 1.
    """

    kind: str
    width: int
    height: int
    image_digest: str
    proxy: bytes
    proxy_width: int
    proxy_height: int
    time_s: float | None = None
    page: int | None = None

    def _is_sound(self) -> bool:
        counts = (self.width, self.height, self.proxy_width, self.proxy_height)
        return (
            self.kind in PART_KINDS
            and all(type(count) is int and 0 < count < 2**31 for count in counts)
            and _is_hex(self.image_digest, 64)
            and (self.time_s is None or (type(self.time_s) in (int, float) and 0 <= self.time_s < 1e9))
            and (self.page is None or (type(self.page) is int and 0 < self.page < 2**31))
            and self.proxy.startswith(b"\xff\xd8\xff")
        )


@dataclass(frozen=True)
class Decoded:
    """One decoded file.

    Attributes:
        mime: told by content.
        parts: at least one; a still has just one.
        frames: frames or pages of the whole file, as it declares them; more than there are parts.
        phash: of the first part: 16 hexadecimal characters; None for pictures without structure.
        exif: a few sanitised values, see `EXIF_KEYS`; exposure in seconds, focal length in millimetres, position in
            degrees, `taken_at` as the camera wrote it.
        taken_at: ISO 8601, without an offset where none is recorded.
        has_alpha: whether any pixel may be transparent.
        icc: the colour profile's name, None where there is none that can be read.
        notes: what was odd but did not matter.
        duration_s: of a video, in seconds.
    """

    mime: str
    parts: tuple[DecodedPart, ...]
    frames: int
    phash: str | None = None
    exif: dict[str, Value] = field(default_factory=dict)
    taken_at: str | None = None
    has_alpha: bool = False
    icc: str | None = None
    notes: tuple[str, ...] = ()
    duration_s: float | None = None

    @property
    def first(self) -> DecodedPart:
        """Part 0: the still, the poster of a video, the first page."""
        return self.parts[0]

    def as_reply(self) -> tuple[dict[str, Any], bytes]:
        """Everything but the proxies' bytes, as JSON knows it, and the proxies, one after the other."""
        reply = asdict(self)
        for part in reply["parts"]:
            part["proxy"] = len(part["proxy"])
        return reply, b"".join(part.proxy for part in self.parts)

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any], blob: bytes) -> Decoded:
        """The value that `as_reply` wrote.

        Raises:
            ValueError: when it is no such value, whatever it is.
        """
        try:
            parts = tuple(_parts(reply["parts"], blob))
            found = cls(**{**reply, "notes": tuple(reply["notes"]), "parts": parts})
            sound = found._is_sound()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("missing or unknown fields") from error
        if not sound:
            raise ValueError("impossible values")
        return found

    def _is_sound(self) -> bool:
        return (
            self.mime in _MIMES
            and 1 <= len(self.parts) <= MAX_PARTS
            and all(part._is_sound() for part in self.parts)
            and type(self.frames) is int
            and 0 < self.frames < 2**31
            and (self.phash is None or _is_hex(self.phash, 16))
            and type(self.has_alpha) is bool
            and isinstance(self.exif, dict)
            and all(_is_sound_value(key, value) for key, value in self.exif.items())
            and all(text is None or _is_harmless(text) for text in (self.taken_at, self.icc))
            and all(_is_harmless(note) for note in self.notes)
            and (self.duration_s is None or (type(self.duration_s) in (int, float) and 0 <= self.duration_s < 1e9))
        )


def _parts(replies: Iterable[Mapping[str, Any]], blob: bytes) -> Iterator[DecodedPart]:
    """The parts, each with its proxy cut from the blob, which has to be used up by them."""
    begin = 0
    for reply in replies:
        size = reply["proxy"]
        if type(size) is not int or not 0 < size <= len(blob) - begin:
            raise ValueError("a proxy of an impossible size")
        yield DecodedPart(**{**reply, "proxy": blob[begin : begin + size]})
        begin += size
    if begin != len(blob):
        raise ValueError("bytes that belong to no proxy")


def _is_hex(text: object, length: int) -> bool:
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", text) is not None


def _is_sound_value(key: str, value: object) -> bool:
    return _is_harmless(value) if key in _TEXT_KEYS else key in _NUMBER_KEYS and type(value) in (int, float)


def _is_harmless(value: object) -> bool:
    return isinstance(value, str) and sanitised(value, limit=_MAX_TEXT) == value
