"""What a store can do, whatever it is made of.

What belongs here: the interface and the values that cross it. What does not: any form of it (`local`). The interface
asks for no more than an object store gives: publishing one key atomically, reading, listing by prefix, and a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class StoredObject:
    """What was published: the ledger keeps these three with the row that names the object."""

    key: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """What a listing knows of an object: `size` in bytes, `modified` as aware UTC by the store's clock."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Swept:
    """How many things were deleted for good (or would be), and their bytes."""

    count: int = 0
    bytes: int = 0


class Store(Protocol):
    """Bytes under keys of `keys`.

    Every method that takes a key raises `ValueError` when it is not one. What goes wrong outside of us is raised as
    `Failed`: `disk_full`, `store_corrupt` (the bytes differ from their digest) or `store_failed` (missing, unreadable,
    not there), each naming the key.
    """

    @property
    def id(self) -> str:
        """Identity of this store, made when it was first opened."""
        ...

    def put(self, key: str, data: bytes, *, soon_read: bool = False) -> StoredObject:
        """Publish `data` under `key`, atomically and durably: a reader sees all of it or what was there before.

        The same bytes again change nothing; other bytes replace the old ones.

        Args:
            key: the object's key.
            data: its bytes.
            soon_read: whether this machine will read it soon: a remote store keeps a copy here.

        Raises:
            ValueError: also when `key` contains the digest of its bytes and `data` has another.
        """
        ...

    def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        """Publish a file as `put` does, without holding it in memory; a `BinaryIO` is read from where it stands.

        Raises:
            Failed: also `io_error` when the source cannot be read, and `changed_while_reading` when `key` contains the
                digest of its bytes and the source gave others.
        """
        ...

    def read(self, key: str, sha256: str) -> bytes:
        """All bytes of an object, verified."""
        ...

    def open(self, key: str, sha256: str) -> AbstractContextManager[BinaryIO]:
        """An object as a seekable read-only file, verified before it is handed out; a replacement does not touch it."""
        ...

    def local_path(self, key: str, sha256: str) -> AbstractContextManager[Path]:
        """An object as a verified file on this machine, for libraries that take nothing else; read-only."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object under `key`; says nothing about its bytes."""
        ...

    def head(self, key: str) -> Entry | None:
        """Size and age of an object, or None."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key begins with `prefix`; what appears or goes meanwhile may or may not be seen.

        Only keys of our grammar are listed: foreign files in the store's place are left alone.
        """
        ...

    def trash(self, key: str, *, unless: Callable[[str], bool] | None = None) -> bool:
        """Move an object into the trash, where `empty_trash` finds it later; its age there begins now.

        Args:
            key: the object.
            unless: asked at the last moment; the object stays when it answers True. A form with locks lets no `put` of
                the key end between the question and the move; one without asks again after it and brings the object
                back. So an object that a writer announced before is never lost. It must not write to the store.

        Returns:
            Whether it was moved; False when it is not there or `unless` said so.
        """
        ...

    def empty_trash(
        self, older_than: timedelta, *, dry_run: bool = False, needed: Callable[[str], bool] | None = None
    ) -> Swept:
        """Delete for good what has been in the trash longer than `older_than`.

        Args:
            older_than: by the store's clock.
            dry_run: only count.
            needed: a form without locks asks it of each key, and brings back what a collector that died in the middle
                of `trash` has left there.
        """
        ...

    def sweep_unfinished(self, older_than: timedelta, *, dry_run: bool = False) -> Swept:
        """Delete what writers that died left unfinished longer than `older_than` ago; it never was an object."""
        ...

    def clock(self) -> datetime:
        """The store's own time, aware UTC: the one that stamps `Entry.modified`."""
        ...

    def free_bytes(self) -> int | None:
        """Room left for new objects, or None where there is no such limit."""
        ...
