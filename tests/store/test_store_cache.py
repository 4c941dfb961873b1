"""Local copies of remote objects: right bytes only, within a limit, and never taken from under a reader."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_realm_assets.store.cache import DiskCache


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Remote:
    """Counts how often something is fetched."""

    def __init__(self) -> None:
        self.fetched = 0

    def read(self, cache: DiskCache, data: bytes) -> bytes:
        def fetch(file: BinaryIO) -> None:
            self.fetched += 1
            file.write(data)

        with cache.lend(sha(data), fetch) as file:
            return file.read()


def test_a_copy_is_fetched_once(tmp_path: Path) -> None:
    cache, remote = DiskCache(tmp_path / "cache", 10**6), Remote()
    assert [remote.read(cache, b"one") for _ in range(3)] == [b"one"] * 3
    assert remote.read(DiskCache(tmp_path / "cache", 10**6), b"one") == b"one"
    assert remote.fetched == 1


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    cache, remote = DiskCache(tmp_path, 10**6), Remote()
    remote.read(cache, b"one")
    cache.path(sha(b"one")).write_bytes(b"on3")
    assert remote.read(cache, b"one") == b"one"
    assert remote.fetched == 2


def test_wrong_bytes_are_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**6)
    with pytest.raises(ValueError, match="not those"), cache.lend(sha(b"one"), lambda file: file.write(b"two")):
        pytest.fail("lent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_fails_while_it_is_fetched_leaves_nothing(tmp_path: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("the network is gone")

    cache = DiskCache(tmp_path, 10**6)
    with pytest.raises(OSError, match="network"), cache.lend(sha(b"one"), fetch):
        pytest.fail("lent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31])
def test_what_is_no_digest_is_no_name(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="sha256"), DiskCache(tmp_path, 10).lend(digest, lambda _file: None):
        pytest.fail("lent")


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache, remote = DiskCache(tmp_path, 1000), Remote()
    first, second, third = (bytes([n]) * 400 for n in range(3))
    for n, data in enumerate((first, second)):
        remote.read(cache, data)
        os.utime(cache.path(sha(data)), (1000 + n,) * 2)
    remote.read(cache, first)  # used again: now the second is the oldest
    remote.read(cache, third)
    assert [cache.path(sha(data)).exists() for data in (first, second, third)] == [True, False, True]


def test_what_is_lent_is_not_evicted(tmp_path: Path) -> None:
    cache, remote = DiskCache(tmp_path, 500), Remote()
    first = b"1" * 400
    with cache.lend(sha(first), lambda file: file.write(first)) as file:
        for n in range(5):
            remote.read(cache, bytes([n]) * 400)
        assert cache.path(sha(first)).exists()
        assert file.read() == first
    remote.read(cache, b"last" * 100)
    assert not cache.path(sha(first)).exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 3000))
def test_whatever_is_read_the_bytes_are_right_and_the_limit_holds(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache, remote = DiskCache(folder, limit), Remote()
    for number in wanted:
        data = bytes([number]) * (number * 50)
        assert remote.read(cache, data) == data
        lent = number * 50
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= max(limit, lent)


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    cache, remote = DiskCache(tmp_path, 2000), Remote()

    def work(begin: int) -> bool:
        pictures = [bytes([(begin * 7 + n) % 9]) * 300 for n in range(60)]
        return all(remote.read(cache, data) == data for data in pictures)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
