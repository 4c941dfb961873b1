"""The resource `library`: catalog, store and models of this process.

What belongs here: building `Services` once a process. What does not: what the services do. The heavy parts are loaded
by the stage that first asks for them, never here.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import dagster as dg

from mirror_realm_assets import installation
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.resources.stores import bucket_client, encryption, open_store
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.services import Services

_lock = threading.Lock()
_open: dict[Settings, Services] = {}


def open_services(settings: Settings) -> Services:
    """The services of this process for these settings, opened once.

    Raises:
        SetupError: when the home was not set up, or the store belongs to another catalog.
    """
    with _lock:
        if settings not in _open:
            installation.require(settings)
            catalog = Catalog(settings.catalog_url)
            identity = catalog.uuid()
            catalog.require_current()
            store = open_store(settings, identity)
            _open[settings] = Services(
                settings,
                catalog,
                store,
                bucket_client=partial(bucket_client, settings),
                bucket_sending=encryption(settings),
            )
        return _open[settings]


def close_services(settings: Settings) -> None:
    """Close what `open_services` opened; models return their memory."""
    with _lock:
        found = _open.pop(settings, None)
    if found is not None:
        found.close()


class LibraryResource(dg.ConfigurableResource["LibraryResource"]):
    """Catalog, store and models.

    Attributes:
        home: replaces `MIRROR_REALM_HOME`; everything else comes from the environment.
    """

    home: str | None = None

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return Settings.at(Path(self.home)) if self.home else Settings.read()

    @property
    def services(self) -> Services:
        """The services of this process."""
        return open_services(self.settings)
