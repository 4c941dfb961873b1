"""The journal is drained into locations: what was seen last is what is known."""

from __future__ import annotations

import multiprocessing
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from library import Library, content, seen

from mirror_realm_assets.catalog import files, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.files import Sighting

ODD_NAMES = [
    b"\xff\xfe\x80.jpg",
    b"new\nline.jpg",
    "雪 ❄.jpg".encode(),
    b"x" * 255,
    b"-rf.jpg",
    b"\"'\\.jpg",
    b"a\xc3.jpg",
]


def test_a_new_file_is_present_and_waits(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    row = library.location(source, b"a.jpg")
    assert (row["state"], row["size"], row["media_id"]) == ("present", 3, None)
    assert library.waiting(source) == [row["id"]]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_that_a_disk_allows_comes_back_byte_for_byte(library: Library, name: bytes) -> None:
    source = library.source(root=b"/mnt/\xe9t\xe9")
    library.sight(source, seen(b"folder/" + name, "one"))
    row = library.location(source, b"folder/" + name)
    assert bytes(row["path"]) == b"folder/" + name
    assert row["display"].encode("utf-8")
    with library.catalog.read() as conn:
        assert list(files.known(conn, source.id)) == [b"folder/" + name]


def test_bytes_that_are_no_utf8_are_shown_as_escapes(library: Library) -> None:
    assert sources.display_path(b"\xff/\xc3\xa4.jpg") == "\\udcff/ä.jpg"


def test_the_last_row_of_a_path_wins(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a", "1"), Sighting("missing", b"a"), seen(b"a", "four"), seen(b"b"), seen(b"b", "22"))
    library.sight(source, seen(b"b", "333"), Sighting("missing", b"b"), generation=2)
    assert (library.location(source, b"a")["state"], library.location(source, b"a")["size"]) == ("present", 4)
    assert library.location(source, b"b")["state"] == "missing"


def test_a_path_that_was_never_seen_cannot_be_missing(library: Library) -> None:
    source = library.source()
    library.sight(source, Sighting("missing", b"ghost"))
    with library.catalog.read() as conn:
        assert files.known(conn, source.id) == {}


def test_a_changed_file_waits_again(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    assert library.waiting(source) == []
    library.sight(source, seen(b"a.jpg", "longer"), generation=2)
    assert library.waiting(source) == [library.location(source, b"a.jpg")["id"]]


def test_a_touched_file_of_the_same_size_waits_again(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    library.sight(source, seen(b"a.jpg", "one", mtime_ns=0), generation=2)  # an older time is a change as well
    assert library.waiting(source) == [library.location(source, b"a.jpg")["id"]]


def test_a_file_that_vanishes_and_returns_unchanged_costs_nothing(library: Library) -> None:
    source = library.source()
    media_id = library.read(source, b"a.jpg", "one")
    library.sight(source, Sighting("missing", b"a.jpg"), generation=2)
    assert library.location(source, b"a.jpg")["state"] == "missing"
    library.sight(source, seen(b"a.jpg", "one"), generation=3)
    row = library.location(source, b"a.jpg")
    assert (row["state"], row["media_id"]) == ("present", media_id)
    assert library.waiting(source) == []


def test_a_missing_row_of_an_older_scan_does_not_undo_a_later_sighting(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"), generation=5)
    library.sight(source, Sighting("missing", b"a.jpg"), generation=4)
    assert library.location(source, b"a.jpg")["state"] == "present"


def _fail(library: Library, source: sources.Source, path: bytes, code: str, due_in: float | None = None) -> None:
    location_id = library.location(source, path)["id"]
    with library.catalog.write() as conn:
        due = now(conn) + timedelta(seconds=due_in) if due_in is not None else None
        files.location_failed(conn, location_id, code, "reason", due)


def test_a_refused_file_stays_refused_until_it_changes(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    _fail(library, source, b"a.jpg", "outside_root")
    library.sight(source, seen(b"a.jpg", "one"), generation=2)
    assert library.location(source, b"a.jpg")["code"] == "outside_root"
    library.sight(source, Sighting("missing", b"a.jpg"), generation=3)
    library.sight(source, seen(b"a.jpg", "one"), generation=4)
    row = library.location(source, b"a.jpg")
    assert (row["state"], row["code"], row["reason"]) == ("unreadable", "outside_root", "reason")
    assert library.waiting(source) == []
    library.sight(source, seen(b"a.jpg", "other"), generation=5)
    row = library.location(source, b"a.jpg")
    assert (row["state"], row["code"], row["reason"], row["attempts"]) == ("present", None, None, 0)
    assert library.waiting(source) == [row["id"]]


def test_a_file_that_was_gone_when_it_was_read_is_taken_when_it_returns(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    _fail(library, source, b"a.jpg", "file_gone")
    assert library.waiting(source) == []
    library.sight(source, Sighting("missing", b"a.jpg"), generation=2)
    library.sight(source, seen(b"a.jpg", "one"), generation=3)
    assert library.waiting(source) == [library.location(source, b"a.jpg")["id"]]


def test_a_file_that_was_moved_before_it_was_read_is_read_where_it_is_now(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    _fail(library, source, b"a.jpg", "file_gone")
    moved = Sighting("moved", b"b.jpg", 3, 1, moved_from=b"a.jpg")
    library.sight(source, moved, generation=2)
    row = library.location(source, b"b.jpg")
    assert (row["state"], row["code"], row["attempts"]) == ("present", None, 0)
    assert library.waiting(source) == [row["id"]]


def test_a_failure_at_a_path_that_the_file_has_left_is_not_recorded(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    location_id = library.location(source, b"a.jpg")["id"]
    library.sight(source, Sighting("moved", b"b.jpg", 3, 1, moved_from=b"a.jpg"), generation=2)
    with library.catalog.write() as conn:
        files.location_failed(conn, location_id, "file_gone", "It is not there.", None, path=b"a.jpg")
    assert library.location(source, b"b.jpg")["state"] == "present"
    assert library.waiting(source) == [location_id]


def test_a_file_that_failed_is_tried_again_when_it_is_due_and_not_before(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"later", "one"), seen(b"now", "one"))
    _fail(library, source, b"later", "io_error", due_in=60)
    _fail(library, source, b"now", "io_error", due_in=-1)
    library.sight(source, seen(b"later", "one"), generation=2)  # seeing it does not make it due
    assert library.waiting(source) == [library.location(source, b"now")["id"]]


def test_a_failure_of_bytes_that_changed_meanwhile_is_not_recorded(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", ""))
    location_id = library.location(source, b"a.jpg")["id"]
    library.sight(source, seen(b"a.jpg", "grown", mtime_ns=2), generation=2)
    with library.catalog.write() as conn:
        files.location_failed(conn, location_id, "empty_file", "It is empty.", None, size=0)
    assert library.location(source, b"a.jpg")["state"] == "present"
    assert library.waiting(source) == [location_id]


def test_a_failure_leaves_a_file_missing_that_the_watcher_saw_vanish(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"))
    library.sight(source, Sighting("missing", b"a.jpg"), generation=2)
    _fail(library, source, b"a.jpg", "file_gone")
    assert library.location(source, b"a.jpg")["state"] == "missing"


def test_an_ignored_file_waits_for_nothing_until_it_is_no_longer_ignored(library: Library) -> None:
    source = library.source()
    long_code = "deleted file still held open on a network drive: .nfs*"
    library.sight(source, Sighting("ignored", b"a.tmp", 3, 1, code=long_code), seen(b"b.jpg", "one"))
    assert library.location(source, b"a.tmp")["state"] == "ignored"
    library.sight(source, Sighting("ignored", b"b.jpg", 3, 1, code="pattern"), generation=2)
    assert library.waiting(source) == []
    library.sight(source, seen(b"a.tmp", "one"), seen(b"b.jpg", "one"), generation=3)
    assert len(library.waiting(source)) == 2
    assert library.location(source, b"b.jpg")["code"] is None


def test_an_ignored_file_that_left_and_came_back_is_judged_anew(library: Library) -> None:
    source = library.source()
    library.sight(source, Sighting("ignored", b"a.tmp", 3, 1, code="pattern"))
    library.sight(source, Sighting("missing", b"a.tmp"), generation=2)
    library.sight(source, seen(b"a.tmp", "one"), generation=3)
    assert library.location(source, b"a.tmp")["state"] == "present"


def test_a_file_that_can_be_read_again_as_it_was_costs_nothing(library: Library) -> None:
    source = library.source()
    library.read(source, b"a.jpg", "one")
    library.sight(source, Sighting("unreadable", b"a.jpg", code="unreadable"), generation=2)
    assert library.location(source, b"a.jpg")["state"] == "unreadable"
    library.sight(source, seen(b"a.jpg", "one"), generation=3)
    row = library.location(source, b"a.jpg")
    assert (row["state"], row["code"]) == ("present", None)
    assert library.waiting(source) == []


def test_waiting_leaves_out_what_an_open_batch_holds(library: Library) -> None:
    source = library.source()
    library.sight(source, seen(b"a.jpg", "one"), seen(b"b.jpg", "two", mtime_ns=2))
    a, b = library.location(source, b"a.jpg")["id"], library.location(source, b"b.jpg")["id"]
    assert library.waiting(source) == [b, a]  # newest first
    library.form(source, b"a.jpg")
    assert library.waiting(source) == [b]


def test_failures_are_forgotten_and_refusals_are_not(library: Library) -> None:
    source, other = library.source(), library.source("other", b"/other")
    for where in (source, other):
        library.sight(where, seen(b"failed", "one"), seen(b"refused", "one"))
        _fail(library, where, b"failed", "io_error")
        _fail(library, where, b"refused", "outside_root")
    with library.catalog.write() as conn:
        assert files.forget_failures(conn, source.id, refusals=["outside_root"]) == 1
    assert library.waiting(source) == [library.location(source, b"failed")["id"]]
    assert library.waiting(other) == []


def test_a_drain_takes_the_oldest_rows_and_leaves_the_rest(library: Library) -> None:
    source = library.source()
    with library.catalog.write() as conn:
        files.write_journal(conn, source.id, 1, [seen(b"%d" % n, "one") for n in range(700)])
    with library.catalog.write() as conn:
        assert files.drain_journal(conn, 650) == 650
        assert files.drain_journal(conn, 650) == 50
        assert files.drain_journal(conn, 650) == 0
        assert len(files.known(conn, source.id)) == 700


def test_a_drain_that_fails_leaves_the_journal_as_it_was(library: Library) -> None:
    source = library.source()
    with library.catalog.write() as conn:
        files.write_journal(conn, source.id, 1, [seen(b"a", "one")])
    with pytest.raises(RuntimeError), library.catalog.write() as conn:
        files.drain_journal(conn)
        raise RuntimeError
    with library.catalog.write() as conn:
        assert files.drain_journal(conn) == 1


def test_two_drains_at_once_apply_every_row_once(library: Library) -> None:
    source = library.source()
    errors: list[Exception] = []
    start = threading.Barrier(3)

    def write() -> None:
        start.wait()
        for n in range(20):
            with library.catalog.write() as conn:
                files.write_journal(conn, source.id, 1, [seen(b"%d/%d" % (n, k), "one") for k in range(20)])

    def drain() -> None:
        start.wait()
        try:
            for _ in range(25):
                with library.catalog.write() as conn:
                    files.drain_journal(conn, 50)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=target) for target in (write, drain, drain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with library.catalog.write() as conn:
        files.drain_journal(conn)
        assert len(files.known(conn, source.id)) == 400
        assert conn.execute(sa.select(t.journal.c.id)).first() is None


def test_a_row_that_is_committed_late_under_a_lower_number_is_not_lost(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library.catalog.is_sqlite:
        return  # one writer at a time: nothing can be late
    source = library.source()
    apply = files._apply
    with library.catalog.engine.connect() as late:
        transaction = late.begin()
        files.write_journal(late, source.id, 1, [seen(b"late", "one")])
        with library.catalog.write() as conn:
            files.write_journal(conn, source.id, 1, [seen(b"early", "one")])

        def commit_and_apply(*given: Any) -> None:
            transaction.commit()  # after the drain has looked, before it deletes
            apply(*given)

        monkeypatch.setattr(files, "_apply", commit_and_apply)
        with library.catalog.write() as conn:
            assert files.drain_journal(conn) == 1
    monkeypatch.undo()
    with library.catalog.write() as conn:
        assert files.drain_journal(conn) == 1
        assert set(files.known(conn, source.id)) == {b"late", b"early"}


def _record_and_drain(url: str, source_id: int, number: int, root: str) -> None:
    catalog = Catalog(url)
    from mirror_realm_assets.catalog import media

    for round_ in range(6):
        with catalog.write() as conn:
            order = list(files.known(conn, source_id))
            for path in order if number % 2 else reversed(order):
                c = t.locations.c
                row = conn.execute(sa.select(c.id).where(c.source_id == source_id, c.path == path)).scalar_one()
                media.record(conn, row, content(f"bytes {round_ % 3} {path!r}"))
        with catalog.write() as conn:
            paths = [b"%d" % n for n in range(10)]
            rows = [seen(path, "x" * round_) for path in (paths if number % 2 else reversed(paths))]
            files.write_journal(conn, source_id, round_, rows)
            files.drain_journal(conn)
    catalog.close()
    (Path(root) / f"done-{number}").touch()


def test_recorders_and_drains_of_the_same_files_in_any_order_do_not_deadlock(library: Library, tmp_path: Path) -> None:
    source = library.source()
    library.sight(source, *(seen(b"%d" % n, "one") for n in range(10)))
    url = library.catalog.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_record_and_drain, args=(url, source.id, n, str(tmp_path))) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(list(tmp_path.glob("done-*"))) == 3
