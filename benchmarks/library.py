"""A home of its own for one measurement, and what the daemon does without the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror_realm_assets import installation
from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.services import Services


@dataclass
class Library:
    """One source `bench` and the stage `raw_media`."""

    settings: Settings
    services: Services
    folder: Path

    def scan(self) -> None:
        """One look at the folder by a watcher that knows nothing but the ledger."""
        with self.services.catalog.read() as conn:
            source = sources.get(conn, "bench")
        FolderWatch(self.services.catalog, self.settings, source).scan()

    def work(self) -> int:
        """Form what is due and read it; returns how many files were in batches."""
        stages = (raw_media_stage(self.settings),)
        items = 0
        while True:
            formed = form_batches(self.services.catalog, self.settings, stages, "bench", now_or_never=True)
            if not formed.keys and not formed.drained:
                break
            for key in formed.keys:
                run_stage(stages[0], key, self.services, stages)
                with self.services.catalog.read() as conn:
                    found = batches.get(conn, key)
                items += found.items if found else 0
        with self.services.catalog.read() as conn:
            if batches.pending(conn, "search", ["raw_media"]):
                raise RuntimeError("a batch is not done")
        return items


@contextmanager
def library(
    home: Path, folder: Path, *, catalog_url: str | None = None, options: Mapping[str, str] | None = None
) -> Iterator[Library]:
    """A new library over a folder, closed at the end; its catalog is in the home unless another is named."""
    settings = Settings.at(home, quiet_seconds=0, **({"configured_catalog_url": catalog_url} if catalog_url else {}))
    installation.install(settings)
    catalog = Catalog(settings.catalog_url)
    catalog.migrate()
    catalog.close()
    services = open_services(settings)
    try:
        with services.catalog.write() as conn:
            sources.add(conn, "bench", os.fsencode(folder), options or {})
        yield Library(settings, services, folder)
    finally:
        close_services(settings)
