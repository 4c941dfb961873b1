"""EXIF in a TIFF that we wrote: its directory, made again behind the pixels with what EXIF adds.

What belongs here: the structure of TIFF directories, as far as that takes. What does not: other formats (`metadata`).

An EXIF block is a TIFF itself, with offsets that count from its own beginning: it is taken apart into values and put
together at the new place. What lies in the file stays where it is, so the old directory's entries hold. Its room is
lost, some 200 bytes.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_POINTERS = (0x8769, 0x8825)  # in the main directory: to that of EXIF and that of GPS
_MOST_ENTRIES = 1000


@dataclass(frozen=True)
class _Form:
    """How numbers are laid out: in a TIFF, or in a BigTIFF."""

    count: str
    entry: str
    offset: str
    header: str
    offset_type: int

    @property
    def room(self) -> int:
        """Bytes of a value that fit into its entry."""
        return struct.calcsize(self.offset)


_PLAIN = _Form("<H", "<HHI", "<I", "<2sHI", 4)
_BIG = _Form("<Q", "<HHQ", "<Q", "<2sHHHQ", 16)
_FORMS = {b"II*\x00": _PLAIN, b"II+\x00": _BIG}
_Value = tuple[int, int, bytes]  # type, count, and its bytes


def header_and_addition(source: BinaryIO, exif: bytes) -> tuple[bytes, bytes] | None:
    """What a TIFF begins with, and what follows its present end, once it has EXIF.

    Args:
        source: a little-endian TIFF or BigTIFF of ours.
        exif: a TIFF structure as EXIF defines it, little-endian too.

    Returns:
        The header, as long as it was, and the addition; None where the two do not fit together.

    Raises:
        struct.error: the block, or the file, ends too early.
        KeyError: the block has a value of a type that EXIF does not know.
    """
    source.seek(0)
    form = _FORMS.get(source.read(4))
    if form is None or exif[:4] != b"II*\x00":
        return None
    source.seek(0)
    *begin, old = struct.unpack(form.header, source.read(struct.calcsize(form.header)))
    size = source.seek(0, io.SEEK_END)
    place = size + size % 2  # directories begin at even offsets
    main = _directory(exif, struct.unpack_from("<I", exif, 4)[0])
    addition = bytearray(place - size)
    pointers = {}
    for tag in _POINTERS:
        pointer = main.pop(tag, None)
        if pointer is not None:
            inner = _directory(exif, struct.unpack("<I", pointer[2])[0])
            at = size + len(addition)
            addition += _written({}, inner, at, form, bytes(form.room))
            pointers[tag] = (form.offset_type, 1, struct.pack(form.offset, at))
    entries, following = _entries(source, old, form)
    at = size + len(addition)
    addition += _written(entries, main | pointers, at, form, following)
    if form is _PLAIN and size + len(addition) > 0xFFFFFFFF:
        return None
    return struct.pack(form.header, *begin, at), bytes(addition)


def _directory(block: bytes, at: int) -> dict[int, _Value]:
    """The values of one directory of an EXIF block, by tag."""
    (count,) = struct.unpack_from("<H", block, at)
    values: dict[int, _Value] = {}
    for number in range(min(count, _MOST_ENTRIES)):
        begin = at + 2 + 12 * number
        tag, kind, many = struct.unpack_from("<HHI", block, begin)
        length = _SIZES[kind] * many
        place = begin + 8 if length <= 4 else struct.unpack_from("<I", block, begin + 8)[0]
        values[tag] = (kind, many, struct.unpack_from(f"{length}s", block, place)[0])
    return values


def _entries(source: BinaryIO, at: int, form: _Form) -> tuple[dict[int, bytes], bytes]:
    """The entries of the file's directory as they are, by tag, and where its next one is."""
    source.seek(at)
    (count,) = struct.unpack(form.count, source.read(struct.calcsize(form.count)))
    width = struct.calcsize(form.entry) + form.room
    raw = [source.read(width) for _ in range(count)]
    return {struct.unpack_from("<H", entry)[0]: entry for entry in raw}, source.read(form.room)


def _written(old: dict[int, bytes], new: dict[int, _Value], at: int, form: _Form, following: bytes) -> bytes:
    """A directory that begins at `at`, and the values behind it; `old` entries go before `new` values."""
    tags = sorted(old.keys() | new.keys())
    width = struct.calcsize(form.entry) + form.room
    behind = at + struct.calcsize(form.count) + width * len(tags) + form.room
    directory, values = bytearray(struct.pack(form.count, len(tags))), bytearray()
    for tag in tags:
        if tag in old:
            directory += old[tag]
            continue
        kind, count, content = new[tag]
        directory += struct.pack(form.entry, tag, kind, count)
        if len(content) <= form.room:
            directory += content.ljust(form.room, b"\x00")
        else:
            directory += struct.pack(form.offset, behind + len(values))
            values += content + bytes(len(content) % 2)
    whole = bytes(directory + following + values)
    return whole + bytes(len(whole) % 2)
