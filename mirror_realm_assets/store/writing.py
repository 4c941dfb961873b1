"""Writing an object so that no moment of a crash loses it or leaves it unowned.

What belongs here: the order of a write. What does not: rows (`catalog`) and files (`local`).

    1. intent row, committed            the key is now safe from garbage collection
    2. draft, fsync                     never visible under the key
    3. rename, fsync of the folders     visible and durable, whole
    4. in ONE transaction of the caller: the row that names the object, and the end of the intent

Killed before 3, a draft is left, which the garbage collection sweeps; killed before 4, an object that nothing names,
which it collects once the dead worker's intent is retired. Killed after 4, nothing is lost. Doing it all again is
always right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from mirror_realm_assets.store.interface import Store, StoredObject


class Intents(Protocol):
    """The ledger's announcements of keys; each call is a committed transaction of its own."""

    def begin(self, keys: Sequence[str]) -> Sequence[int]:
        """Announce `keys`; returns the intents' ids."""
        ...

    def end(self, ids: Sequence[int]) -> None:
        """End intents whose write was given up."""
        ...


class Writing:
    """One announced write of some keys.

    Attributes:
        intent_ids: what the caller ends in the transaction that names the objects.
    """

    def __init__(self, store: Store, keys: Sequence[str], intent_ids: Sequence[int]) -> None:
        self.intent_ids = tuple(intent_ids)
        self._store = store
        self._keys = frozenset(keys)

    def put(self, key: str, data: bytes, *, soon_read: bool = False) -> StoredObject:
        """Publish `data` under an announced key; see `Store.put`."""
        return self._store.put(self._announced(key), data, soon_read=soon_read)

    def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        """Publish a file under an announced key; see `Store.put_file`."""
        return self._store.put_file(self._announced(key), source)

    def _announced(self, key: str) -> str:
        if key not in self._keys:
            raise ValueError(f"no intent was begun for {key}")
        return key


class Writer:
    """Writes to one store under one ledger's intents.

    Args:
        store: where the bytes go.
        intents: where keys are announced.
    """

    def __init__(self, store: Store, intents: Intents) -> None:
        self._store = store
        self._intents = intents

    @contextmanager
    def writing(self, keys: Sequence[str]) -> Iterator[Writing]:
        """Announce `keys` and write them.

        Leaving it normally leaves the intents open: the caller ends `intent_ids` in the transaction that names the
        objects, inside or after this block. Leaving it by an error ends them.
        """
        writing = Writing(self._store, keys, self._intents.begin(keys))
        try:
            yield writing
        except BaseException as error:
            try:
                self._intents.end(writing.intent_ids)
            except Exception as second:
                # What went wrong first is what matters; an open intent only delays the collection.
                error.add_note(f"The intents {writing.intent_ids} stay open: {second}")
            raise
