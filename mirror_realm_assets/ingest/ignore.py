"""Which names in a source are never media: system files, network-drive artefacts, unfinished downloads, sidecars.

What belongs here: patterns over names, decided without touching the disk. What does not: judging content
(`ingest.formats`), files still being written (`ingest.scan`), and whose a sidecar is (`catalog.companions`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase as fnmatch
from fnmatch import translate
from functools import lru_cache

from mirror_realm_assets.catalog import companions

# Pattern and why it is ignored. Order decides which reason is given; the catch-all for hidden names is last.
_BUILT_IN: tuple[tuple[str, str], ...] = (
    (".DS_Store", "system file"),
    ("Thumbs.db", "system file"),
    ("desktop.ini", "system file"),
    ("._*", "AppleDouble file"),
    ("@eaDir", "network drive's own folder"),
    ("#recycle", "network drive's own folder"),
    (".nfs*", "deleted file still held open on a network drive"),
    ("~$*", "lock file of an office program"),
    ("*.part", "unfinished copy"),
    ("*.tmp", "unfinished copy"),
    ("*.crdownload", "unfinished copy"),
    ("*.xmp", "sidecar"),
    ("*.aae", "sidecar"),
    ("*.json", "sidecar"),
    (".*", "hidden"),
)

DEFAULT_PATTERNS: tuple[str, ...] = tuple(pattern for pattern, _ in _BUILT_IN)


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Each pattern as an expression with its reason, preceded by one of all: "none matches" is the common answer."""
    rows = [*_BUILT_IN, *((pattern, "pattern") for pattern in patterns)]
    # Case is ignored because network drives and cameras write THUMBS.DB and IMG_1.AAE as well.
    each = tuple((re.compile(translate(pattern), re.IGNORECASE), f"{why}: {pattern}") for pattern, why in rows)
    return (re.compile("|".join(expression.pattern for expression, _ in each), re.IGNORECASE), ""), *each


class Rules:
    """The names that are never taken, for a walk: quick, without a reason.

    Args:
        patterns: as of `ignored`.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        own = [pattern.strip("/") for pattern in patterns if pattern.strip("/")]
        self._of_paths = [pattern.lower() for pattern in own if "/" in pattern]
        built_in = [pattern.lower() for pattern in DEFAULT_PATTERNS]
        # A walk asks of every name. All built-in patterns are of these three forms, and those cost a tenth.
        self._exact = frozenset(pattern for pattern in built_in if not set(pattern) & set("*?["))
        self._begins = tuple(pattern[:-1] for pattern in built_in if pattern.endswith("*"))
        self._ends = tuple(pattern[1:] for pattern in built_in if pattern.startswith("*"))
        of_names = [pattern for pattern in own if "/" not in pattern]
        self._own = (
            re.compile("|".join(translate(pattern) for pattern in of_names), re.IGNORECASE) if of_names else None
        )

    def exclude(self, name: bytes, path: bytes) -> bool:
        """Whether a file or folder is ignored.

        Args:
            name: its last component.
            path: relative to the root; nothing above the name is ignored.
        """
        text = name.decode("utf-8", "surrogateescape")
        low = text.lower()
        if low in self._exact or low.startswith(self._begins) or low.endswith(self._ends):
            return True
        if self._own is not None and self._own.match(text):
            return True
        return bool(self._of_paths) and self._matches(path)

    def is_sidecar(self, name: bytes, path: bytes) -> bool:
        """Whether a name is ignored only because it is a sidecar's: it is read, and never media.

        Args:
            name: as of `exclude`.
            path: likewise.
        """
        text = name.decode("utf-8", "surrogateescape")
        low = text.lower()
        if not low.endswith(companions.SUFFIXES) or low in self._exact or low.startswith(self._begins):
            return False
        if (self._own is not None and self._own.match(text)) or self._matches(path):
            return False
        return companions.about(name) is not None

    def _matches(self, path: bytes) -> bool:
        return any(fnmatch(os.fsdecode(path).lower(), pattern) for pattern in self._of_paths)


def ignored(path: bytes, patterns: Sequence[str] = ()) -> str | None:
    """Why `path` is not taken, or None when it is a candidate.

    Args:
        path: relative to the source's root, as the disk spells it; it need not be valid UTF-8.
        patterns: the source's own shell patterns, on top of `DEFAULT_PATTERNS`. One without a slash is matched against
            every whole path component, one with a slash against the whole path. Case does not matter.
    """
    components = [component for component in os.fsdecode(path).split("/") if component not in ("", ".")]
    own = [pattern.strip("/") for pattern in patterns if pattern.strip("/")]
    for_components = tuple(pattern for pattern in own if "/" not in pattern)
    for name in components:
        if reason := _first_match(name, _compiled(for_components)):
            return reason
    for pattern in own:
        if "/" in pattern and fnmatch("/".join(components).lower(), pattern.lower()):
            return f"pattern: {pattern}"
    return None


def _first_match(name: str, compiled: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    (anything, _), *each = compiled
    if not anything.match(name):
        return None
    return next((reason for expression, reason in each if expression.match(name)), None)
