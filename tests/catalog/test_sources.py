"""The registry of sources."""

from __future__ import annotations

import threading

import pytest
from library import Library

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.errors import SetupError


def test_a_source_comes_back_as_it_was_added(library: Library) -> None:
    added = library.source("photos", b"/mnt/\xff", enhance=False, ignore=["*.bak"])
    with library.catalog.read() as conn:
        assert sources.get(conn, "photos") == sources.by_id(conn, added.id) == added
        assert sources.all_sources(conn) == [added]
    assert (added.root, added.root_display, added.policy.enhance) == (b"/mnt/\xff", "/mnt/\\udcff", False)
    assert added.active


def test_a_name_is_given_once_even_to_eight_at_a_time(library: Library) -> None:
    codes: list[str] = []
    start = threading.Barrier(8)

    def add() -> None:
        start.wait()
        try:
            library.source()
        except SetupError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == ["already_exists"] * 7


def test_a_removed_source_is_found_no_more_and_may_be_added_again_for_another_folder(library: Library) -> None:
    first = library.source("photos", b"/old")
    with library.catalog.write() as conn:
        assert sources.begin_scan(conn, first.id) == 1
        sources.end_scan(conn, first.id, {"inode": 7}, held=3)
        assert sources.confirm_deletions(conn, "photos") == 3
        assert sources.get(conn, "photos").root_identity == {"inode": 7}
        sources.set_state(conn, "photos", "removed")
        assert sources.all_sources(conn) == []
        with pytest.raises(SetupError, match="no source"):
            sources.get(conn, "photos")
    again = library.source("photos", b"/new")
    assert (again.id, again.root, again.root_identity, again.state) == (first.id, b"/new", None, "active")
    assert again.scan_generation == 1  # scans go on counting
    assert (again.held_deletions, again.deletions_confirmed) == (0, False)


def test_options_are_changed_one_by_one(library: Library) -> None:
    library.source("photos", enhance=False)
    with library.catalog.write() as conn:
        changed = sources.set_policy(conn, "photos", {"enhance.max_pixels": "5"})
        with pytest.raises(SetupError, match="no_such"):
            sources.set_policy(conn, "photos", {"no_such": 1})
    assert (changed.policy.enhance, changed.policy.enhance_max_pixels) == (False, 5)


def test_failed_index_runs_wait_twice_as_long_each_time(library: Library) -> None:
    source = library.source()
    waits = []
    for _ in range(9):
        with library.catalog.write() as conn:
            sources.index_failed(conn, source.id, "no memory")
            found = sources.by_id(conn, source.id)
            assert found.index_next_at is not None
            waits.append((found.index_next_at - sources.now(conn)).total_seconds())
    assert [round(wait, -1) for wait in waits] == [10, 20, 40, 80, 160, 320, 640, 900, 900]
    with library.catalog.write() as conn:
        sources.index_succeeded(conn, source.id)
        assert sources.by_id(conn, source.id).index_attempts == 0
