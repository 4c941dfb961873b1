"""Names of objects: pure functions that build, check and take apart keys.

What belongs here: the grammar of keys. What does not: files and folders. A key is made of digests, small numbers and
words from fixed lists only, so nothing that stands in a media file, a file name or a URL can become a path.

    originals/ab/cd/<sha256>
    derived/<feature>/ab/cd/<image digest>/<part>-<recipe>.<suffix>
    shards/ab/cd/<sha256>.parquet
    segments/ab/cd/<sha256>.faiss

`ab/cd` are the first four digits of the digest: 65,536 folders keep each one short with millions of objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

# What a derived object may end in. A name outside this list is a mistake in our own code.
SUFFIXES = frozenset(
    {"jpg", "png", "webp", "avif", "tif", "npy", "json", "txt", "parquet", "safetensors", "mp4", "webm"}
)
MAX_PART = 10**9 - 1

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FEATURE = re.compile(r"[a-z_]{1,60}")
_PREFIX = re.compile(r"(?:[0-9a-z_][0-9a-z_.-]*/)*(?:[0-9a-z_][0-9a-z_.-]*)?")
_FAN = r"(?P<a>[0-9a-f]{2})/(?P<b>[0-9a-f]{2})"
_SHA = r"(?P<digest>[0-9a-f]{64})"
_GRAMMAR = {
    "original": re.compile(rf"originals/{_FAN}/{_SHA}"),
    "derived": re.compile(
        rf"derived/(?P<feature>[a-z_]{{1,60}})/{_FAN}/{_SHA}"
        r"/(?P<part>0|[1-9][0-9]{0,8})-(?P<recipe>[0-9a-f]{64})\.(?P<suffix>[a-z0-9]{1,12})"
    ),
    "shard": re.compile(rf"shards/{_FAN}/{_SHA}\.parquet"),
    "segment": re.compile(rf"segments/{_FAN}/{_SHA}\.faiss"),
}
# What a store's listing has to visit; everything else in its folder is not an object.
AREAS = ("derived", "originals", "segments", "shards")


class Kind(StrEnum):
    """What sort of object a key names; the value stands in the ledger."""

    ORIGINAL = "original"
    DERIVED = "derived"
    SHARD = "shard"
    SEGMENT = "segment"


@dataclass(frozen=True)
class Key:
    """A key taken apart.

    Attributes:
        kind: which of the four sorts.
        digest: the image digest of a derived object, otherwise the sha256 of the object's own bytes.
        feature: of a derived object.
        part: of a derived object.
        recipe: digest of a derived object's recipe.
        suffix: of a derived object, without the dot.
    """

    kind: Kind
    digest: str
    feature: str | None = None
    part: int | None = None
    recipe: str | None = None
    suffix: str | None = None

    def __str__(self) -> str:
        if self.kind is Kind.DERIVED:
            return f"derived/{self.feature}/{_fan(self.digest)}/{self.part}-{self.recipe}.{self.suffix}"
        folder, ending = _PLAIN[self.kind]
        return f"{folder}/{_fan(self.digest)}{ending}"


_PLAIN = {
    Kind.ORIGINAL: ("originals", ""),
    Kind.SHARD: ("shards", ".parquet"),
    Kind.SEGMENT: ("segments", ".faiss"),
}


def original_key(digest: str) -> str:
    """Where the bytes of a kept original lie.

    Raises:
        ValueError: `digest` is not a lower-case sha256.
    """
    return str(Key(Kind.ORIGINAL, _digest(digest)))


def derived_key(feature: str, image_digest: str, part: int, recipe: str, suffix: str) -> str:
    """Where what a recipe made of one part of one picture lies.

    Args:
        feature: name of the feature, `[a-z_]{1,60}`.
        image_digest: digest of the picture.
        part: 0 for the still picture, otherwise the number of the frame or page.
        recipe: recipe digest.
        suffix: one of `SUFFIXES`, without the dot.

    Raises:
        ValueError: a piece is not of its form.
    """
    if not _FEATURE.fullmatch(feature):
        raise ValueError(f"not a feature name: {feature!r}")
    if isinstance(part, bool) or not isinstance(part, int) or not 0 <= part <= MAX_PART:
        raise ValueError(f"not a part number: {part!r}")
    if suffix not in SUFFIXES:
        raise ValueError(f"not an allowed suffix: {suffix!r}")
    return str(Key(Kind.DERIVED, _digest(image_digest), feature, part, _digest(recipe), suffix))


def shard_key(sha256: str) -> str:
    """Where an embedding shard with this sha256 lies.

    Raises:
        ValueError: `sha256` is not a lower-case sha256.
    """
    return str(Key(Kind.SHARD, _digest(sha256)))


def segment_key(sha256: str) -> str:
    """Where an index segment with this sha256 lies.

    Raises:
        ValueError: `sha256` is not a lower-case sha256.
    """
    return str(Key(Kind.SEGMENT, _digest(sha256)))


def parse(key: str) -> Key:
    """Take a key apart.

    Raises:
        ValueError: `key` is none that these functions build.
    """
    for kind in Kind:
        found = _GRAMMAR[kind].fullmatch(key)
        if found is None:
            continue
        pieces = found.groupdict()
        parsed = Key(
            kind,
            pieces["digest"],
            pieces.get("feature"),
            int(pieces["part"]) if "part" in pieces else None,
            pieces.get("recipe"),
            pieces.get("suffix"),
        )
        # The same object must not have two names: the fan folders follow from the digest.
        if str(parsed) == key and (parsed.suffix is None or parsed.suffix in SUFFIXES):
            return parsed
    raise ValueError(f"not a key of the store: {key[:300]!r}")


def kind_of(key: str) -> Kind:
    """The sort of object that `key` names.

    Raises:
        ValueError: `key` is none that these functions build.
    """
    return parse(key).kind


def is_key(key: str) -> bool:
    """Whether `key` is one that these functions build."""
    try:
        parse(key)
    except ValueError:
        return False
    return True


def content_digest(key: str) -> str | None:
    """The sha256 that the bytes under `key` must have, or None where the key does not say (derived objects).

    Raises:
        ValueError: `key` is none that these functions build.
    """
    parsed = parse(key)
    return None if parsed.kind is Kind.DERIVED else parsed.digest


def check_prefix(prefix: str) -> str:
    """`prefix` unchanged when it can be the beginning of a key.

    Raises:
        ValueError: it cannot; `..`, empty folder names and other characters are refused.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not a prefix of keys: {prefix[:300]!r}")
    return prefix


def _digest(value: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise ValueError(f"not a lower-case sha256: {value!r}")
    return value


def _fan(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:4]}/{digest}"
