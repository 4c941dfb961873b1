"""One walk over a folder: what is taken, what is not and why, and where it differs from what is known."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror_realm_assets.catalog.known import KnownRow
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest import scan
from mirror_realm_assets.ingest.scan import Entry, Walk, differences


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


class Walked(Walk):
    """A walk that is over."""

    entries: list[Entry]


def walk(root: bytes, *arguments: Any, **options: Any) -> Walked:
    found = Walked(root, *arguments, **options)
    found.entries = list(found)
    return found


def names(found: Walked) -> set[bytes]:
    return {entry.path for entry in found.entries}


def known(found: Walked, states: dict[bytes, str] | None = None) -> list[KnownRow]:
    """The files of a walk as the ledger would know them."""
    return [(e.path, e.size, e.mtime_ns, (states or {}).get(e.path, "present"), 1, e.inode) for e in found.entries]


def test_files_of_every_depth_are_seen_with_their_stat(root: Path) -> None:
    deep = "/".join(["d"] * 60) + "/a.png"
    fill(root, "a.png", deep)
    found = walk(os.fsencode(root))
    assert names(found) == {b"a.png", deep.encode()}
    (entry,) = [e for e in found.entries if e.path == b"a.png"]
    seen = (root / "a.png").stat()
    assert (entry.size, entry.mtime_ns, entry.inode, entry.device) == (
        seen.st_size,
        seen.st_mtime_ns,
        seen.st_ino,
        seen.st_dev,
    )
    assert found.complete
    assert (found.identity["device"], found.identity["inode"]) == (root.stat().st_dev, root.stat().st_ino)
    assert found.files == 2


def test_odd_names_are_files_like_any_other(root: Path) -> None:
    odd = [b"\xff\xfe.png", b"new\nline.png", b"-rf.jpg", "😀'\"`$(id).png".encode(), b"x" * 251 + b".png"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"x")
    assert names(walk(os.fsencode(root))) == set(odd)


def test_ignored_names_are_counted_and_whole_folders_of_them_are_not_entered(root: Path) -> None:
    fill(root, "a.png", ".DS_Store", "Thumbs.db", "half.png.part", "@eaDir/a.png", "raw/b.png", "raw.png")
    found = walk(os.fsencode(root), ["raw"])
    assert names(found) == {b"a.png", b"raw.png"}
    assert found.ignored == 5


def test_links_are_refused_with_where_they_lead(root: Path, tmp_path: Path) -> None:
    fill(root, "sub/a.png")
    (tmp_path / "photos-of-others").mkdir()  # its path begins as the root's does
    (root / "inside.png").symlink_to("sub/a.png")
    (root / "outside.png").symlink_to("/etc/passwd")
    (root / "neighbour").symlink_to(tmp_path / "photos-of-others")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "loop").symlink_to("loop")
    (root / "self").symlink_to(".")
    found = walk(os.fsencode(root))
    assert names(found) == {b"sub/a.png"}
    assert dict(found.odd) == {
        b"inside.png": "not_regular",
        b"outside.png": "outside_root",
        b"neighbour": "outside_root",
        b"dangling.png": "not_regular",
        b"loop": "not_regular",
        b"self": "not_regular",
    }


def test_pipes_and_sockets_are_not_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        found = walk(os.fsencode(root))
    assert found.entries == []
    assert dict(found.odd) == {b"pipe.png": "not_regular", b"socket.png": "not_regular"}


def test_our_own_folders_are_no_input(root: Path) -> None:
    fill(root, "a.png", "home/store/proxy.jpg", "home/b.png")
    seen = (root / "home").stat()
    assert names(walk(os.fsencode(root), own=[(seen.st_dev, seen.st_ino)])) == {b"a.png"}


def test_a_folder_that_is_not_there_is_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for missing in ("nowhere", "file"):
        with pytest.raises(SetupError) as error:
            walk(os.fsencode(tmp_path / missing))
        assert error.value.code == "folder_missing"


@pytest.fixture
def unreadable(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder `closed` cannot be listed (root's own right to read everything would hide a mode of 0)."""
    listing = os.scandir

    def refusing(path: Any) -> Any:
        if os.fsencode(path).rstrip(b"/").endswith(b"/closed"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        yield


def test_a_closed_subtree_makes_the_walk_partial(root: Path, unreadable: None) -> None:
    fill(root, "a.png", "open/b.png", "closed/c.png")
    found = walk(os.fsencode(root))
    assert not found.complete
    assert found.errors == ["Permission denied"]
    assert names(found) == {b"a.png", b"open/b.png"}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(paths=st.sets(st.lists(st.sampled_from(["a", "b", "a.b", "a-", "é", "z"]), min_size=1, max_size=4)
                     .map("/".join), min_size=1, max_size=12))  # fmt: skip
def test_files_come_in_the_order_of_their_whole_paths(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    made = set()
    for path in sorted(paths):
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            fill(root, path)
            made.add(path.encode())
    found = [entry.path for entry in walk(os.fsencode(root)).entries]
    assert found == sorted(made)


_ROWS = st.dictionaries(
    st.binary(min_size=1, max_size=3),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["present", "missing", "deleted", "ignored"])),
)


@given(
    here=st.dictionaries(st.binary(min_size=1, max_size=3), st.tuples(st.integers(0, 2), st.integers(0, 2))), rows=_ROWS
)
def test_the_differences_are_those_of_two_dictionaries(
    here: dict[bytes, tuple[int, int]], rows: dict[bytes, tuple[int, int, str]]
) -> None:
    entries = [Entry(path, *here[path], 1, 1) for path in sorted(here)]
    ledger: list[KnownRow] = [(path, *rows[path], 1, 1) for path in sorted(rows)]
    found = list(differences(entries, ledger))
    new = {path for path in here if path not in rows}
    other = {p for p in here if p in rows and (rows[p][:2] != here[p] or rows[p][2] in ("missing", "deleted"))}
    absent = {path for path in rows if path not in here and rows[path][2] != "ignored"}
    assert [one.path for one in found] == sorted(new | other | absent)
    assert {one.path for one in found if one.known is None} == new
    assert {one.path for one in found if one.entry is None} == absent


def test_what_is_new_other_or_back_differs_and_what_is_as_before_does_not(root: Path) -> None:
    fill(root, "same.png", "grown.png", "touched.png", "back.png")
    before = known(walk(os.fsencode(root)), {b"back.png": "missing"})
    fill(root, "new.png")
    with (root / "grown.png").open("ab") as file:
        file.write(b"more")
    os.utime(root / "touched.png", ns=(1, 1))  # an old time is a change too
    found = walk(os.fsencode(root)).entries
    assert {one.path for one in differences(found, before)} == {b"new.png", b"grown.png", b"touched.png", b"back.png"}


# --- One file alone, as an event names it. ---


def look(root: Path, name: bytes, **options: Any) -> scan.Entry | None:
    return scan.look_at(os.fsencode(root), name, **options)


def test_one_file_is_looked_at_as_a_walk_does(root: Path, tmp_path: Path) -> None:
    fill(root, "sub/a.png", ".DS_Store")
    fill(tmp_path, "photos-of-others/b.png")
    (root / "link.png").symlink_to("sub/a.png")
    (root / "linked").symlink_to("sub")
    (root / "neighbour").symlink_to(tmp_path / "photos-of-others")
    os.mkfifo(root / "pipe")
    taken = look(root, b"sub/a.png")
    assert taken is not None
    assert taken in walk(os.fsencode(root)).entries
    for name in (b".DS_Store", b"link.png", b"linked/a.png", b"neighbour/b.png", b"pipe", b"gone.png", b"sub"):
        assert look(root, name) is None, name


def test_a_file_that_cannot_be_looked_at_is_not_gone(root: Path) -> None:
    fill(root, "sub/a.png")

    class Broken:
        stat = staticmethod(os.stat)

        def lstat(self, path: Any) -> os.stat_result:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        look(root, b"sub/a.png", disk=Broken())


def test_one_file_of_ours_is_not_taken(root: Path) -> None:
    fill(root, "home/store/proxy.jpg")
    seen = (root / "home").stat()
    assert look(root, b"home/store/proxy.jpg") is not None
    assert look(root, b"home/store/proxy.jpg", own=[(seen.st_dev, seen.st_ino)]) is None


def test_a_root_that_is_itself_a_link_is_looked_into(root: Path, tmp_path: Path) -> None:
    fill(root, "sub/a.png")
    (tmp_path / "link").symlink_to(root)
    assert names(walk(os.fsencode(tmp_path / "link"))) == {b"sub/a.png"}
    assert look(tmp_path / "link", b"sub/a.png") is not None


def test_of_a_large_folder_only_the_last_names_are_glanced_at_for_its_newest_file(root: Path) -> None:
    folders = ["", "a/", "a/b/"]
    fill(root, *(f"{folder}IMG_{number:04}.jpg" for folder in folders for number in range(300)), "a/b/.DS_Store")
    for n, folder in enumerate(folders):
        os.utime(root / f"{folder}IMG_0290.jpg", (2_000_000_000 + n,) * 2)
    looked: list[bytes] = []

    class Counting:
        """Counts the files that are looked at."""

        stat, lstat = staticmethod(os.stat), staticmethod(os.lstat)

        @contextlib.contextmanager
        def scandir(self, path: bytes) -> Iterator[Iterator[Item]]:
            yield (Item(self, item.name, item.path) for item in os.scandir(path))

        def told(self, path: bytes) -> None:
            looked.append(path)

    class Item:
        def __init__(self, disk: Counting, name: bytes, path: bytes) -> None:
            self.disk, self.name, self.path = disk, name, path

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            return Path(os.fsdecode(self.path)).is_dir()

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            self.disk.told(self.path)
            return os.lstat(self.path)

    walk = Walk(os.fsencode(root), disk=Counting())
    newest = scan.newest_of_each_folder(walk, most=10, seconds=60)
    assert [entry.path for entry in newest] == [b"a/b/IMG_0290.jpg", b"a/IMG_0290.jpg", b"IMG_0290.jpg"]
    assert len(looked) == 3 * 64 + 2
