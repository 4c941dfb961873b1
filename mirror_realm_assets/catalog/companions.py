"""Which files of a folder belong together by their names: sidecars with pictures, and pictures that are one stack.

What belongs here: rules over names, without disk or database, and the keys under which the catalog finds what they
join. What does not: what a sidecar says (`ingest.sidecars`), which media are a stack (`stacks`).

Nothing is stored about who belongs to whom. A key depends on a path alone, so it makes no difference which file came
first, and whatever is renamed together stays together.
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b
from typing import NamedTuple

XMP, TAKEOUT, AAE = "xmp", "takeout", "aae"
SUFFIXES = (".xmp", ".aae", ".json")
"""Of names that may be sidecars, in lower case."""

_TAKEOUT_LENGTH = 46  # Google cuts names before `.json` to so many UTF-16 units
_TAKEOUT_WORD = "supplemental-metadata"  # as much of it as fits
_NUMBER = re.compile(r"^(.*)(\(\d{1,5}\))$", re.DOTALL)
# What Google Photos calls an edited copy depends on the account's language.
_EDITED = re.compile(
    r"^(.+)-(?:edited|bearbeitet|modifié|editado|modificato|bewerkt|edytowane|redigerad|redigeret|upravené|"
    r"отредактировано|edytowany|düzenlendi|編集済み|已修改|已編輯|수정됨)(\(\d{1,5}\))?$",
    re.IGNORECASE | re.DOTALL,
)
_APPLE_EDITED = re.compile(r"^(IMG_)E(\d{4,6})$", re.IGNORECASE)
_SUFFIXES_OF_MEDIA = """
    jpg jpeg jpe mpo png gif webp tif tiff bmp jp2 j2k avif heic heif hif pdf
    dng cr2 cr3 crw nef nrw arw srf sr2 raf rw2 raw rwl orf pef srw x3f 3fr fff iiq erf mef mos mrw kdc dcr gpr
    mp4 m4v mov qt mkv webm avi mpg mpeg mts m2ts ts wmv asf flv ogv 3gp mp
"""
_MEDIA_SUFFIXES = frozenset(_SUFFIXES_OF_MEDIA.split())


class About(NamedTuple):
    """What a sidecar is about: its kind, and a name in the form in which names are compared.

    Attributes:
        kind: `xmp`, `takeout` or `aae`.
        name: of a picture, with or without its suffix, or the beginning of one.
    """

    kind: str
    name: str


class Stem(NamedTuple):
    """A picture's name without its suffix and without the mark of an edited copy, and whether it bore one."""

    name: str
    edited: bool


def split(path: bytes) -> tuple[bytes, bytes]:
    """The folder of a path, as its prefix (with a slash at its end, empty for the root), and the name."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash, name


def about(name: bytes) -> About | None:
    """What the sidecar called `name` is about, or None when it is no sidecar's name.

    A JSON file is one only when the rest of its name is a picture's, or as long as Google leaves it: folders are full
    of other JSON.
    """
    text = name.decode("utf-8", "surrogateescape")
    rest, _dot, suffix = text.rpartition(".")
    kind = {"xmp": XMP, "aae": AAE, "json": TAKEOUT}.get(suffix.lower())
    if kind is None or not rest:
        return None
    if kind != TAKEOUT:
        return About(kind, _plain(rest))
    numbered = _NUMBER.match(rest)
    base, number = (numbered[1], numbered[2]) if numbered else (rest, "")
    picture, _dot, word = base.rpartition(".")
    if word and _TAKEOUT_WORD.startswith(word.lower()) and _is_media(picture):
        return About(TAKEOUT, _plain(picture + number))
    if _is_media(base) or _units(base) == _TAKEOUT_LENGTH:
        return About(TAKEOUT, _plain(base + number))
    if numbered and _is_media(rest):  # a picture whose name ends in a suffix and a number
        return About(TAKEOUT, _plain(rest))
    return None


def abouts(name: bytes) -> list[About]:
    """Everything that a sidecar of the picture called `name` may be about, the surest first."""
    text = name.decode("utf-8", "surrogateescape")
    stem, suffix = _parts(text)
    found = [About(kind, _plain(text)) for kind in (XMP, AAE, TAKEOUT)]
    if suffix and not _is_media(stem):  # else `a.jpg.xmp` would be that of `a.jpg.png` as well
        found += [About(kind, _plain(stem)) for kind in (XMP, AAE)]
    found += [About(TAKEOUT, _plain(each)) for each in _takeout_names(stem, suffix)]
    return list(dict.fromkeys(found))


def stem_of(name: bytes) -> Stem | None:
    """What the members of a stack have in common, or None for a name without a known suffix."""
    stem, suffix = _parts(name.decode("utf-8", "surrogateescape"))
    if not suffix or not stem:
        return None
    original = _unedited(stem)
    return Stem(_plain(original or stem), original is not None)


def key(folder: bytes, *words: str) -> int:
    """64 bits under which the catalog finds these words in a folder; equal keys have to be compared once more."""
    parts = [folder, *(word.encode("utf-8", "surrogateescape") for word in words)]
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big", signed=True)


def stem_key(path: bytes) -> int | None:
    """The key of a path's stem in its folder."""
    folder, name = split(path)
    stem = stem_of(name)
    return key(folder, stem.name) if stem else None


def belongs(sidecar: bytes, picture: bytes) -> bool:
    """Whether the sidecar at one path is about the picture at another."""
    (folder, name), (other, picture_name) = split(sidecar), split(picture)
    return folder == other and about(name) in abouts(picture_name)


def _takeout_names(stem: str, suffix: str) -> list[str]:
    """What Google calls the metadata of a picture, without `.json` and what may stand before that."""
    found = []
    for each in (stem, _unedited(stem)):  # an edited copy has none of its own
        if not each:
            continue
        numbered = _NUMBER.match(each)
        base, number = (numbered[1], numbered[2]) if numbered else (each, "")
        found += [_cut(base + suffix) + number, base + suffix + number, _cut(each + suffix)]
    return found


def _unedited(stem: str) -> str | None:
    found = _EDITED.match(unicodedata.normalize("NFC", stem))
    if found:
        return found[1] + (found[2] or "")
    apple = _APPLE_EDITED.match(stem)
    return apple[1] + apple[2] if apple else None


def _parts(name: str) -> tuple[str, str]:
    """What comes before a name's suffix, and the suffix with its dot; all and nothing when it is none we know."""
    stem, _dot, suffix = name.rpartition(".")
    return (stem, "." + suffix) if suffix.lower() in _MEDIA_SUFFIXES and stem else (name, "")


def _is_media(name: str) -> bool:
    return bool(_parts(name)[1])


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _cut(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass")[: 2 * _TAKEOUT_LENGTH].decode("utf-16-le", "surrogatepass")


def _plain(text: str) -> str:
    """The form in which names are compared: file systems differ in case and in how they spell accents."""
    return unicodedata.normalize("NFC", text).casefold()
