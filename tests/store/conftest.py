"""A fresh home for every test, with a catalog that was migrated once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_home import FreeLease, Home, Ledger

from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.store.local import LocalStore


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "catalog.sqlite"
    catalog = Catalog(f"sqlite:///{path}")
    catalog.migrate()
    catalog.close()
    return path


@pytest.fixture
def new_home(migrated: Path, tmp_path: Path) -> Callable[[str], Home]:
    def make(name: str) -> Home:
        (tmp_path / name).mkdir()
        shutil.copy(migrated, tmp_path / name / "catalog.sqlite")
        return Home(tmp_path / name)

    return make


@pytest.fixture
def home(new_home: Callable[[str], Home]) -> Home:
    return new_home("home")


@pytest.fixture
def store(home: Home) -> LocalStore:
    return home.store()


@pytest.fixture
def ledger(home: Home) -> Iterator[Ledger]:
    ledger = home.ledger()
    yield ledger
    ledger.catalog.close()


@pytest.fixture
def lease() -> FreeLease:
    return FreeLease()
