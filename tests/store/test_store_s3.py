"""The S3 form against a real server process: what is the same as in a folder, races, parts, the trash without locks."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from store_home import FreeLease, Ledger

from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.store import Writer, keys, uploads
from mirror_realm_assets.store.cache import DiskCache
from mirror_realm_assets.store.gc import collect
from mirror_realm_assets.store.opening import open_s3_store
from mirror_realm_assets.store.s3 import S3Store

DATA = b"some bytes" * 1000
SHA = hashlib.sha256(DATA).hexdigest()
ORIGINAL = keys.original_key(SHA)
DERIVED = keys.derived_key("proxy", "cd" * 32, 0, "ef" * 32, "webp")
CATALOG = "a-catalog"
processes = multiprocessing.get_context("spawn")


@pytest.fixture
def server(s3_server: S3Server) -> S3Server:
    return s3_server


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"b-{uuid.uuid4()}"
    client: Any = server.client()
    client.create_bucket(Bucket=name)
    return name


def opened(server: S3Server, bucket: str, cache: Path, **options: Any) -> S3Store:
    store = open_s3_store(server.client(), bucket, "media/one", CATALOG, cache=DiskCache(cache, 10**9), **options)
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def store(server: S3Server, bucket: str, tmp_path: Path) -> S3Store:
    return opened(server, bucket, tmp_path / "cache")


def forget_copies(store: S3Store) -> None:
    for path in store._cache.folder.glob("??/*"):
        path.unlink()


def test_everything_lies_under_the_prefix(store: S3Store) -> None:
    store.put(ORIGINAL, DATA)
    listed = store.client.list_objects_v2(Bucket=store.bucket)["Contents"]
    assert {found["Key"] for found in listed} == {f"media/one/{ORIGINAL}", "media/one/store.json"}
    assert store.free_bytes() is None


def test_a_pipe_is_put(store: S3Store) -> None:
    reading, writing = os.pipe()
    threading.Thread(target=lambda: (os.write(writing, DATA[:5000]), os.close(writing))).start()
    with os.fdopen(reading, "rb") as pipe:
        made = store.put_file(DERIVED, pipe)
    assert store.read(DERIVED, made.sha256) == DATA[:5000]


@pytest.mark.parametrize("size", [uploads.PART_BYTES, uploads.PART_BYTES + 1, 3 * uploads.PART_BYTES - 7])
def test_a_large_file_goes_in_parts(store: S3Store, size: int) -> None:
    data = random.Random(size).randbytes(size)  # noqa: S311
    key = keys.original_key(hashlib.sha256(data).hexdigest())
    made = store.put_file(key, io.BytesIO(data))
    assert (made.size, store.read(key, made.sha256) == data) == (size, True)
    assert store.put_file(key, io.BytesIO(data)) == made
    assert store.trash(key)
    assert store.read(key, made.sha256) == data


def test_bytes_under_the_key_of_others_are_refused(store: S3Store) -> None:
    with pytest.raises(ValueError, match="digest"):
        store.put(ORIGINAL, b"other")
    with pytest.raises(Failed) as caught:
        store.put_file(ORIGINAL, io.BytesIO(b"other"))
    assert caught.value.code == "changed_while_reading"
    assert not store.exists(ORIGINAL)


class Changing(io.BytesIO):
    """A file that is another one when it is read the second time."""

    begun = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.begun += offset == 0
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        return data.replace(b"a", b"b") if self.begun else data


@pytest.mark.parametrize("size", [1000, uploads.PART_BYTES + 5])
def test_a_file_that_changes_while_it_is_sent_is_not_stored(store: S3Store, size: int) -> None:
    data = b"a" * size
    key = keys.original_key(hashlib.sha256(data).hexdigest())
    with pytest.raises(Failed) as caught:
        store.put_file(key, Changing(data))
    assert caught.value.code == "changed_while_reading"
    assert not store.exists(key)
    assert store.sweep_unfinished(timedelta(0), dry_run=True).count == 0


# --- races ---


def _race(url: str, bucket: str, folder: str, number: int, barrier: Any, won: Any) -> None:
    server = S3Server.__new__(S3Server)
    server.url = url
    sent: list[int] = []
    client: Any = server.client()
    client.meta.events.register("after-call.s3.PutObject", lambda parsed, **_: sent.append(_status(parsed)))
    store = open_s3_store(client, bucket, "media/one", CATALOG, cache=DiskCache(Path(folder) / str(number), 10**9))
    sent.clear()
    data = b"race" * 100_000
    key = keys.original_key(hashlib.sha256(data).hexdigest())
    barrier.wait(60)
    store.put(key, data)
    won.put((sent.count(200), store.read(key, hashlib.sha256(data).hexdigest()) == data))


def _status(parsed: dict[str, Any]) -> int:
    return int(parsed["ResponseMetadata"]["HTTPStatusCode"])


def test_of_eight_racing_writers_exactly_one_makes_the_object(server: S3Server, bucket: str, tmp_path: Path) -> None:
    opened(server, bucket, tmp_path / "cache")
    barrier, won = processes.Barrier(8), processes.Queue()
    racing = [
        processes.Process(target=_race, args=(server.url, bucket, str(tmp_path), n, barrier, won)) for n in range(8)
    ]
    for process in racing:
        process.start()
    answers = [won.get(timeout=90) for _ in racing]
    for process in racing:
        process.join(30)
    assert sum(made for made, _read in answers) == 1
    assert all(read for _made, read in answers)


def test_eight_who_open_a_new_store_open_one(server: S3Server, bucket: str, tmp_path: Path) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: ids.append(opened(server, bucket, tmp_path / str(n)).id)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ids) == 8
    assert len(set(ids)) == 1


# --- the trash, and garbage ---


def test_the_trash_gives_back_what_is_asked_for(store: S3Store) -> None:
    store.put(ORIGINAL, DATA)
    assert store.trash(ORIGINAL)
    assert not store.exists(ORIGINAL)
    assert list(store.list()) == []
    assert store.empty_trash(timedelta(hours=1)).count == 0
    assert store.read(ORIGINAL, SHA) == DATA
    assert store.exists(ORIGINAL)


def test_the_trash_is_emptied_but_for_what_is_needed(store: S3Store) -> None:
    store.put(ORIGINAL, DATA)
    store.put(DERIVED, b"other")
    assert store.trash(ORIGINAL)
    assert store.trash(DERIVED)
    time.sleep(1.1)  # the service's clock has whole seconds
    needed = {ORIGINAL}
    assert store.empty_trash(timedelta(0), dry_run=True, needed=needed.__contains__).count == 1
    assert store.empty_trash(timedelta(0), needed=needed.__contains__).bytes == 5
    assert store.exists(ORIGINAL)
    assert not store.exists(DERIVED)
    forget_copies(store)
    with pytest.raises(Failed, match="missing"):
        store.read(DERIVED, hashlib.sha256(b"other").hexdigest())


def test_what_is_needed_the_moment_after_the_move_comes_back(store: S3Store) -> None:
    store.put(ORIGINAL, DATA)
    answers = iter([False, True])
    assert not store.trash(ORIGINAL, unless=lambda _key: next(answers))
    assert store.exists(ORIGINAL)
    assert not store.trash(ORIGINAL, unless=lambda _key: True)
    assert store.exists(ORIGINAL)


@pytest.mark.parametrize("at", ["copied to the trash", "moved to the trash"])
@pytest.mark.parametrize("dies", [True, False])
def test_a_writer_that_counts_on_an_object_while_it_is_collected_loses_nothing(
    server: S3Server, bucket: str, tmp_path: Path, ledger: Ledger, lease: FreeLease, at: str, dies: bool
) -> None:
    """The collector finds an object that nobody needs; in the middle of its move a writer finds it too."""
    writer = Writer(opened(server, bucket, tmp_path / "a"), ledger)
    opened(server, bucket, tmp_path / "a").put(DERIVED, DATA)

    def step(name: str) -> None:
        if name != at or ledger.objects():
            return
        with writer.writing([DERIVED]) as writing:
            made = writing.put(DERIVED, DATA)
        ledger.record([made], writing.intent_ids)
        if dies:
            raise KeyboardInterrupt

    collecting = opened(server, bucket, tmp_path / "b", step=step)
    time.sleep(1.1)
    try:
        collect(collecting, ledger, lease=lease, min_age=timedelta(0))
    except KeyboardInterrupt:
        assert dies
    reader = opened(server, bucket, tmp_path / "c")
    assert reader.read(DERIVED, SHA) == DATA
    time.sleep(1.1)
    collect(collecting, ledger, lease=lease, min_age=timedelta(0), trash_age=timedelta(0))
    assert opened(server, bucket, tmp_path / "d").read(DERIVED, SHA) == DATA


def test_only_what_nobody_names_is_collected(store: S3Store, ledger: Ledger, lease: FreeLease) -> None:
    with Writer(store, ledger).writing([ORIGINAL]) as writing:
        made = writing.put(ORIGINAL, DATA)
    ledger.record([made], writing.intent_ids)
    store.put(DERIVED, b"nobody's")
    time.sleep(1.1)
    report = collect(store, ledger, lease=lease, min_age=timedelta(0))
    assert report.trashed_keys == (DERIVED,)
    assert collect(store, ledger, lease=lease).trashed == 0
    assert store.exists(ORIGINAL)


def test_parts_of_dead_writers_are_swept(store: S3Store) -> None:
    name = {"Bucket": store.bucket, "Key": store._name(ORIGINAL)}
    upload = store.client.create_multipart_upload(**name)
    store.client.upload_part(**name, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 1000)
    # This server says of each that it was begun in 2010.
    assert store.sweep_unfinished(timedelta(days=365 * 30)).count == 0
    assert store.sweep_unfinished(timedelta(hours=1), dry_run=True).count == 1
    swept = store.sweep_unfinished(timedelta(hours=1))
    assert (swept.count, swept.bytes) == (1, 1000)
    assert store.sweep_unfinished(timedelta(hours=1)).count == 0


# --- whose it is, and a service that is away ---


def test_a_store_of_another_catalog_is_refused(server: S3Server, bucket: str, tmp_path: Path) -> None:
    opened(server, bucket, tmp_path)
    with pytest.raises(SetupError) as caught:
        open_s3_store(server.client(), bucket, "media/one", "another", cache=DiskCache(tmp_path, 10))
    assert caught.value.code == "store_mismatch"
    other = open_s3_store(server.client(), bucket, "media/two", "another", cache=DiskCache(tmp_path, 10))
    assert other.id


def test_a_bucket_with_other_things_is_no_store(server: S3Server, bucket: str, tmp_path: Path) -> None:
    client: Any = server.client()
    client.put_object(Bucket=bucket, Key="media/one/holiday.jpg", Body=b"x")
    with pytest.raises(SetupError, match="holiday"):
        opened(server, bucket, tmp_path)


def test_a_bucket_that_is_not_there_is_said(server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="NoSuchBucket") as caught:
        opened(server, "no-such-bucket", tmp_path)
    assert caught.value.code == "store_failed"


def test_a_service_that_is_away_is_a_failure_that_is_tried_again(store: S3Store) -> None:
    away: Any = S3Server.__new__(S3Server)
    away.url = "http://127.0.0.1:1"
    store.client = away.client(connect_timeout=1)
    store._uploads = uploads.Uploads(store.client, store.bucket, {}, lambda _step: None)
    store._cache = DiskCache(store._cache.folder / "empty", 10**6)
    calls: list[Callable[[], object]] = [
        lambda: store.put(ORIGINAL, DATA),
        lambda: store.read(ORIGINAL, SHA),
        lambda: list(store.list()),
        store.clock,
    ]
    for call in calls:
        with pytest.raises(Failed) as caught:
            call()
        assert caught.value.code == "store_failed"


def test_what_is_sent_says_how_it_is_encrypted(server: S3Server, bucket: str, tmp_path: Path) -> None:
    store = opened(server, bucket, tmp_path, sending={"ServerSideEncryption": "AES256"})
    store.put(ORIGINAL, DATA)
    store.trash(ORIGINAL)
    data = b"y" * (uploads.PART_BYTES + 1)
    large = keys.original_key(hashlib.sha256(data).hexdigest())
    store.put_file(large, io.BytesIO(data))
    for name in (f"trash/{ORIGINAL}", large):
        head = store.client.head_object(Bucket=bucket, Key=store._name(name))
        assert head["ServerSideEncryption"] == "AES256"
