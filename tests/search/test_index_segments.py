"""Segments: what was written is read, and nothing else."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.search.segments import FLAT, Label, decode_segment, encode_segment, measure_recall

LABEL = Label("source", "r" * 64, FLAT, 16, 40)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_segment_gives_back_its_vectors_and_their_order(vectors: np.ndarray) -> None:
    segment = decode_segment(encode_segment(vectors, LABEL, serial="1.0"), LABEL)
    assert np.array_equal(segment.vectors(), vectors)
    assert np.array_equal(segment.vectors(np.array([7, 3])), vectors[[7, 3]])
    scores, positions = segment.nearest(vectors[5:6], 100)
    assert positions[0, 0] == 5
    assert list(positions[0]) == list(np.argsort(-(vectors @ vectors[5]), kind="stable"))
    assert scores.shape == (1, 40)
    assert measure_recall(segment, vectors) == 1.0


def test_equal_vectors_give_equal_bytes_only_under_one_serial(vectors: np.ndarray) -> None:
    first = encode_segment(vectors, LABEL, serial="1.0")
    assert first == encode_segment(vectors, LABEL, serial="1.0")
    assert first != encode_segment(vectors, LABEL, serial="1.1")


@pytest.mark.parametrize(
    "expected",
    [
        Label("another", "r" * 64, FLAT, 16, 40),
        Label("source", "s" * 64, FLAT, 16, 40),
        Label("source", "r" * 64, "hnsw", 16, 40),
        Label("source", "r" * 64, FLAT, 8, 40),
        Label("source", "r" * 64, FLAT, 16, 41),
    ],
)
def test_a_segment_of_another_index_is_refused(vectors: np.ndarray, expected: Label) -> None:
    with pytest.raises(Failed, match="manifest says"):
        decode_segment(encode_segment(vectors, LABEL, serial="1.0"), expected)


def test_any_cut_of_a_segment_is_refused(vectors: np.ndarray) -> None:
    data = encode_segment(vectors, LABEL, serial="1.0")
    for end in [0, 1, 7, 8, 11, 12, 13, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(Failed) as caught:
            decode_segment(data[:end], LABEL)
        assert caught.value.code == "store_corrupt"
        with pytest.raises(Failed):
            decode_segment(data[len(data) - end :], LABEL)


def test_a_body_that_lies_about_its_size_or_kind_is_refused(vectors: np.ndarray) -> None:
    data = encode_segment(vectors, LABEL, serial="1.0")
    body = len(faiss.serialize_index(faiss.IndexFlatIP(16))) + vectors.nbytes
    euclid = faiss.IndexFlatL2(16)
    euclid.add(vectors)
    graph = faiss.IndexHNSWFlat(16, 4, faiss.METRIC_INNER_PRODUCT)
    graph.add(vectors)
    fewer = faiss.IndexFlatIP(16)
    fewer.add(vectors[:10])
    for other in (euclid, graph, fewer):
        with pytest.raises(Failed):
            decode_segment(faiss.serialize_index(other).tobytes() + data[body:], LABEL)
    huge = bytearray(data)
    huge[body - vectors.nbytes - 8 : body - vectors.nbytes] = (2**40).to_bytes(8, "little")
    with pytest.raises(Failed):
        decode_segment(bytes(huge), LABEL)
