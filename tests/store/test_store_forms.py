"""What a store promises, of both its forms: a folder and a bucket. What only one of them has is in its own file."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from s3_server import S3Server
from store_home import Home

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.cache import DiskCache
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.local import LocalStore
from mirror_realm_assets.store.opening import open_s3_store
from mirror_realm_assets.store.s3 import S3Store

DATA = b"some bytes" * 1000
SHA = hashlib.sha256(DATA).hexdigest()
ORIGINAL = keys.original_key(SHA)
DERIVED = keys.derived_key("proxy", "cd" * 32, 0, "ef" * 32, "webp")


class Form(Protocol):
    """A store, and what tests do behind its back."""

    store: Store

    def overwrite(self, name: str, data: bytes) -> None: ...

    def names(self) -> set[str]: ...


class Folder:
    def __init__(self, home: Home) -> None:
        self.store: LocalStore = home.store()

    def overwrite(self, name: str, data: bytes) -> None:
        path = self.store.root.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def names(self) -> set[str]:
        root = self.store.root.path
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return {name for name in found if "/" in name}


class Bucket:
    def __init__(self, server: S3Server, cache: Path) -> None:
        client: Any = server.client()
        name = f"b-{uuid.uuid4()}"
        client.create_bucket(Bucket=name)
        opened = open_s3_store(client, name, "media/one", "a-catalog", cache=DiskCache(cache, 10**9))
        assert isinstance(opened, S3Store)
        self.store: S3Store = opened

    def overwrite(self, name: str, data: bytes) -> None:
        self.store.client.put_object(Bucket=self.store.bucket, Key=f"media/one/{name}", Body=data)
        for path in self.store._cache.folder.glob("??/*"):
            path.unlink()

    def names(self) -> set[str]:
        listed = self.store.client.list_objects_v2(Bucket=self.store.bucket, Prefix="media/one/")
        found = {each["Key"].removeprefix("media/one/") for each in listed.get("Contents", ())}
        return {name for name in found if "/" in name}


@pytest.fixture(params=["folder", "bucket"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    if request.param == "folder":
        home: Home = request.getfixturevalue("home")
        return Folder(home)
    server: S3Server = request.getfixturevalue("s3_server")
    return Bucket(server, tmp_path / "cache")


@pytest.fixture
def store(form: Form) -> Iterator[Store]:
    return form.store  # type: ignore[return-value]


def test_what_was_put_is_read_in_every_way(store: Store) -> None:
    made = store.put(ORIGINAL, DATA)
    assert (made.key, made.sha256, made.size) == (ORIGINAL, SHA, len(DATA))
    assert store.read(ORIGINAL, SHA) == DATA
    with store.open(ORIGINAL, SHA) as file:
        assert file.read() == DATA
        assert not file.writable()
    with store.local_path(ORIGINAL, SHA) as path:
        assert path.read_bytes() == DATA
    assert store.exists(ORIGINAL)
    entry = store.head(ORIGINAL)
    assert entry is not None
    assert entry.size == len(DATA)
    assert abs(entry.modified - store.clock()) < timedelta(seconds=5)
    assert list(store.list()) == [entry]


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.read(DERIVED, store.put(DERIVED, b"").sha256) == b""


def test_a_file_is_put_from_a_path_and_from_where_a_stream_stands(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(DATA)
    assert store.put_file(ORIGINAL, tmp_path / "photo").sha256 == SHA
    stream = io.BytesIO(b"skip" + DATA)
    stream.seek(4)
    assert store.put_file(DERIVED, stream).sha256 == SHA
    assert store.read(DERIVED, SHA) == DATA


def test_other_bytes_replace_the_old_ones_and_an_open_reader_keeps_its_own(store: Store, form: Form) -> None:
    store.put(DERIVED, DATA)
    with store.open(DERIVED, SHA) as file:
        made = store.put(DERIVED, b"other")
        assert file.read() == DATA
    assert store.read(DERIVED, made.sha256) == b"other"
    form.overwrite(DERIVED, b"other")  # a bucket's reader has no copy of the old bytes left
    with pytest.raises(Failed) as caught:
        store.read(DERIVED, SHA)
    assert caught.value.code == "store_corrupt"


@pytest.mark.parametrize("at", [0, 5000, len(DATA) - 1])
def test_a_flipped_byte_is_never_handed_out(store: Store, form: Form, at: int) -> None:
    store.put(ORIGINAL, DATA)
    damaged = bytearray(DATA)
    damaged[at] ^= 1
    form.overwrite(ORIGINAL, bytes(damaged))
    with pytest.raises(Failed) as caught:
        store.read(ORIGINAL, SHA)
    assert caught.value.code == "store_corrupt"
    for way in (store.open, store.local_path):
        with pytest.raises(Failed) as caught, way(ORIGINAL, SHA):
            pytest.fail("handed out")
        assert caught.value.code == "store_corrupt"
    store.put(ORIGINAL, DATA)  # writing it again heals it
    assert store.read(ORIGINAL, SHA) == DATA


def test_a_missing_object_is_a_failure_that_names_it(store: Store) -> None:
    assert not store.exists(ORIGINAL)
    assert store.head(ORIGINAL) is None
    with pytest.raises(Failed, match=SHA) as caught:
        store.read(ORIGINAL, SHA)
    assert caught.value.code == "store_failed"
    assert "missing" in str(caught.value)


def test_bytes_under_the_key_of_others_are_refused(store: Store, form: Form) -> None:
    with pytest.raises(ValueError, match="digest"):
        store.put(ORIGINAL, b"other")
    with pytest.raises(Failed) as caught:
        store.put_file(ORIGINAL, io.BytesIO(b"other"))
    assert caught.value.code == "changed_while_reading"
    assert not store.exists(ORIGINAL)
    assert form.names() == set()


def test_a_source_that_cannot_be_read_is_not_the_stores_fault(store: Store, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    for source in (tmp_path / "gone", Broken()):
        with pytest.raises(Failed) as caught:
            store.put_file(DERIVED, source)
        assert caught.value.code == "io_error"


@pytest.mark.parametrize("key", ["", "../x", "/etc/passwd", "store.json", "tmp/x", "derived/x", ORIGINAL + "/.."])
def test_only_keys_are_served(store: Store, key: str) -> None:
    for call in (
        lambda: store.put(key, b""),
        lambda: store.put_file(key, io.BytesIO()),
        lambda: store.read(key, SHA),
        lambda: store.head(key),
        lambda: store.trash(key),
    ):
        with pytest.raises(ValueError, match="not a key"):
            call()


def test_a_listing_knows_only_our_keys_in_order(store: Store, form: Form) -> None:
    made = [keys.derived_key("proxy", f"{n:02x}" * 32, 0, "ef" * 32, "webp") for n in range(12)]
    for key in made:
        store.put(key, key.encode())
    store.put(ORIGINAL, DATA)
    form.overwrite("derived/foreign", b"x")
    assert [entry.key for entry in store.list("derived/")] == made
    assert [entry.key for entry in store.list(made[3][:20])] == [made[3]]
    assert {entry.key for entry in store.list()} == {*made, ORIGINAL}


def test_what_is_trashed_is_gone_unless_somebody_needs_it_and_is_deleted_in_time(store: Store) -> None:
    store.put(ORIGINAL, DATA)
    assert not store.trash(ORIGINAL, unless=lambda _key: True)
    assert store.read(ORIGINAL, SHA) == DATA
    assert store.trash(ORIGINAL)
    assert not store.exists(ORIGINAL) and list(store.list()) == []
    assert not store.trash(ORIGINAL)
    assert store.empty_trash(timedelta(days=1)).count == 0
    found = store.empty_trash(timedelta(seconds=-5), dry_run=True)
    assert (found.count, found.bytes) == (1, len(DATA))
    assert store.empty_trash(timedelta(seconds=-5)).count == 1
    assert store.empty_trash(timedelta(seconds=-5)).count == 0


def test_of_eight_threads_that_put_one_object_all_have_it(store: Store, form: Form) -> None:
    made: list[Any] = []

    def put() -> None:
        made.append(store.put(ORIGINAL, DATA))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    assert form.names() == {ORIGINAL}
    assert store.read(ORIGINAL, SHA) == DATA


def test_unfinished_writes_are_swept_only_when_old(store: Store) -> None:
    assert store.sweep_unfinished(timedelta(0)).count == 0
