"""A library in a fresh catalog, once on each database."""

from __future__ import annotations

import pytest
from library import Library

from mirror_realm_assets.catalog.engine import Catalog


@pytest.fixture
def library(catalog: Catalog) -> Library:
    return Library(catalog)
