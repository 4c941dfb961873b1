"""A small library for tests of stages, assets and sensors: a real home in a temporary folder, without weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mirror_realm_assets import installation
from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog.batches import Batch
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Stage


@dataclass
class Lab:
    """A home with one source `demo` over a folder that tests fill."""

    home: Path
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = Settings.at(self.home, quiet_seconds=0, **self.extra)
        installation.install(self.settings)
        Catalog(self.settings.catalog_url).migrate()
        self.services: Services = open_services(self.settings)
        with self.services.catalog.write() as conn:
            sources.add(conn, "demo", os.fsencode(self.folder), self.options)

    @property
    def catalog(self) -> Catalog:
        return self.services.catalog

    @property
    def source(self) -> Source:
        with self.catalog.read() as conn:
            return sources.get(conn, "demo")

    def picture(self, name: str, number: int = 0, size: tuple[int, int] = (32, 24)) -> Path:
        """A PNG with structure, different for every number."""
        pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        target = self.folder / name
        Image.fromarray(pixels).resize(size).save(target)
        return target

    def scan(self) -> None:
        """Journal what rests in the folder."""
        FolderWatch(self.catalog, self.settings, self.source).scan()

    def form(self, stages: tuple[Stage, ...]) -> list[Batch]:
        """Scan and form every batch."""
        self.scan()
        formed = form_batches(self.catalog, self.settings, stages, "test", now_or_never=True)
        with self.catalog.read() as conn:
            return [batch for key in formed.keys if (batch := batches.get(conn, key))]

    def close(self) -> None:
        close_services(self.settings)
