"""Embedding shards: exact, the same bytes for the same rows, and damage is named."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store.interface import Store, StoredObject
from mirror_realm_assets.store.keys import shard_key
from mirror_realm_assets.store.opening import open_store
from mirror_realm_assets.store.shards import ByteCache, ShardCache, ShardRow, decode_shard, encode_shard, vectors_of

RECIPE = "f" * 64


def _rows(count: int, dim: int = 32, seed: int = 0) -> list[ShardRow]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digests = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(count)]
    return [ShardRow(digest, n % 3, vectors[n].astype(np.float32)) for n, digest in enumerate(digests)]


@pytest.fixture
def shards(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "shards"), "catalog")


def _put(store: Store, rows: list[ShardRow], recipe: str = RECIPE) -> StoredObject:
    data = encode_shard(rows, model="toy", recipe=recipe)
    return store.put(shard_key(hashlib.sha256(data).hexdigest()), data)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_a_shard_gives_back_its_rows_in_half_precision(count: int) -> None:
    rows = _rows(count)
    shard = decode_shard(encode_shard(rows, model="toy", recipe=RECIPE))
    assert (shard.model, shard.recipe, shard.dim) == ("toy", RECIPE, 32)
    assert shard.image_digests == tuple(row.image_digest for row in rows)
    assert shard.parts == tuple(row.part for row in rows)
    assert shard.vectors.dtype == np.float32
    assert np.array_equal(shard.vectors, np.stack([row.vector for row in rows]).astype(np.float16).astype(np.float32))


def test_equal_rows_give_equal_bytes() -> None:
    assert encode_shard(_rows(50), model="toy", recipe=RECIPE) == encode_shard(_rows(50), model="toy", recipe=RECIPE)
    assert encode_shard(_rows(50), model="toy", recipe=RECIPE) != encode_shard(_rows(50), model="top", recipe=RECIPE)


def test_an_ordinary_parquet_reader_reads_a_shard() -> None:
    table = parquet.read_table(io.BytesIO(encode_shard(_rows(3), model="toy", recipe=RECIPE)))
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 32)
    assert table.schema.metadata[b"model"] == b"toy"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 3.0])
def test_a_vector_that_is_not_of_length_one_is_the_models_failure(bad: float) -> None:
    rows = [*_rows(2), ShardRow("a" * 64, 0, np.full(32, bad, np.float32))]
    with pytest.raises(Failed) as caught:
        encode_shard(rows, model="toy", recipe=RECIPE)
    assert caught.value.code == "model_failed"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [*_rows(2), _rows(1)[0]],
        [*_rows(2), *_rows(1, 16, seed=1)],
        [ShardRow("../x", 0, _rows(1)[0].vector)],
        [ShardRow("a" * 64, 0, _rows(2)[0].vector.reshape(1, -1))],
    ],
)
def test_rows_that_make_no_shard_are_refused(rows: list[ShardRow]) -> None:
    with pytest.raises(ValueError):
        encode_shard(rows, model="toy", recipe=RECIPE)


def test_any_cut_or_changed_length_is_corrupt() -> None:
    data = encode_shard(_rows(5), model="toy", recipe=RECIPE)
    for broken in (b"", data[:-1], data[1:], data[: len(data) // 2], b"PAR1PAR1", data + b"x"):
        with pytest.raises(Failed) as caught:
            decode_shard(broken)
        assert caught.value.code == "store_corrupt"


def _table(data: bytes) -> pa.Table:
    return parquet.read_table(io.BytesIO(data))


def _without_vectors(table: pa.Table) -> pa.Table:
    return table.drop_columns(["vector"])


def _of_another_version(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"version": b"2"})


def _of_another_length(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"dim": b"16"})


def _without_facts(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({b"version": b"1"})


def _without_a_digest(table: pa.Table) -> pa.Table:
    return table.set_column(0, "image_digest", pa.array([None] * table.num_rows, pa.string()))


def _with_zeros(table: pa.Table) -> pa.Table:
    flat = pa.array(np.zeros(32 * table.num_rows, np.float16))
    return table.set_column(2, "vector", pa.FixedSizeListArray.from_arrays(flat, 32))


def _empty(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


@pytest.mark.parametrize(
    "change",
    [
        _without_vectors,
        _of_another_version,
        _of_another_length,
        _without_facts,
        _without_a_digest,
        _with_zeros,
        _empty,
    ],
)
def test_another_parquet_file_is_no_shard(change: Callable[[pa.Table], pa.Table]) -> None:
    out = io.BytesIO()
    parquet.write_table(change(_table(encode_shard(_rows(5), model="toy", recipe=RECIPE))), out)
    with pytest.raises(Failed) as caught:
        decode_shard(out.getvalue())
    assert caught.value.code == "store_corrupt"


def test_vectors_come_in_the_order_asked_for_and_each_shard_is_read_once(
    shards: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _rows(4), _rows(3, seed=1)
    a, b = _put(shards, first), _put(shards, second)
    reads: list[str] = []
    real = type(shards).read
    monkeypatch.setattr(type(shards), "read", lambda self, key, sha: reads.append(key) or real(self, key, sha))
    refs = [(a.key, a.sha256, 3), (b.key, b.sha256, 0), (a.key, a.sha256, 0), (b.key, b.sha256, 2)]
    wanted = np.stack([first[3].vector, second[0].vector, first[0].vector, second[2].vector])
    for cache, expected in ((ShardCache(0), 2), (ShardCache(10**6), 2)):
        reads.clear()
        for _ in range(2):
            found = vectors_of(shards, refs, cache=cache)
            assert np.array_equal(found, wanted.astype(np.float16).astype(np.float32))
            assert len(reads) == expected
            expected += 2 if not cache.held_bytes else 0


def test_a_row_that_is_not_what_was_recorded_is_corrupt(shards: Store) -> None:
    rows = _rows(4)
    a = _put(shards, rows)
    short = _put(shards, _rows(2, 16, seed=1))
    cache = ShardCache(10**6)
    subjects = [(rows[1].image_digest, rows[1].part)]
    assert len(vectors_of(shards, [(a.key, a.sha256, 1)], cache=cache, subjects=subjects, recipe=RECIPE)) == 1
    wrong: list[tuple[list[tuple[str, str, int]], dict[str, object]]] = [
        ([(a.key, a.sha256, 4)], {}),
        ([(a.key, a.sha256, -1)], {}),
        ([(a.key, a.sha256, 2)], {"subjects": subjects}),
        ([(a.key, a.sha256, 1)], {"recipe": "e" * 64}),
        ([(a.key, a.sha256, 1), (short.key, short.sha256, 0)], {}),
        ([(a.key, "0" * 64, 1)], {}),
    ]
    for refs, options in wrong:
        with pytest.raises(Failed) as caught:
            vectors_of(shards, refs, cache=cache, **options)  # type: ignore[arg-type]
        assert caught.value.code == "store_corrupt"


def test_a_cache_holds_what_was_used_last_up_to_its_bytes() -> None:
    cache: ByteCache[str, str] = ByteCache(10)
    loads: list[str] = []

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: (loads.append(key) or key.upper(), size))

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == ["A", "B", "A", "C", "A", "B"]
    assert loads == ["a", "b", "c", "b"]
    assert get("huge", 11) == "HUGE"
    assert cache.held_bytes == 8
    cache.clear()
    assert cache.held_bytes == 0
