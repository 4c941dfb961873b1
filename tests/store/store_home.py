"""A real SQLite catalog and a store beside it, both in one folder, and the store's protocols over that catalog."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa

from mirror_realm_assets.catalog import intents, tables
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.store import StoredObject, open_store
from mirror_realm_assets.store.local import LocalStore, no_step


class Ledger:
    """The catalog as the store's protocols want it: `Intents` and `References`."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def begin(self, keys: Sequence[str]) -> list[int]:
        with self.catalog.write() as conn:
            return intents.begin(conn, keys, "worker")

    def end(self, ids: Sequence[int]) -> None:
        with self.catalog.write() as conn:
            intents.end(conn, ids)

    def named(self, keys: Sequence[str]) -> set[str]:
        return intents.named_keys(self.catalog, keys)

    def record(self, made: Sequence[StoredObject], ids: Sequence[int], step: Callable[[str], None] = no_step) -> None:
        with self.catalog.write() as conn:
            for one in made:
                intents.name_object(conn, one.key, "derived", one.sha256, one.size)
                step("row written")
            intents.end(conn, ids)
            step("intents ended")

    def objects(self) -> dict[str, str]:
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(tables.objects.c.key, tables.objects.c.sha256)).all()
        return {row.key: row.sha256 for row in rows}

    def announced(self) -> set[str]:
        with self.catalog.read() as conn:
            return set(conn.execute(sa.select(tables.intents.c.key)).scalars())


class FreeLease:
    """A lease that nobody else wants."""

    def __init__(self) -> None:
        self.renewed = 0

    def __enter__(self) -> FreeLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def renew(self) -> None:
        self.renewed += 1


class Home:
    """One folder with `catalog.sqlite` and `store/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ledger(self) -> Ledger:
        return Ledger(Catalog(f"sqlite:///{self.path / 'catalog.sqlite'}"))

    def store(self, step: Callable[[str], None] = no_step) -> LocalStore:
        ledger = self.ledger()
        try:
            store = open_store(str(self.path / "store"), ledger.catalog.uuid(), step=step)
        finally:
            ledger.catalog.close()
        assert isinstance(store, LocalStore)
        return store

    def copy(self, path: Path) -> Home:
        shutil.copytree(self.path, path)
        return Home(path)

    def age(self, hours: float) -> None:
        """Make everything in the store look `hours` older."""
        for file in (self.path / "store").rglob("*"):
            if file.is_file():
                before = file.stat().st_mtime - hours * 3600
                os.utime(file, (before, before))

    def tree(self) -> dict[str, tuple[int, int]]:
        """Every file of the store but its lock and clock, with size and time."""
        root = self.path / "store"
        return {
            str(file.relative_to(root)): (file.stat().st_size, file.stat().st_mtime_ns)
            for file in root.rglob("*")
            if file.name not in ("lock", "clock")
        }
