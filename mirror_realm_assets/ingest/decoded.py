"""What a decoder's child tells us about one picture, and how it crosses the border between the processes.

What belongs here: the value and the check of what comes from the child, which a hostile file may have taken over. What
does not: producing it (`ingest.decoding`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mirror_realm_assets.ingest.exif import Value, sanitised
from mirror_realm_assets.ingest.formats import FORMATS

_TEXT_KEYS = frozenset({"make", "model", "lens", "software", "description", "taken_at"})
_NUMBER_KEYS = frozenset(
    {"orientation", "iso", "exposure", "f_number", "focal_length", "rating", "latitude", "longitude"}
)
EXIF_KEYS = _TEXT_KEYS | _NUMBER_KEYS
"""The keys that `Decoded.exif` may have."""

_MIMES = frozenset(format_.mime for format_ in FORMATS)
_MAX_TEXT = 2000


@dataclass(frozen=True)
class Decoded:
    """One decoded picture.

    Attributes:
        mime: told by content.
        width: of the upright picture at full size, in pixels.
        height: likewise.
        frames: frames or pages; only the first is decoded.
        image_digest: names what the picture shows, see `ingest.image_digest`.
        phash: 16 hexadecimal characters; None for pictures without structure.
        exif: a few sanitised values, see `EXIF_KEYS`; exposure in seconds, focal length in millimetres, position in
            degrees, `taken_at` as the camera wrote it.
        taken_at: ISO 8601, without an offset where none is recorded.
        has_alpha: whether any pixel may be transparent.
        icc: the colour profile's name, None where there is none that can be read.
        notes: what was odd but did not matter.
        proxy: JPEG, quality 95, 4:4:4, upright, sRGB, transparency on white.
        proxy_width: in pixels.
        proxy_height: in pixels.
    """

    mime: str
    width: int
    height: int
    frames: int
    image_digest: str
    phash: str | None
    exif: dict[str, Value]
    taken_at: str | None
    has_alpha: bool
    icc: str | None
    notes: tuple[str, ...]
    proxy: bytes
    proxy_width: int
    proxy_height: int

    def as_reply(self) -> dict[str, Any]:
        """Everything but the proxy's bytes, as JSON knows it."""
        reply = asdict(self)
        del reply["proxy"]
        return reply

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any], proxy: bytes) -> Decoded:
        """The value that `as_reply` wrote.

        Raises:
            ValueError: when it is no such value, whatever it is.
        """
        try:
            found = cls(**{**reply, "notes": tuple(reply["notes"]), "proxy": proxy})
            sound = found._is_sound()
        except (KeyError, TypeError) as error:
            raise ValueError("missing or unknown fields") from error
        if not sound:
            raise ValueError("impossible values")
        return found

    def _is_sound(self) -> bool:
        counts = (self.width, self.height, self.frames, self.proxy_width, self.proxy_height)
        return (
            self.mime in _MIMES
            and all(type(count) is int and 0 < count < 2**31 for count in counts)
            and _is_hex(self.image_digest, 64)
            and (self.phash is None or _is_hex(self.phash, 16))
            and type(self.has_alpha) is bool
            and isinstance(self.exif, dict)
            and all(_is_sound_value(key, value) for key, value in self.exif.items())
            and all(text is None or _is_harmless(text) for text in (self.taken_at, self.icc))
            and all(_is_harmless(note) for note in self.notes)
            and self.proxy.startswith(b"\xff\xd8\xff")
        )


def _is_hex(text: object, length: int) -> bool:
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", text) is not None


def _is_sound_value(key: str, value: object) -> bool:
    return _is_harmless(value) if key in _TEXT_KEYS else key in _NUMBER_KEYS and type(value) in (int, float)


def _is_harmless(value: object) -> bool:
    return isinstance(value, str) and sanitised(value, limit=_MAX_TEXT) == value
