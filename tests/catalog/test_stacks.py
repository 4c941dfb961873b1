"""Stacks are told from places, on both databases: no row says who is in one."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
from library import Library, content, seen

from mirror_realm_assets.catalog import stacks
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.catalog.sources import Source


def _read(library: Library, source: Source, path: bytes, mime: str = "image/jpeg", text: str = "") -> str:
    text = text or path.decode()
    library.sight(source, seen(path, text))
    media_id = library.identify(source, path, replace(content(text), mime=mime))
    with library.catalog.read() as conn:
        return str(conn.execute(sa.select(t.media.c.uuid).where(t.media.c.id == media_id)).scalar_one())


def _stacks(library: Library, *media: str) -> list[list[tuple[str, bytes]]]:
    with library.catalog.read() as conn:
        found = stacks.of_media(conn, media)
    assert set(found) <= set(media)
    return [[(member.role, member.path) for member in stack.members] for stack in found.values()]


def test_files_of_one_folder_and_stem_are_a_stack(library: Library) -> None:
    source, other = library.source(), library.source("other", b"/other")
    still = _read(library, source, b"a/IMG_1.heic", "image/heic")
    film = _read(library, source, b"a/img_1.mov", "video/quicktime")
    _read(library, source, b"b/img_1.dng", "image/x-adobe-dng")
    _read(library, source, b"a/img_12.dng", "image/x-adobe-dng")
    _read(library, other, b"a/IMG_1.dng", "image/x-adobe-dng")
    both = [("still", b"a/IMG_1.heic"), ("live_video", b"a/img_1.mov")]
    assert _stacks(library, still) == _stacks(library, film) == [both]
    assert _stacks(library, still, film) == [both, both]
    assert _stacks(library) == []


def test_what_moves_or_goes_leaves_the_stack_at_once(library: Library) -> None:
    source = library.source()
    still = _read(library, source, b"a.jpg")
    raw = _read(library, source, b"a.dng", "image/x-adobe-dng")
    assert _stacks(library, raw) == [[("jpeg", b"a.jpg"), ("raw", b"a.dng")]]
    library.sight(source, Sighting("moved", b"sub/a.dng", 5, 1, moved_from=b"a.dng"), generation=2)
    assert _stacks(library, still, raw) == []
    library.sight(source, Sighting("moved", b"a.dng", 5, 1, moved_from=b"sub/a.dng"), generation=3)
    assert len(_stacks(library, still, raw)) == 2
    library.sight(source, Sighting("missing", b"a.dng"), generation=4)
    assert _stacks(library, still, raw) == []


def test_a_media_in_two_folders_is_in_the_first_of_its_stacks(library: Library) -> None:
    source = library.source()
    still = _read(library, source, b"b/a.jpg", text="same")
    assert _read(library, source, b"a/a.jpg", text="same") == still
    _read(library, source, b"b/a.mov", "video/mp4")
    assert _stacks(library, still) == [[("still", b"b/a.jpg"), ("live_video", b"b/a.mov")]]
    _read(library, source, b"a/a.mov", "video/mp4")
    assert _stacks(library, still) == [[("still", b"a/a.jpg"), ("live_video", b"a/a.mov")]]


def test_what_is_not_read_yet_is_in_no_stack(library: Library) -> None:
    source = library.source()
    still = _read(library, source, b"a.jpg")
    library.sight(source, seen(b"a.dng", "unread"))
    assert _stacks(library, still) == []
