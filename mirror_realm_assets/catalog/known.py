"""What the ledger knows of the files of a source, for comparing a walk with it.

What belongs here: reading locations in the order of their paths, by path and by inode. What does not: the comparison
(`ingest.scan`), changing locations (`files`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import cast

import sqlalchemy as sa

from mirror_realm_assets.catalog import driver
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import Known

_PAGE = 10_000  # rows of one read; a walk over a network takes minutes, and a transaction should not
_CHUNK = 400  # stays below SQLite's limit of bound variables
_PAGE_SQL = (
    "SELECT path, size, mtime_ns, CASE WHEN state = 'unreadable' AND code = 'file_gone' THEN 'gone' ELSE state END, "
    "generation, inode FROM locations WHERE source_id = {0} AND path > {0} ORDER BY path LIMIT {0}"
)

KnownRow = tuple[bytes, int, int, str, int, int | None]
"""Path, size, mtime in nanoseconds, state, the generation at which that was last seen or came to be, and inode.

The state is the location's, or `gone`: it was there for the scans, but away at the moment it was to be read. What is
seen there again is taken again, also with size and mtime as they were.
"""


def in_order(catalog: Catalog, source_id: int) -> Iterator[KnownRow]:
    """Every known path of a source in the order of its bytes, read a page at a time, each in a transaction of its own.

    What changes while it is read is seen or not; a row is never seen twice.
    """
    after = b""
    while True:
        with catalog.read() as conn:
            rows = driver.fetch(conn, _PAGE_SQL, (source_id, after, _PAGE))
        yield from cast(list[KnownRow], rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def in_folder(conn: sa.Connection, source_id: int, prefix: bytes) -> dict[bytes, KnownRow]:
    """The known files that lie in a folder itself, by path.

    Args:
        conn: a connection.
        source_id: the source.
        prefix: of their paths: the folder's with a slash at the end, empty for the root.
    """
    rest = sa.func.substr(t.locations.c.path, len(prefix) + 1)
    if conn.dialect.name == "postgresql":
        slash = sa.func.position(sa.literal(b"/").op("IN")(rest))
    else:
        slash = sa.func.instr(rest, b"/")
    return _rows(conn, _beneath(source_id, prefix), slash == 0)


def beneath(conn: sa.Connection, source_id: int, prefix: bytes) -> dict[bytes, KnownRow]:
    """The known files of a folder and all its folders, by path."""
    return _rows(conn, _beneath(source_id, prefix))


def missing(conn: sa.Connection, source_id: int) -> dict[bytes, KnownRow]:
    """The files of a source that were not there once, by a scan or when they were to be read, by path."""
    l = t.locations.c  # noqa: E741
    # By the two states, which an index has: alternatives alone would look at every file.
    either = l.state.in_(("missing", "unreadable"))
    return _rows(conn, sa.and_(l.source_id == source_id, either, sa.or_(l.state == "missing", _gone())))


def _beneath(source_id: int, prefix: bytes) -> sa.ColumnElement[bool]:
    l = t.locations.c  # noqa: E741
    if not prefix:
        return l.source_id == source_id
    # What follows a slash among bytes ends all paths that begin so.
    return sa.and_(l.source_id == source_id, l.path >= prefix, l.path < prefix[:-1] + b"0")


def _rows(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> dict[bytes, KnownRow]:
    l = t.locations.c  # noqa: E741
    state = sa.case((_gone(), "gone"), else_=l.state)
    query = sa.select(l.path, l.size, l.mtime_ns, state, l.generation, l.inode).where(*where)
    return {bytes(row[0]): (bytes(row[0]), *row[1:]) for row in conn.execute(query)}


def _gone() -> sa.ColumnElement[bool]:
    return sa.and_(t.locations.c.state == "unreadable", t.locations.c.code == "file_gone")


def count(conn: sa.Connection, source_id: int, states: Sequence[str] = ("present", "unreadable")) -> int:
    """How many paths of a source are in one of these states."""
    l = t.locations.c  # noqa: E741 - l for location, as in the query's SQL
    query = sa.select(sa.func.count()).where(l.source_id == source_id, l.state.in_(states))
    return int(conn.execute(query).scalar_one())


def sample(conn: sa.Connection, source_id: int, size: int) -> dict[bytes, Known]:
    """Up to `size` present files of a source, picked at random over the order in which they were found."""
    l = t.locations.c  # noqa: E741
    present = sa.and_(l.source_id == source_id, l.state == "present")
    first, last = conn.execute(sa.select(sa.func.min(l.id), sa.func.max(l.id)).where(present)).one()
    if first is None:
        return {}
    numbers = random.sample(range(first, last + 1), min(size, last + 1 - first))
    found: dict[bytes, Known] = {}
    for number in numbers:
        query = sa.select(*_COLUMNS).where(present, l.id >= number).order_by(l.id).limit(1)
        for row in conn.execute(query):
            found[bytes(row[0])] = Known(*row[1:5])
    return found


def at(conn: sa.Connection, source_id: int, path: bytes) -> Known | None:
    """What is known of one path."""
    l = t.locations.c  # noqa: E741
    row = conn.execute(sa.select(*_COLUMNS).where(l.source_id == source_id, l.path == path)).first()
    return Known(*row[1:5]) if row else None


def which(conn: sa.Connection, source_id: int, paths: Sequence[bytes]) -> set[bytes]:
    """Those of `paths` that are known at all."""
    l = t.locations.c  # noqa: E741
    found: set[bytes] = set()
    for start in range(0, len(paths), _CHUNK):
        where = (l.source_id == source_id, l.path.in_(paths[start : start + _CHUNK]))
        found.update(bytes(path) for path in conn.execute(sa.select(l.path).where(*where)).scalars())
    return found


def digests(conn: sa.Connection, source_id: int, paths: Sequence[bytes]) -> dict[bytes, str]:
    """sha256 of the bytes that these paths are known to have."""
    l = t.locations.c  # noqa: E741
    query = (
        sa.select(l.path, t.contents.c.digest)
        .join(t.media, t.media.c.id == l.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
    )
    found: dict[bytes, str] = {}
    for start in range(0, len(paths), _CHUNK):
        where = (l.source_id == source_id, l.path.in_(paths[start : start + _CHUNK]))
        found.update((bytes(row[0]), row[1]) for row in conn.execute(query.where(*where)))
    return found


def by_inode(
    conn: sa.Connection, source_id: int, inodes: Sequence[int]
) -> dict[tuple[int | None, int | None], list[tuple[bytes, Known]]]:
    """The known files of a source with these inodes, by device and inode."""
    l = t.locations.c  # noqa: E741
    found: dict[tuple[int | None, int | None], list[tuple[bytes, Known]]] = {}
    if conn.execute(sa.select(l.id).where(l.source_id == source_id).limit(1)).first() is None:
        return found  # so it is during the first scan, which asks for every file
    for start in range(0, len(inodes), _CHUNK):
        where = (l.source_id == source_id, l.inode.in_(inodes[start : start + _CHUNK]))
        for row in conn.execute(sa.select(*_COLUMNS).where(*where)):
            found.setdefault((row[5], row[3]), []).append((bytes(row[0]), Known(*row[1:5])))
    return found


_COLUMNS = (
    t.locations.c.path,
    t.locations.c.size,
    t.locations.c.mtime_ns,
    t.locations.c.inode,
    t.locations.c.state,
    t.locations.c.device,
)
