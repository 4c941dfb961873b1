from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from store_home import Home

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.local import LocalStore

DATA = b"some bytes" * 1000
SHA = hashlib.sha256(DATA).hexdigest()
ORIGINAL = keys.original_key(SHA)
DERIVED = keys.derived_key("proxy", "cd" * 32, 0, "ef" * 32, "webp")
processes = multiprocessing.get_context("forkserver")


def path_of(store: LocalStore, key: str) -> Path:
    return store.root.path / key


def test_the_same_bytes_again_write_nothing_but_count_as_new(store: LocalStore, home: Home) -> None:
    store.put(DERIVED, DATA)
    home.age(48)
    inode = path_of(store, DERIVED).stat().st_ino
    store.put(DERIVED, DATA)
    assert path_of(store, DERIVED).stat().st_ino == inode
    entry = store.head(DERIVED)
    assert entry is not None
    assert store.clock() - entry.modified < timedelta(minutes=1)


def test_bytes_under_the_key_of_others_are_refused(store: LocalStore, home: Home) -> None:
    with pytest.raises(ValueError, match="digest"):
        store.put(ORIGINAL, b"other")
    with pytest.raises(Failed) as caught:
        store.put_file(ORIGINAL, io.BytesIO(b"other"))
    assert caught.value.code == "changed_while_reading"
    assert not store.exists(ORIGINAL)
    assert not [name for name in home.tree() if name.endswith(".part")]


def test_files_and_folders_are_for_their_owner_alone(store: LocalStore) -> None:
    old = os.umask(0)
    try:
        store.put(DERIVED, DATA)
        store.trash(DERIVED)
        store.put(DERIVED, DATA)
    finally:
        os.umask(old)
    for path in store.root.path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert store.root.path.stat().st_mode & 0o777 == 0o700


def test_links_below_the_root_are_not_followed(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(DATA)
    for area in ("originals", "trash"):
        (store.root.path / area).symlink_to(outside)
    with pytest.raises(Failed) as caught:
        store.put(ORIGINAL, DATA)
    assert caught.value.code == "store_failed"
    with pytest.raises(Failed):
        list(store.list("originals/"))
    store.put(DERIVED, DATA)
    with pytest.raises(Failed):
        store.trash(DERIVED)
    path_of(store, DERIVED).unlink()
    path_of(store, DERIVED).symlink_to(outside / "secret")
    assert not store.exists(DERIVED)
    with pytest.raises(Failed):
        store.read(DERIVED, SHA)
    store.put(DERIVED, b"other")  # the link is replaced, not what it leads to
    assert (outside / "secret").read_bytes() == DATA
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_another_folder_in_its_place_is_not_taken_for_an_empty_store(store: LocalStore) -> None:
    root = store.root.path
    store.put(ORIGINAL, DATA)
    root.rename(root.with_name("away"))
    for _ in range(2):  # gone, then replaced by an empty folder as an unmounted drive leaves it
        for call in (
            lambda: store.exists(ORIGINAL),
            lambda: store.put(ORIGINAL, DATA),
            lambda: list(store.list()),
            lambda: store.clock(),
            lambda: store.trash(ORIGINAL),
        ):
            with pytest.raises(Failed, match="folder") as caught:
                call()
            assert caught.value.code == "store_failed"
        root.mkdir(exist_ok=True)
    assert not list(root.iterdir())


def test_a_listing_finds_objects_by_prefix_and_leaves_foreign_files_alone(store: LocalStore) -> None:
    store.put(ORIGINAL, DATA)
    store.put(DERIVED, DATA)
    (path_of(store, DERIVED).parent / "notes.txt").write_text("mine")
    (store.root.path / "originals" / ".DS_Store").write_text("")
    (store.root.path / "other").mkdir()
    assert [entry.key for entry in store.list()] == [DERIVED, ORIGINAL]
    assert [entry.key for entry in store.list("originals/")] == [ORIGINAL]
    assert [entry.key for entry in store.list(DERIVED[:30])] == [DERIVED]
    assert [entry.key for entry in store.list("derived/other/")] == []


def test_the_trash_keeps_what_it_is_given_for_its_time(store: LocalStore, home: Home) -> None:
    store.put(DERIVED, DATA)
    home.age(24 * 30)
    assert not store.trash(DERIVED, unless=lambda key: key == DERIVED)
    assert store.trash(DERIVED)
    assert not store.trash(DERIVED)
    assert not store.exists(DERIVED)
    assert not (store.root.path / DERIVED).parent.exists()  # no empty folders pile up
    assert (store.root.path / "trash" / DERIVED).read_bytes() == DATA
    assert store.empty_trash(timedelta(days=7)).count == 0  # its time there began with the move
    home.age(24 * 8)
    assert store.empty_trash(timedelta(days=7), dry_run=True).bytes == len(DATA)
    assert store.empty_trash(timedelta(days=7)).count == 1
    assert not list((store.root.path / "trash").iterdir())


@pytest.mark.parametrize(("way", "data"), [("put", DATA), ("put", b"other"), ("put_file", b"other")])
def test_no_put_ends_between_the_last_question_and_the_move(store: LocalStore, way: str, data: bytes) -> None:
    store.put(DERIVED, DATA)
    source = data if way == "put" else io.BytesIO(data)
    putting = threading.Thread(target=getattr(store, way), args=(DERIVED, source))
    there: list[bytes] = []

    def nobody_needs_it(key: str) -> bool:
        putting.start()
        putting.join(0.2)
        assert putting.is_alive()
        there.append(path_of(store, key).read_bytes())
        return False

    assert store.trash(DERIVED, unless=nobody_needs_it)
    putting.join()
    assert there == [DATA]
    assert store.read(DERIVED, hashlib.sha256(data).hexdigest()) == data


def test_the_clock_is_the_file_systems(store: LocalStore) -> None:
    first = store.clock()
    assert first.tzinfo is UTC
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
    assert store.clock() >= first
    assert (store.free_bytes() or 0) > 0


def test_bytes_are_durable_before_the_name_and_the_name_before_success(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        events.append(("fsync", os.fstat(fd).st_ino))
        fsync(fd)

    def spy_rename(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append(("rename", 0))
        rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    store.put(DERIVED, DATA)
    at = events.index(("rename", 0))
    path = path_of(store, DERIVED)
    assert ("fsync", path.stat().st_ino) in events[:at]
    above = [parent for parent in path.parents if parent.is_relative_to(store.root.path)]
    assert len(above) == 6
    assert {("fsync", parent.stat().st_ino) for parent in above} <= set(events[at:])


def _put_many(store: LocalStore, mine: bytes) -> None:
    for _ in range(40):
        store.put(DERIVED, mine)
        store.put(ORIGINAL, DATA)


def test_four_processes_putting_one_key_leave_one_good_object(store: LocalStore) -> None:
    versions = {hashlib.sha256(data).hexdigest(): data for data in (bytes([n]) * 300_000 for n in range(4))}
    writers = [processes.Process(target=_put_many, args=(store, data)) for data in versions.values()]
    store.put(DERIVED, next(iter(versions.values())))
    for writer in writers:
        writer.start()
    looks = 0
    while any(writer.is_alive() for writer in writers):
        assert hashlib.sha256(path_of(store, DERIVED).read_bytes()).hexdigest() in versions
        looks += 1
    assert looks
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.read(ORIGINAL, SHA) == DATA
    assert sorted(entry.key for entry in store.list()) == [DERIVED, ORIGINAL]
    assert not list((store.root.path / "tmp").iterdir())


def test_threads_may_share_a_store(store: LocalStore) -> None:
    threads = [threading.Thread(target=_put_many, args=(store, bytes([n]) * 1000)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(ORIGINAL, SHA) == DATA


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_system_error_at_any_step_leaves_one_whole_object_and_no_draft(home: Home, number: int) -> None:
    steps: list[str] = []
    home.store(steps.append).put_file(DERIVED, io.BytesIO(DATA))
    wanted = steps[steps.index("draft begun") :]  # what comes before opens the store
    assert len(wanted) > 8
    for at in wanted:

        def fail(name: str, at: str = at) -> None:
            if name == at:
                raise OSError(number, os.strerror(number))

        home.store().put(DERIVED, b"old")
        with pytest.raises(Failed, match=DERIVED) as caught:
            home.store(fail).put_file(DERIVED, io.BytesIO(DATA))
        assert caught.value.code == ("store_failed" if number == errno.EIO else "disk_full")
        assert path_of(home.store(), DERIVED).read_bytes() == (DATA if at in ("renamed", "durable") else b"old")
        assert not [name for name in home.tree() if name.endswith(".part")]


_FILL = """
import sys
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import keys, open_store
store = open_store(sys.argv[1], "catalog")
key = keys.derived_key("proxy", "0" * 64, 0, "1" * 64, "webp")
small = store.put(key, b"small")
try:
    store.put(key, bytes(4_000_000))
except Failed as error:
    assert store.read(key, small.sha256) == b"small"
    assert [entry.key for entry in store.list()] == [key]
    assert store.free_bytes() > 1_000_000, "the draft is gone"
    print(error.code)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1/store"'
    command = [unshare or "", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if unshare is None or subprocess.run([*command, 'mount -t tmpfs tmpfs "$1"', "sh", tmp_path]).returncode != 0:
        pytest.skip("no file system may be mounted here")
    done = subprocess.run(
        [*command, mount, "sh", tmp_path, sys.executable, _FILL], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "disk_full", done.stderr
