from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.store import keys

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
features = st.text(string.ascii_lowercase + "_", min_size=1, max_size=60)
parts = st.integers(0, keys.MAX_PART)
suffixes = st.sampled_from(sorted(keys.SUFFIXES))
good_keys = st.one_of(
    digests.map(keys.original_key),
    digests.map(keys.shard_key),
    digests.map(keys.segment_key),
    st.builds(keys.derived_key, features, digests, parts, digests, suffixes),
)
D = "ab" * 32


@given(good_keys)
def test_every_key_is_taken_apart_into_what_built_it(key: str) -> None:
    parsed = keys.parse(key)
    assert str(parsed) == key
    assert keys.kind_of(key) is parsed.kind
    assert keys.is_key(key)
    for end in range(len(key) + 1):
        keys.check_prefix(key[:end])


@given(good_keys)
def test_no_key_leaves_the_root_or_surprises_a_file_system(key: str) -> None:
    assert re.fullmatch(r"[0-9a-z_./-]+", key)
    pieces = key.split("/")
    assert all(piece not in ("", ".", "..") and not piece.startswith("-") and len(piece) < 255 for piece in pieces)
    assert pieces[0] in keys.AREAS
    assert len(key) <= 400  # what the ledger's column holds


@given(features, digests, parts, digests, suffixes)
def test_a_derived_key_says_what_it_is_of(feature: str, image: str, part: int, recipe: str, suffix: str) -> None:
    key = keys.derived_key(feature, image, part, recipe, suffix)
    assert key == f"derived/{feature}/{image[:2]}/{image[2:4]}/{image}/{part}-{recipe}.{suffix}"
    assert keys.parse(key) == keys.Key(keys.Kind.DERIVED, image, feature, part, recipe, suffix)
    assert keys.content_digest(key) is None


@given(digests)
def test_other_keys_say_the_digest_of_their_bytes(digest: str) -> None:
    fan = f"{digest[:2]}/{digest[2:4]}/{digest}"
    assert keys.original_key(digest) == f"originals/{fan}"
    assert keys.shard_key(digest) == f"shards/{fan}.parquet"
    assert keys.segment_key(digest) == f"segments/{fan}.faiss"
    for key in (keys.original_key(digest), keys.shard_key(digest), keys.segment_key(digest)):
        assert keys.content_digest(key) == digest


@given(st.one_of(st.text(), st.text("./ab\\\0\n-_% ", max_size=80), good_keys.map(lambda key: key + "\n")))
def test_nothing_else_is_a_key(text: str) -> None:
    assert not keys.is_key(text)
    with pytest.raises(ValueError, match="not a key"):
        keys.parse(text)


@given(good_keys, st.data())
def test_a_changed_key_is_another_key_or_none(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    changed = key[:at] + data.draw(st.sampled_from("/.~A\0 é")) + key[at + 1 :]
    assert changed == key or not keys.is_key(changed)


@pytest.mark.parametrize("digest", ["", D[:-1], D + "a", D.upper(), "../" + D[3:], D[:-1] + "\n", D[:-1] + "٣"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    for build in (keys.original_key, keys.shard_key, keys.segment_key):
        with pytest.raises(ValueError, match="sha256"):
            build(digest)
    with pytest.raises(ValueError, match="sha256"):
        keys.derived_key("proxy", digest, 0, D, "webp")
    with pytest.raises(ValueError, match="sha256"):
        keys.derived_key("proxy", D, 0, digest, "webp")


@pytest.mark.parametrize(
    ("feature", "part", "suffix"),
    [
        ("", 0, "webp"),
        ("..", 0, "webp"),
        ("a/b", 0, "webp"),
        ("Proxy", 0, "webp"),
        ("a" * 61, 0, "webp"),
        ("proxy\n", 0, "webp"),
        ("proxy", -1, "webp"),
        ("proxy", 10**9, "webp"),
        ("proxy", True, "webp"),
        ("proxy", 0, "exe"),
        ("proxy", 0, ".webp"),
        ("proxy", 0, "webp/.."),
        ("proxy", 0, ""),
    ],
)
def test_what_is_no_piece_of_a_derived_key_is_refused(feature: str, part: int, suffix: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        keys.derived_key(feature, D, part, D, suffix)


def test_one_object_has_one_name() -> None:
    good = keys.derived_key("proxy", D, 7, D, "webp")
    for other in (
        good.replace("/7-", "/07-"),
        good.replace("/ab/ab/", "/ab/ac/"),
        good.replace(".webp", ".gif"),
        good.replace("/", "//", 1),
        "./" + good,
    ):
        assert not keys.is_key(other)


@pytest.mark.parametrize("prefix", ["/", "../", "derived/../", "derived//", ".", "a/.b", "Derived", "a b", "a\n"])
def test_what_cannot_begin_a_key_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        keys.check_prefix(prefix)
