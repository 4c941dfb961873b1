"""Reading originals: once, beneath the root, only regular files, and never under a wrong digest."""

import errno
import hashlib
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mirror_realm_assets.errors import Failed, MirrorRealmError, Refused
from mirror_realm_assets.ingest import beneath, originals
from mirror_realm_assets.ingest.originals import FileStat, open_beneath, read_original, read_verified

pytestmark = pytest.mark.timeout(20)  # a FIFO that blocks must fail here, not hang

MAX = 1 << 20
SECRET = b"bytes outside the root"


@pytest.fixture(params=["openat2", "by component"])
def way(request, monkeypatch):
    if request.param == "openat2":
        if not beneath._has_openat2():
            pytest.skip("this kernel has no openat2")
    else:
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    return request.param


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(SECRET)
    return folder


def read(root: Path, path: bytes | str, **options) -> bytes:
    with read_original(os.fsencode(root), os.fsencode(path), max_bytes=MAX, **options) as original:
        return os.pread(original.fd, MAX, 0)


def reason(root: Path, path: bytes | str, **options) -> str:
    with pytest.raises(MirrorRealmError) as caught:
        read(root, path, **options)
    return caught.value.code


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_digest_size_and_state_are_those_of_the_bytes_lent(root, way):
    content = os.urandom(3_000_000)
    (root / "a.jpg").write_bytes(content)
    with read_original(os.fsencode(root), b"a.jpg", max_bytes=1 << 22) as original:
        assert os.pread(original.fd, 1 << 22, 0) == content
        assert original.digest == hashlib.sha256(content).hexdigest()
        found = (root / "a.jpg").stat()
        assert original.stat == FileStat(len(content), found.st_mtime_ns, found.st_ino, found.st_dev)
        assert original.size == len(content)


def test_the_copy_in_memory_cannot_be_changed(root):
    (root / "a.jpg").write_bytes(b"content")
    with read_original(os.fsencode(root), b"a.jpg", max_bytes=MAX) as original:
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(original.fd, b"x", 0)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(original.fd, 1)


def test_reading_leaves_no_trace_in_the_source(root, way):
    (root / "a.jpg").write_bytes(b"content")
    (root / "a.jpg").chmod(0o444)
    before = (root / "a.jpg").stat()
    read(root, "a.jpg")
    after = (root / "a.jpg").stat()
    assert [p.name for p in root.iterdir()] == ["a.jpg"]
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_mode) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_mode,
    )


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe.jpg", b"two\nlines.jpg", b"x" * 251 + b".jpg", "😀🏖️.jpg".encode(), b"-rf.jpg", b"a'b\"c.jpg", b" .jpg"],
)
def test_odd_names_are_read_like_any_other(root, way, name):
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"content")
    assert read(root, name) == b"content"


def test_a_file_sixty_folders_deep_is_read(root, way):
    folder = root.joinpath(*["d"] * 60)
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"content")
    assert read(root, "d/" * 60 + "a.jpg") == b"content"


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "sub/../../secret.jpg", "link.jpg", "absolute.jpg", "linked/secret.jpg"]
)
def test_nothing_outside_the_root_is_opened(root, way, path):
    (root / "sub").mkdir()
    (root / "link.jpg").symlink_to("../secret.jpg")
    (root / "absolute.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "linked").symlink_to("../outside")
    assert reason(root, path) == "outside_root"


def test_an_absolute_path_is_outside(root, way):
    assert reason(root, root.parent / "secret.jpg") == "outside_root"


def test_a_mount_beneath_the_root_is_outside(way):
    with pytest.raises(Refused) as caught:
        open_beneath(b"/", b"proc/version")
    assert caught.value.code == "outside_root"


def test_a_link_that_stays_inside_is_followed_where_the_kernel_can_prove_it(root, way):
    (root / "a.jpg").write_bytes(b"content")
    (root / "link.jpg").symlink_to("a.jpg")
    if way == "openat2":
        assert read(root, "link.jpg") == b"content"
    else:
        assert reason(root, "link.jpg") == "outside_root"


@pytest.mark.parametrize("part", ["file", "folder"])
def test_a_link_swapped_in_while_we_look_never_leads_out(root, way, part):
    """One thread exchanges the file (or its folder) for a link out, as fast as it can, while another opens it."""
    (root / "d").mkdir()
    (root / "d" / "secret.jpg").write_bytes(b"inside")
    target = root / "d" if part == "folder" else root / "d" / "secret.jpg"
    aside, link = root / "aside", root / "link"
    link.symlink_to(root.parent / ("outside" if part == "folder" else "secret.jpg"))
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            target.rename(aside)
            link.rename(target)
            target.rename(link)
            aside.rename(target)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    try:
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            try:
                outcomes.add(read(root, "d/secret.jpg"))
            except MirrorRealmError as error:
                outcomes.add(error.code)
    finally:
        stop.set()
        thread.join()
    assert b"inside" in outcomes
    assert "outside_root" in outcomes  # the swap was met
    assert outcomes <= {b"inside", "outside_root", "file_gone", "io_error"}


def test_loops_of_links_end(root, way):
    (root / "a.jpg").symlink_to("b.jpg")
    (root / "b.jpg").symlink_to("a.jpg")
    (root / "loop").symlink_to(".")
    assert reason(root, "a.jpg") in ("not_regular", "outside_root")
    assert reason(root, "loop/" * 50 + "a.jpg") in ("not_regular", "outside_root")


def test_a_link_to_nothing_is_a_file_that_is_gone(root):
    (root / "dangling.jpg").symlink_to("nothing.jpg")
    assert reason(root, "dangling.jpg") == "file_gone"


def test_a_fifo_is_refused_at_once(root, way):
    os.mkfifo(root / "pipe.jpg")
    assert reason(root, "pipe.jpg") == "not_regular"


def test_a_socket_is_refused(root, way):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s.jpg"))
        assert reason(root, "s.jpg") == "not_regular"


@pytest.mark.parametrize("path", ["folder.jpg", ".", "folder.jpg/"])
def test_a_folder_is_refused(root, path):
    (root / "folder.jpg").mkdir()
    assert reason(root, path) == "not_regular"


@pytest.mark.parametrize("path", [b"gone.jpg", b"a.jpg/b.jpg", b"x" * 300, b"", b"nul\0.jpg"])
def test_a_file_that_is_not_there_is_gone(root, way, path):
    (root / "a.jpg").write_bytes(b"content")
    with pytest.raises(Failed) as caught:
        read(root, path)
    assert caught.value.code == "file_gone"


def test_a_root_that_is_not_there_is_no_reason_to_call_its_files_gone(root, way):
    assert reason(root / "unplugged", "a.jpg") == "io_error"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, "unreadable"),
        (errno.EPERM, "unreadable"),
        (errno.EIO, "io_error"),
        (errno.ESTALE, "io_error"),
        (errno.ETIMEDOUT, "io_error"),
        (errno.EMFILE, "io_error"),
        (errno.ENXIO, "not_regular"),
        (errno.EXDEV, "outside_root"),
    ],
)
def test_errors_of_opening_have_their_reasons(root, monkeypatch, code, expected):
    """Injected, as the user root may read everything."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    (root / "a.jpg").write_bytes(b"content")
    monkeypatch.setattr(beneath, "_has_openat2", lambda: True)
    monkeypatch.setattr(beneath, "_call_openat2", fail)
    assert reason(root, "a.jpg") == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_is_unreadable(root, way):
    (root / "a.jpg").write_bytes(b"content")
    (root / "a.jpg").chmod(0)
    assert reason(root, "a.jpg") == "unreadable"


def test_a_kernel_that_keeps_answering_try_again_does_not_hang_us(root, monkeypatch):
    def again(*_):
        raise OSError(errno.EAGAIN, "again")

    monkeypatch.setattr(beneath, "_has_openat2", lambda: True)
    monkeypatch.setattr(beneath, "_call_openat2", again)
    assert reason(root, "a.jpg") == "io_error"


def test_a_drive_that_fails_while_reading_is_an_io_error(root, monkeypatch):
    (root / "a.jpg").write_bytes(b"content")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(originals.os, "read", fail)
    assert reason(root, "a.jpg") == "io_error"


def test_an_empty_file_is_refused(root):
    (root / "a.jpg").touch()
    assert reason(root, "a.jpg") == "empty_file"


def test_a_huge_file_is_refused_before_a_byte_is_read(root, monkeypatch):
    with (root / "sparse.jpg").open("wb") as file:
        file.truncate(5 << 30)
    monkeypatch.setattr(originals.os, "read", lambda *_: pytest.fail("a byte was read"))
    assert reason(root, "sparse.jpg") == "too_many_bytes"


def test_case_a12_a_file_that_grows_while_it_is_read_is_not_taken(root):
    file = root / "a.jpg"
    file.write_bytes(b"first half")

    def grow(_fd):
        with file.open("ab") as writer:
            writer.write(b", second half")

    assert reason(root, "a.jpg", on_open=grow) == "changed_while_reading"


def test_case_a12_a_file_cut_short_while_it_is_read_is_not_taken(root):
    file = root / "a.jpg"
    file.write_bytes(b"content")
    assert reason(root, "a.jpg", on_open=lambda _fd: os.truncate(file, 3)) == "changed_while_reading"


def test_case_a12_a_file_rewritten_at_the_same_size_while_it_is_read_is_not_taken(root):
    file = root / "a.jpg"
    file.write_bytes(b"content")
    os.utime(file, ns=(0, 0))
    assert reason(root, "a.jpg", on_open=lambda _fd: file.write_bytes(b"CONTENT")) == "changed_while_reading"


def test_case_a12_a_file_rewritten_within_one_tick_of_its_time_is_not_taken(root):
    path = root / "a.jpg"
    path.write_bytes(b"first bytes")
    tick = time.time_ns() // 1_000_000_000 * 1_000_000_000
    os.utime(path, ns=(tick, tick))  # a file system that counts in seconds

    def rewrite():
        path.write_bytes(b"other bytes")
        os.utime(path, ns=(tick, tick))

    later = threading.Timer(0.3, rewrite)
    later.start()
    try:
        assert reason(root, b"a.jpg") == "changed_while_reading"
    finally:
        later.join()
    with read_original(os.fsencode(root), b"a.jpg", max_bytes=100) as original:
        assert os.pread(original.fd, 100, 0) == b"other bytes"


def test_an_old_file_is_read_once(root, monkeypatch):
    (root / "a.jpg").write_bytes(b"bytes")
    os.utime(root / "a.jpg", (1e9, 1e9))
    monkeypatch.setattr(originals, "_reads_the_same", lambda *_, **__: pytest.fail("it was read twice"))
    with read_original(os.fsencode(root), b"a.jpg", max_bytes=100) as original:
        assert original.size == 5


def test_what_is_too_large_for_memory_is_copied_to_a_file_without_a_name(root, monkeypatch, tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(originals, "IN_MEMORY_BYTES", 1000)
    content = os.urandom(5000)
    (root / "large.mp4").write_bytes(content)
    os.utime(root / "large.mp4", (1e9, 1e9))
    with read_original(os.fsencode(root), b"large.mp4", max_bytes=10_000) as original:
        assert original.digest == hashlib.sha256(content).hexdigest()
        assert os.pread(original.fd, 10_000, 0) == content
        assert list(folder.iterdir()) == []
        assert os.fstat(original.fd).st_nlink == 0
        with pytest.raises(OSError):
            os.pwrite(original.fd, b"x", 0)


def test_case_a12_a_file_replaced_while_it_is_read_gives_the_old_bytes_under_the_old_digest(root):
    file = root / "a.jpg"
    file.write_bytes(b"old")
    (root / "new").write_bytes(b"new")
    with read_original(
        os.fsencode(root), b"a.jpg", max_bytes=MAX, on_open=lambda _fd: (root / "new").rename(file)
    ) as original:
        assert os.pread(original.fd, MAX, 0) == b"old"
        assert original.digest == hashlib.sha256(b"old").hexdigest()
        assert original.stat.inode != file.stat().st_ino


def test_case_a12_a_known_original_is_lent_only_under_its_own_digest(root):
    (root / "a.jpg").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    with read_verified(os.fsencode(root), b"a.jpg", digest, max_bytes=MAX) as original:
        assert original.digest == digest
    (root / "a.jpg").write_bytes(b"CONTENT")
    with (
        pytest.raises(Failed) as caught,
        read_verified(os.fsencode(root), b"a.jpg", digest, max_bytes=MAX),
    ):
        pytest.fail("other bytes were lent")
    assert caught.value.code == "original_changed"


def test_no_descriptor_stays_open_whatever_happens(root, way):
    (root / "a.jpg").write_bytes(b"content")
    (root / "empty.jpg").touch()
    (root / "link.jpg").symlink_to("../secret.jpg")
    os.mkfifo(root / "pipe.jpg")
    before = open_fds()
    read(root, "a.jpg")
    for path in ("empty.jpg", "link.jpg", "pipe.jpg", "gone.jpg", "d/a.jpg"):
        reason(root, path)
    with pytest.raises(RuntimeError), read_original(os.fsencode(root), b"a.jpg", max_bytes=MAX):
        raise RuntimeError
    assert open_fds() == before


def test_messages_do_not_name_the_file(root):
    with pytest.raises(MirrorRealmError) as caught:
        read(root, "<img onerror>.jpg")
    assert "onerror" not in str(caught.value)
