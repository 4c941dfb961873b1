"""Watching a folder: a file is taken when it rests, once, and nothing that was seen is lost."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from mirror_realm_assets.catalog import files, leases, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest import folder_watch as module
from mirror_realm_assets.ingest import native as native_module
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.native import NativeEvents
from mirror_realm_assets.ingest.one_scan import Scanned
from mirror_realm_assets.ingest.watch import watch
from mirror_realm_assets.settings import Settings


@dataclass
class Watched:
    """A folder registered as `demo` in a catalog of its own."""

    folder: Path
    catalog: Catalog
    settings: Settings

    @property
    def source(self) -> Source:
        with self.catalog.read() as conn:
            return sources.get(conn, "demo")

    def begin(self) -> FolderWatch:
        return FolderWatch(self.catalog, self.settings, self.source)

    def put(self, name: str, text: str = "x", mtime_ns: int | None = None) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if mtime_ns is not None:
            os.utime(path, ns=(mtime_ns, mtime_ns))
        return path

    def journal(self) -> list[tuple[str, bytes]]:
        with self.catalog.read() as conn:
            return [
                (row[0], bytes(row[1]))
                for row in conn.execute(sa.select(t.journal.c.kind, t.journal.c.path).order_by(t.journal.c.id))
            ]

    def drain(self) -> dict[bytes, str]:
        """States of all places after the journal was applied."""
        with self.catalog.write() as conn:
            files.drain_journal(conn)
            return {path: known.state for path, known in files.known(conn, self.source.id).items()}


@pytest.fixture
def watched(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Watched]:
    home, folder = tmp_path / "home", tmp_path / "photos"
    home.mkdir()
    folder.mkdir()
    shutil.copy(migrated_sqlite, home / "catalog.sqlite")
    settings = Settings.at(home, quiet_seconds=2.0, watch_seconds=0.05)
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        sources.add(conn, "demo", os.fsencode(folder), {})
    yield Watched(folder, catalog, settings)
    catalog.close()


@dataclass
class Clock:
    """Monotonic seconds that a test moves on."""

    at: float = 100.0

    def __call__(self) -> float:
        return self.at


# --- When a file rests. ---


def test_a_file_is_taken_after_two_equal_looks_that_lie_far_enough_apart(watched: Watched) -> None:
    clock, folder = Clock(), watched.begin()
    watched.put("a.png")
    for at, taken in ((100.0, 0), (101.9, 0), (102.0, 1), (110.0, 0)):
        clock.at = at
        assert folder.scan(clock).taken == taken, at
    assert watched.journal() == [("seen", b"a.png")]


def test_many_quick_looks_are_no_rest(watched: Watched) -> None:
    clock, folder = Clock(), watched.begin()
    watched.put("a.png")
    for _look in range(19):
        found = folder.scan(clock)
        assert (found.taken, found.restless) == (0, 1)
        clock.at += 0.1
    assert watched.journal() == []


def test_a_growing_file_is_never_taken_until_it_rests(watched: Watched) -> None:
    clock, folder = Clock(), watched.begin()
    path = watched.put("a.png", mtime_ns=10**18)
    for step in range(10):
        path.write_text("x" * (step + 2))
        os.utime(path, ns=(10**18, 10**18))  # its mtime gives nothing away
        assert folder.scan(clock).taken == 0
        clock.at += 60
    assert folder.scan(clock).taken == 1


def test_a_file_rewritten_at_one_size_waits_again(watched: Watched) -> None:
    clock, folder = Clock(), watched.begin()
    watched.put("a.png", "one", mtime_ns=1)
    folder.scan(clock)
    watched.put("a.png", "two", mtime_ns=2)
    clock.at += 5
    assert folder.scan(clock).taken == 0
    clock.at += 1.9
    assert folder.scan(clock).taken == 0
    clock.at += 0.1
    assert folder.scan(clock).taken == 1


@pytest.mark.parametrize("mtime_ns", [1, 4_102_444_800_000_000_000])  # 1970 and 2100
def test_times_are_compared_for_equality_alone(watched: Watched, mtime_ns: int) -> None:
    clock, folder = Clock(), watched.begin()
    watched.put("a.png", mtime_ns=mtime_ns)
    folder.scan(clock)
    clock.at += 2
    assert folder.scan(clock).taken == 1


def test_a_taken_file_that_changes_is_taken_again_when_it_rests(watched: Watched) -> None:
    clock, folder = Clock(), watched.begin()
    watched.put("a.png", "one")
    folder.scan(clock)
    clock.at += 2
    folder.scan(clock)
    watched.put("a.png", "longer")
    assert folder.scan(clock).restless == 1
    clock.at += 2
    assert folder.scan(clock).taken == 1


def test_a_file_of_a_closed_writer_is_taken_at_once_and_once(watched: Watched) -> None:
    folder = watched.begin()
    watched.put("sub/a.png")
    assert folder.take(b"sub/a.png")
    assert not folder.take(b"sub/a.png")
    assert folder.scan(lambda: 0.0).restless == 0
    assert watched.journal() == [("seen", b"sub/a.png")]


def test_what_we_write_ourselves_is_never_taken(tmp_path: Path, migrated_sqlite: Path) -> None:
    """The home, and with it the store, lies inside the watched folder."""
    folder = tmp_path / "photos"
    home = folder / "home"
    home.mkdir(parents=True)
    shutil.copy(migrated_sqlite, home / "catalog.sqlite")
    settings = Settings.at(home, quiet_seconds=0, configured_store_url=str(folder / "store"))
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        sources.add(conn, "demo", os.fsencode(folder), {})
    mine = Watched(folder, catalog, settings)
    mine.put("store/derived/proxy.jpg")
    mine.put("home/preview.jpg")
    mine.put("a.png")
    watching = mine.begin()
    assert not watching.take(b"store/derived/proxy.jpg")
    assert not watching.take(b"home/preview.jpg")
    assert watching.scan().taken == 1
    assert mine.journal() == [("seen", b"a.png")]
    catalog.close()


# --- What is gone, and what proves it. ---


def take_all(watched: Watched, folder: FolderWatch) -> None:
    folder.scan(lambda: 0.0)
    folder.scan(lambda: 10.0)
    watched.drain()


def test_a_missing_file_is_said_once_and_taken_again_when_it_returns(watched: Watched) -> None:
    watched.put("other.png")
    path = watched.put("a.png", mtime_ns=7)
    folder = watched.begin()
    take_all(watched, folder)
    path.unlink()
    assert folder.scan(lambda: 20.0).missing == 1
    assert folder.scan(lambda: 21.0).missing == 0
    assert watched.drain() == {b"a.png": "missing", b"other.png": "present"}
    watched.put("a.png", mtime_ns=7)  # exactly as it was
    folder.scan(lambda: 30.0)
    folder.scan(lambda: 40.0)
    assert watched.drain()[b"a.png"] == "present"


def test_a_share_that_vanishes_or_lists_empty_loses_nothing(watched: Watched, tmp_path: Path) -> None:
    watched.put("a.png")
    folder = watched.begin()
    take_all(watched, folder)
    watched.folder.rename(tmp_path / "away")
    with pytest.raises(SetupError, match="cannot be opened"):
        folder.scan()
    watched.folder.mkdir()  # the mount point without its mount
    assert folder.scan().missing == 0
    watched.put("b.png")  # somebody writes into the empty mount point
    assert folder.scan().missing == 0
    assert watched.drain() == {b"a.png": "present"}
    assert watched.begin().scan().missing == 0  # nor does a watcher that begins only now believe it


def test_the_identity_of_the_root_is_remembered_at_the_first_complete_scan(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Partial(module.Walk):
        def __iter__(self) -> Iterator[module.Entry]:
            yield from super().__iter__()
            self.errors.append("Input/output error")

    watched.put("a.png")
    folder = watched.begin()
    with monkeypatch.context() as patch:
        patch.setattr(module, "Walk", Partial)
        take_all(watched, folder)
        assert watched.source.root_identity is None
    folder.scan()
    identity = watched.source.root_identity
    assert identity is not None
    assert (identity["device"], identity["inode"]) == (watched.folder.stat().st_dev, watched.folder.stat().st_ino)


def test_links_are_recorded_once_with_their_reason(watched: Watched) -> None:
    (watched.folder / "link.png").symlink_to("/etc/passwd")
    folder = watched.begin()
    assert folder.scan().odd == 1
    assert folder.scan().odd == 0
    assert watched.drain() == {b"link.png": "ignored"}
    assert watched.begin().scan().odd == 0


# --- Dying in between. ---


def test_what_was_journalled_survives_a_watcher_that_dies_before_it_is_drained(watched: Watched) -> None:
    for name in ("a.png", "b.png"):
        watched.put(name)
    first = watched.begin()
    first.scan(lambda: 0.0)
    first.scan(lambda: 10.0)
    watched.catalog.close()  # gone; the next one knows only what the ledger says
    second = watched.begin()
    watched.put("c.png")
    second.scan(lambda: 0.0)
    second.scan(lambda: 10.0)
    assert watched.drain() == {b"a.png": "present", b"b.png": "present", b"c.png": "present"}
    assert watched.journal() == []
    with watched.catalog.read() as conn:
        assert len(files.waiting(conn, watched.source.id, 10)) == 3


def test_a_file_whose_journalling_failed_is_journalled_by_the_next_scans(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.put("a.png")
    folder = watched.begin()
    folder.scan(lambda: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_journal", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            folder.scan(lambda: 10.0)
        with pytest.raises(OSError, match="No space left"):
            folder.take(b"a.png")
    assert watched.journal() == []
    folder.scan(lambda: 20.0)
    folder.scan(lambda: 30.0)
    assert watched.journal() == [("seen", b"a.png")]


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


# --- Native events. ---


@contextmanager
def listening(watched: Watched) -> Iterator[Callable[[], bytes]]:
    """Begins to listen; gives a function that waits for the next path."""
    events: queue.Queue[tuple[int, bytes]] = queue.Queue(100)
    native = NativeEvents(events, print)
    native.add(watched.source)
    try:
        yield lambda: events.get(timeout=5)[1]
    finally:
        native.close()


def test_a_file_is_told_when_its_writer_closes_it_and_not_before(watched: Watched) -> None:
    with listening(watched) as heard:
        open_file = (watched.folder / "open.png").open("w")
        open_file.write("half")
        open_file.flush()
        watched.put("whole.png")
        assert heard() == b"whole.png"
        open_file.close()
        assert heard() == b"open.png"


def test_files_moved_in_and_renamed_are_told_under_their_new_names(watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_text("x")
    with listening(watched) as heard:
        outside.rename(watched.folder / "in.png")
        assert heard() == b"in.png"
        (watched.folder / "in.png").rename(watched.folder / "in2.png")
        assert heard() == b"in2.png"
        (watched.folder / "in2.png").rename(tmp_path / "out.png")
        watched.put("last.png")
        assert heard() == b"last.png"


def test_a_name_that_is_no_utf8_is_told_as_the_disk_spells_it(watched: Watched) -> None:
    with listening(watched) as heard:
        Path(os.fsdecode(os.fsencode(watched.folder) + b"/\xff.png")).write_text("x")
        assert heard() == b"\xff.png"


def test_polling_alone_is_an_option_and_a_source_can_be_forgotten(watched: Watched) -> None:
    events: queue.Queue[tuple[int, bytes]] = queue.Queue(100)
    native = NativeEvents(events, print)
    with watched.catalog.write() as conn:
        native.add(sources.set_policy(conn, "demo", {"watch": "poll"}))
        source = sources.set_policy(conn, "demo", {"watch": "native"})
    native.forget(source.id)  # was never added
    watched.put("a.png")
    native.add(source)
    native.forget(source.id)
    watched.put("b.png")
    native.close()
    assert events.empty()


def no_more_watches_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The system's limit of watched folders is reached after `count` more."""
    from watchdog.observers import inotify_c

    real, left = inotify_c.inotify_add_watch, iter(range(count))

    def limited(*arguments: object) -> int:
        if next(left, None) is None:
            ctypes.set_errno(errno.ENOSPC)
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(inotify_c, "inotify_add_watch", limited)


# --- The loop. ---


@dataclass
class Loop:
    """`watch` in a thread of its own."""

    watched: Watched
    worker: str
    said: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        arguments = (self.watched.catalog, self.watched.settings, self.worker, self.stop, self.said.append)
        self.thread = threading.Thread(target=watch, args=arguments, name=self.worker)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    running: list[Loop] = []
    yield running
    for loop in running:
        loop.end()


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def quick(watched: Watched) -> Watched:
    watched.settings = watched.settings.model_copy(update={"quiet_seconds": 0.1})
    return watched


def test_two_watchers_of_one_source_journal_each_file_once(quick: Watched, loops: list[Loop]) -> None:
    quick.put("before.png")
    loops += [Loop(quick, "one"), Loop(quick, "two")]
    wait_for(lambda: len(quick.journal()) == 1)
    for n in range(20):
        quick.put(f"{n}.png")
    wait_for(lambda: len(quick.journal()) >= 21)
    time.sleep(0.3)
    seen = [path for _kind, path in quick.journal()]
    assert len(seen) == len(set(seen)) == 21


def test_the_other_watcher_goes_on_when_the_first_gives_its_lease_up(quick: Watched, loops: list[Loop]) -> None:
    loops.append(Loop(quick, "one"))
    wait_for(lambda: _holder(quick) == "one")
    loops.append(Loop(quick, "two"))
    loops[0].end()
    with quick.catalog.write() as conn:
        leases.release_of(conn, "one")  # what a worker does when it ends
    wait_for(lambda: _holder(quick) == "two")
    quick.put("a.png")
    wait_for(lambda: quick.journal() == [("seen", b"a.png")])


def _holder(watched: Watched) -> str | None:
    with watched.catalog.read() as conn:
        return leases.holder(conn, "watch/demo")


def test_a_changed_policy_and_a_pause_are_noticed(quick: Watched, loops: list[Loop]) -> None:
    with quick.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"ignore": ["*.gif"], "watch": "poll"})
    quick.put("a.gif")
    quick.put("a.png")
    loops.append(Loop(quick, "one"))
    wait_for(lambda: quick.journal() == [("seen", b"a.png")])
    with quick.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"ignore": []})
    wait_for(lambda: ("seen", b"a.gif") in quick.journal())
    with quick.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused")
    time.sleep(0.3)
    quick.put("b.png")
    time.sleep(0.4)
    assert ("seen", b"b.png") not in quick.journal()
    with quick.catalog.write() as conn:
        sources.set_state(conn, "demo", "active")
    wait_for(lambda: ("seen", b"b.png") in quick.journal())


def test_a_source_that_is_registered_again_with_another_folder_is_watched_there(
    quick: Watched, loops: list[Loop], tmp_path: Path
) -> None:
    quick.put("old.png")
    loops.append(Loop(quick, "one"))
    wait_for(lambda: quick.journal() == [("seen", b"old.png")])
    other = tmp_path / "other"
    other.mkdir()
    (other / "new.png").write_text("x")
    with quick.catalog.write() as conn:  # both between two polls
        sources.set_state(conn, "demo", "removed")
        sources.add(conn, "demo", os.fsencode(other), {})
    wait_for(lambda: ("seen", b"new.png") in quick.journal())


def test_a_folder_that_is_not_there_is_said_and_the_others_go_on(quick: Watched, loops: list[Loop]) -> None:
    with quick.catalog.write() as conn:
        sources.add(conn, "away", os.fsencode(quick.folder / "nowhere"), {})
    quick.put("a.png")
    loops.append(Loop(quick, "one"))
    wait_for(lambda: quick.journal() == [("seen", b"a.png")])
    assert any(words.startswith("away: ") and "cannot be opened" in words for words in loops[0].said)


def test_case_a7_where_the_limit_of_watched_folders_is_reached_polling_finds_everything_and_it_is_said(
    quick: Watched, loops: list[Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_more_watches_after(monkeypatch, 3)
    for number in range(6):
        quick.put(f"old{number}/a.png")
    loops.append(loop := Loop(quick, "w1"))
    wait_for(lambda: len(quick.journal()) == 6)
    assert "demo: no native events (inotify watch limit reached); polling alone" in loop.said
    quick.put("old5/later.png")
    wait_for(lambda: len(quick.journal()) == 7)


def test_case_a7_where_a_new_folder_cannot_be_watched_polling_finds_everything_and_it_is_said(
    quick: Watched, loops: list[Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_more_watches_after(monkeypatch, 1)
    monkeypatch.setattr(native_module, "_COUNT_SECONDS", 0.2)
    loops.append(loop := Loop(quick, "w1"))
    quick.put("first.png")
    wait_for(lambda: len(quick.journal()) == 1)
    for number in range(3):
        quick.put(f"new{number}/a.png")
    wait_for(lambda: len(quick.journal()) == 4)
    wait_for(lambda: any("only 1 of 4 folders send native events" in words for words in loop.said))
    quick.put("new1/later.png")
    wait_for(lambda: len(quick.journal()) == 5)


@pytest.mark.parametrize(("policy", "times_as_long"), [("auto", 30), ("poll", 10)])
def test_a_poll_that_took_long_is_followed_by_a_longer_pause_where_native_events_tell_what_is_new(
    watched: Watched,
    loops: list[Loop],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    times_as_long: int,
) -> None:
    with watched.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"watch": policy})
    real, polls, took = FolderWatch.scan, list[tuple[float, float]](), 0.05

    def slow(self: FolderWatch) -> Scanned:
        began = time.monotonic()
        found = real(self)
        time.sleep(took)
        polls.append((began, time.monotonic()))
        return found

    monkeypatch.setattr(FolderWatch, "scan", slow)
    loops.append(Loop(watched, "w1"))
    wait_for(lambda: len(polls) >= 4)
    for (began, ended), (after, _) in itertools.pairwise(polls):
        assert after - ended >= 0.9 * times_as_long * took
        if policy == "poll":
            assert after - ended < 30 * (ended - began)


def test_lost_events_are_said_and_what_they_were_about_is_found(watched: Watched) -> None:
    said: list[str] = []
    events: queue.Queue[tuple[int, bytes]] = queue.Queue(2)
    native = NativeEvents(events, said.append)
    native.add(watched.source)
    try:
        for number in range(10):
            watched.put(f"{number}.png")
        wait_for(lambda: (native.check({}), len(said))[1] > 0)
    finally:
        native.close()
    assert "the next poll finds" in said[0]


def test_a_file_that_is_closed_many_times_in_a_row_is_not_taken_as_many_times(
    watched: Watched, loops: list[Loop]
) -> None:
    watched.settings = watched.settings.model_copy(update={"quiet_seconds": 30.0})  # native events alone take it
    loops.append(loop := Loop(watched, "w1"))
    wait_for(lambda: (watched.put("ready.png", str(time.monotonic())), len(watched.journal()) > 0)[1])  # it listens
    for number in range(8):
        watched.put("tagged.png", "x" * (number + 1))
        time.sleep(0.02)
    wait_for(lambda: any("tagged" in words for words in loop.said))
    time.sleep(0.5)
    taken = [path for _kind, path in watched.journal() if path == b"tagged.png"]
    assert len(taken) <= 3  # one, unless the machine is so busy that it lies still in between
    with watched.catalog.read() as conn:
        assert conn.execute(sa.select(t.journal.c.size).order_by(t.journal.c.id.desc())).scalars().first() == 8
