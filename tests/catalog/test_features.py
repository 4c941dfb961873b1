"""Recorded features: attempts, retries by class, two writers at once."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from library import EMBED, RAW, Library, digest_of

from mirror_realm_assets.catalog import features, intents
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import REASONS, RETRY

DIGEST = digest_of("a picture")
RECIPE = Recipe(EMBED, "1")
KEY = FeatureKey(DIGEST, 0, EMBED, RECIPE.digest)


def _write(library: Library, status: str, code: str | None = None, **more):
    with library.catalog.write() as conn:
        return features.write(conn, KEY, RECIPE, Finding(status, code=code, **more.pop("facts", {})), **more)


@pytest.mark.parametrize("code", ["io_error", "out_of_memory", "deadline_exceeded", "internal", "store_failed"])
def test_a_failure_is_tried_again_after_the_delays_of_its_class_and_then_never(library: Library, code: str) -> None:
    policy = REASONS[code].retry
    for attempt in range(1, policy.max_attempts + 1):
        record = _write(library, "failed", code)
        assert record.attempts == attempt
        with library.catalog.read() as conn:
            updated = conn.execute(sa.select(t.features.c.updated_at)).scalar_one()
            assert features.records(conn, [KEY]) == {KEY: record}
        if attempt < policy.max_attempts:
            delay = policy.delays[min(attempt, len(policy.delays)) - 1]
            assert record.retryable
            assert record.next_attempt_at is not None
            assert (record.next_attempt_at - updated).total_seconds() == delay
        else:
            assert not record.retryable
            assert record.next_attempt_at is None


@pytest.mark.parametrize("code", ["cancelled", "original_gone", "store_corrupt", "home_unusable"])
def test_a_failure_of_a_class_without_retries_is_final_at_once(library: Library, code: str) -> None:
    assert not RETRY[REASONS[code].error_class].retryable
    record = _write(library, "failed", code)
    assert (record.attempts, record.retryable, record.next_attempt_at) == (1, False, None)


def test_a_final_failure_is_not_tried_again_whatever_its_class(library: Library) -> None:
    record = _write(library, "failed", "crashed_worker", final=True, crashes=2)
    assert (record.retryable, record.next_attempt_at) == (False, None)
    with library.catalog.read() as conn:
        assert features.records(conn, [KEY])[KEY].crashes == 2


def test_a_success_after_failures_clears_them(library: Library) -> None:
    _write(library, "failed", "io_error", facts={"reason": "The share is gone."})
    _write(library, "ok", facts={"output": {"vector": "a/b"}, "seconds": 0.5})
    with library.catalog.read() as conn:
        row = conn.execute(sa.select(t.features)).mappings().one()
        assert features.outputs(conn, EMBED, RECIPE.digest, [(DIGEST, 0)]) == {(DIGEST, 0): {"vector": "a/b"}}
        assert features.mean_seconds(conn, EMBED) == 0.5
        assert features.mean_seconds(conn, RAW) is None
    assert (row["code"], row["reason"], row["next_attempt_at"], row["retryable"]) == (None, None, None, False)
    assert (row["status"], row["verified"]) == ("ok", True)


def test_only_failures_are_forgotten(library: Library) -> None:
    _write(library, "failed", "store_corrupt")
    library.find(DIGEST, RAW, "refused", code="corrupt")
    with library.catalog.write() as conn:
        assert features.forget_failures(conn, RAW, None) == 0
        assert features.forget_failures(conn, None, None) == 1
        assert conn.execute(sa.select(t.features.c.feature)).scalars().all() == [RAW]
        features.forget(conn, KEY)


def _eight_at_once(action) -> list[Exception]:
    errors: list[Exception] = []
    start = threading.Barrier(8)

    def run(n: int) -> None:
        start.wait()
        try:
            action(n)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_eight_writers_of_one_new_feature_all_count(library: Library) -> None:
    assert _eight_at_once(lambda _n: _write(library, "failed", "out_of_memory")) == []
    with library.catalog.read() as conn:
        assert features.records(conn, [KEY])[KEY].attempts == 8


def test_eight_writers_may_name_one_object_at_once(library: Library) -> None:
    def name(n: int) -> None:
        with library.catalog.write() as conn:
            intents.name_object(conn, "ab/cd", "proxy", f"{n:064}", n)

    assert _eight_at_once(name) == []
    assert intents.named_keys(library.catalog, ["ab/cd", "ef"]) == {"ab/cd"}


def test_records_of_many_thousand_keys_are_found(library: Library) -> None:
    _write(library, "ok")
    keys = [FeatureKey(digest_of(str(n)), 0, EMBED, RECIPE.digest) for n in range(2000)]
    with library.catalog.read() as conn:
        assert list(features.records(conn, [*keys, KEY])) == [KEY]
