"""Which names in a source are never media: system files, network-drive artefacts, unfinished downloads, sidecars.

What belongs here: patterns over names, decided without touching the disk. What does not: judging content
(`ingest.formats`) and files still being written (`ingest.scan`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase as fnmatch
from fnmatch import translate
from functools import lru_cache

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
