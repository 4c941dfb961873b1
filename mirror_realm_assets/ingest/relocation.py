"""A source whose folder lies elsewhere now: renamed, moved, or mounted at another place.

What belongs here: the proof that it is the same folder. What does not: moves within a source (`folder_watch`).
"""

from __future__ import annotations

import sqlalchemy as sa

from mirror_realm_assets.catalog import known, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest import scan
from mirror_realm_assets.ingest.root_identity import identity_of

_SAMPLE, _SHARE = 20, 0.5


def relocate(catalog: Catalog, source: Source, root: bytes) -> Source:
    """Let a source read another folder, in which its files are as they were known; nothing is computed for it.

    Args:
        catalog: the ledger.
        source: as it is.
        root: the folder, absolute.

    Returns:
        The source as it is now. The next scan compares all of it; what is not there is missed only after another
        complete scan.

    Raises:
        SetupError: `folder_missing`, or `invalid_argument` when less than half of 20 known files are there.
    """
    with catalog.read() as conn:
        require_same(conn, source, root)
    with catalog.write() as conn:
        return sources.set_root(conn, source.name, root)


def require_same(conn: sa.Connection, source: Source, root: bytes) -> None:
    """The proof alone.

    Raises:
        SetupError: as `relocate`.
    """
    identity_of(root)
    sample = known.sample(conn, source.id, _SAMPLE)
    there = sum(_is_there(root, path, old.size, old.mtime_ns) for path, old in sample.items())
    if there < _SHARE * len(sample):
        raise SetupError(
            "invalid_argument",
            f"Of {len(sample)} known files of {source.name} only {there} are in that folder as they were.",
            remedy="Name the folder that holds them now, or add this one as a source of its own.",
        )


def _is_there(root: bytes, path: bytes, size: int, mtime_ns: int) -> bool:
    try:
        entry = scan.look_at(root, path)
    except OSError:
        return False
    return entry is not None and (entry.size, entry.mtime_ns) == (size, mtime_ns)
