"""A library in a fresh catalog, once on each database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from library import Library
from postgres import Server

from mirror_realm_assets.catalog.engine import Catalog


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)


@pytest.fixture
def own_postgres(postgres_server: Server) -> Iterator[Catalog]:
    """A migrated PostgreSQL catalog that no other test sees: partitions and statistics would stay."""
    name = postgres_server.create()
    opened = Catalog(postgres_server.url(name))
    opened.migrate()
    yield opened
    opened.close()
    postgres_server.drop(name)
