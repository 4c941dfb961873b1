"""What commands start from: the settings, the services of an installed home, the Dagster instance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from mirror_realm_assets.stages.services import Services


@contextmanager
def opened() -> Iterator[tuple[Settings, Services]]:
    """The settings and services of this home.

    Raises:
        SetupError: `not_initialised` and what else keeps a home from working.
    """
    from mirror_realm_assets.resources.library import close_services, open_services

    settings = Settings.read()
    try:
        yield settings, open_services(settings)
    finally:
        close_services(settings)


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of this home."""
    import dagster as dg

    # Dagster reads its home from the environment alone.
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    with dg.DagsterInstance.get() as instance:
        yield instance
