from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from store_home import Ledger

from mirror_realm_assets.store import Store, Writer, keys

KEY = keys.derived_key("proxy", "cd" * 32, 0, "ef" * 32, "webp")
OTHER = keys.derived_key("proxy", "cd" * 32, 1, "ef" * 32, "webp")


def test_an_intent_stands_before_the_first_byte_and_until_the_caller_ends_it(store: Store, ledger: Ledger) -> None:
    with Writer(store, ledger).writing([KEY, OTHER]) as writing:
        assert ledger.announced() == {KEY, OTHER}
        assert not store.exists(KEY)
        made = [writing.put(KEY, b"one"), writing.put_file(OTHER, io.BytesIO(b"two"))]
    assert ledger.announced() == {KEY, OTHER}
    ledger.record(made, writing.intent_ids)
    assert ledger.announced() == set()
    assert ledger.objects() == {KEY: made[0].sha256, OTHER: made[1].sha256}


def test_an_error_ends_the_intent(store: Store, ledger: Ledger) -> None:
    for error in (RuntimeError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Writer(store, ledger).writing([KEY]) as writing:
            writing.put(KEY, b"one")
            raise error
        assert ledger.announced() == set()


def test_a_key_that_was_not_announced_is_refused(store: Store, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no intent"), Writer(store, ledger).writing([KEY]) as writing:
        writing.put(OTHER, b"two")
    assert not store.exists(OTHER)


def test_the_first_error_is_the_one_that_is_raised(store: Store) -> None:
    class Down:
        def begin(self, keys: Sequence[str]) -> list[int]:
            return [1]

        def end(self, ids: Sequence[int]) -> None:
            raise ConnectionError("database gone")

    with pytest.raises(RuntimeError, match="first") as caught, Writer(store, Down()).writing([KEY]):
        raise RuntimeError("first")
    assert "database gone" in caught.value.__notes__[0]
