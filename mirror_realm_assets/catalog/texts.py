"""Full-text search over files: by path, by what their sidecars say, and by the camera's own words.

What belongs here: keeping the words of each place, and finding places by words, the same on both databases. What does
not: how texts are cut (`words`), and finding pictures by what they show (`search`).

Whatever changes a place's words (it is read, fails, moves, a sidecar of its folder is read) sets its `text_pending` in
the same transaction; the words themselves follow within seconds, so that no file waits for them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSQUERY

from mirror_realm_assets.catalog import sidecars
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.words import Term, terms_of, words_of

_PAGE = 400
_OF_SIDECARS = ("title", "description", "keywords")


def catch_up(catalog: Catalog, seconds: float) -> int:
    """Write the words of places that have changed, for about so long; returns of how many."""
    end = time.monotonic() + seconds
    done = 0
    while True:
        with catalog.read() as conn:
            if conn.execute(_pending().with_only_columns(t.locations.c.id).limit(1)).first() is None:
                return done
        with catalog.write() as conn:
            count = _write_page(conn)
        done += count
        if not count or time.monotonic() >= end:
            return done


def found_by(conn: sa.Connection, text: str) -> sa.Select[Any] | None:
    """A query for the ids of places in whose words all words of `text` are; None when it has none.

    Latin words and numbers are found by their beginnings, Chinese by any part.
    """
    terms = terms_of(text)
    if not terms:
        return None
    if conn.dialect.name == "sqlite":
        asked = " AND ".join(_quoted(term, '"', "*") for term in terms)
        matching: sa.ColumnElement[bool] = t.texts.c.location_id.in_(
            sa.select(sa.literal_column("rowid"))
            .select_from(sa.table("texts_fts"))
            .where(sa.text("texts_fts MATCH :asked").bindparams(asked=asked))
        )
    else:
        asked = " & ".join(_quoted(term, "'", ":*") for term in terms)
        # As the index has it; no parser of PostgreSQL's sees the words.
        words: sa.ColumnElement[Any] = sa.literal_column("array_to_tsvector(string_to_array(texts.words, ' '))")
        matching = words.op("@@", is_comparison=True)(sa.cast(sa.literal(asked, sa.String()), TSQUERY))
    return sa.select(t.texts.c.location_id).where(matching)


def forget(conn: sa.Connection, location_ids: Sequence[int]) -> None:
    """The words of these places are to be found no more."""
    for start in range(0, len(location_ids), _PAGE):
        conn.execute(t.texts.delete().where(t.texts.c.location_id.in_(location_ids[start : start + _PAGE])))


def _quoted(term: Term, quote: str, prefix: str) -> str:
    # Of letters and digits alone, so that nothing in it can end the quotes.
    return f"{quote}{term.word}{quote}{prefix if term.begins else ''}"


def _pending() -> sa.Select[Any]:
    return sa.select(t.locations).where(t.locations.c.text_pending == sa.true()).order_by(t.locations.c.id)


def _write_page(conn: sa.Connection) -> int:
    loc, con = t.locations.c, t.contents.c
    rows = (
        conn.execute(
            _pending()
            .with_only_columns(loc.id, loc.source_id, loc.path, loc.display, con.exif, con.taken_at)
            .select_from(
                t.locations.outerjoin(t.media, t.media.c.id == loc.media_id).outerjoin(
                    t.contents, con.id == t.media.c.content_id
                )
            )
            .limit(_PAGE)
            .with_for_update(skip_locked=True, of=t.locations)  # another process writes others meanwhile
        )
        .mappings()
        .all()
    )
    said = _said(conn, rows)
    ids = [row["id"] for row in rows]
    forget(conn, ids)
    words = [{"location_id": row["id"], "words": " ".join(_words(row, said.get(row["id"], ())))} for row in rows]
    if words:
        conn.execute(t.texts.insert(), words)
        conn.execute(t.locations.update().where(loc.id.in_(ids)).values(text_pending=False))
    return len(rows)


def _said(conn: sa.Connection, rows: Sequence[sa.RowMapping]) -> dict[int, list[Mapping[str, Any]]]:
    """What sidecars say, by the place of the picture that they are about."""
    by_source: defaultdict[int, dict[bytes, int]] = defaultdict(dict)
    for row in rows:
        by_source[row["source_id"]][bytes(row["path"])] = row["id"]
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for source_id, paths in by_source.items():
        for path, values in sidecars.values_of(conn, source_id, list(paths)):
            found[paths[path]].append(values)
    return found


def _words(row: sa.RowMapping, said: Iterable[Mapping[str, Any]]) -> list[str]:
    texts = [str(row["display"])]
    for values in said:
        for name in _OF_SIDECARS:
            value = values.get(name)
            texts += [value] if isinstance(value, str) else [str(word) for word in value or ()]
    texts += [value for value in (row["exif"] or {}).values() if isinstance(value, str)]
    texts.append((row["taken_at"] or "").partition("T")[0])
    return words_of("\n".join(texts))
