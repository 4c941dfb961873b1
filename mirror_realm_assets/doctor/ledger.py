"""The catalog, and what only it knows: whose the store is, the sources, the workers.

What belongs here: what takes an answering database.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from mirror_realm_assets import installation, liveness
from mirror_realm_assets.catalog import sources, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, alembic_config
from mirror_realm_assets.doctor.machine import inotify
from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.errors import REASONS, SetupError, clean_reason
from mirror_realm_assets.resources.stores import open_store
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.opening import IDENTITY

_MAX_PLACES = 200_000  # read in about half a second


def open_catalog(url: str) -> Catalog:
    """The catalog at `url`, whether or not anything is there.

    Raises:
        SetupError: `invalid_argument` when no database can be meant by such a URL.
    """
    try:
        return Catalog(url)
    except (sa.exc.ArgumentError, ImportError, ValueError) as error:
        raise SetupError(
            "invalid_argument",
            f"The catalog's URL means no database that we can open: {error}.",
            remedy="Set MIRROR_REALM_CATALOG_URL to sqlite:////PATH or postgresql+psycopg2://USER@HOST/NAME.",
        ) from error


def ledger(settings: Settings) -> list[Finding]:
    """The catalog, and what only it knows: whose the store is, the sources, the workers."""
    catalog = open_catalog(settings.catalog_url)
    try:
        if catalog.is_sqlite:
            _require_sqlite(Path(catalog.url.database or ""))
        catalog_uuid = catalog.uuid()
        found = [_revision(catalog), _store(settings, catalog_uuid)]
        if found[0].level == "ok":
            found += [*_sources(catalog), inotify(_folders(catalog)), _workers(catalog)]
        else:
            found.append(inotify())
        return found
    except (sa.exc.DBAPIError, sqlite3.Error, SetupError) as error:
        if isinstance(error, SetupError) and error.code != "catalog_failed":
            raise
        where = catalog.url.render_as_string()
        cause = error.__cause__ or error
        text = clean_reason(f"{where} cannot be read: {getattr(cause, 'orig', None) or cause}")
        remedy = "Start the database, correct MIRROR_REALM_CATALOG_URL, or restore the catalog from a backup."
        return [rate("catalog", text, fail=remedy)]
    finally:
        catalog.close()


def _require_sqlite(file: Path) -> None:
    if not file.is_file():  # asking SQLite would make it
        raise SetupError("not_initialised", f"There is no catalog at {file}.")
    if installation.on_network(file):
        raise SetupError("sqlite_on_network", f"The catalog {file} is on a network file system.")


def _revision(catalog: Catalog) -> Finding:
    script = ScriptDirectory.from_config(alembic_config())
    known = [revision.revision for revision in script.walk_revisions()]
    with catalog.read() as conn:
        current = MigrationContext.configure(conn).get_current_revision()
    where = catalog.url.render_as_string()
    if current == known[0]:
        return rate("catalog", f"{where}, revision {current}")
    if current in known or current is None:
        found = f"{where} has the older revision {current}; {known[0]} is wanted"
        return rate("catalog", found, fail="Run `mirror-realm init`; it brings the catalog up to date.")
    found = f"{where} has the revision {current}, which this version does not know"
    return rate("catalog", found, fail="Install the newer Mirror Realm that made it.")


def _store(settings: Settings, catalog_uuid: str) -> Finding:
    folder = settings.store_folder
    if folder is not None and not (folder / IDENTITY).exists():
        # Opening it would make it; and an unmounted drive must not be taken for a new store.
        remedy = "Mount the drive if it is on one, else run `mirror-realm init`."
        return rate("store", f"There is no store in {folder}", fail=remedy, group="store")
    try:
        open_store(settings, catalog_uuid, make=False)
    except SetupError as error:
        return rate("store", error.message, fail=error.remedy, group="store")
    return rate("store", f"{settings.store_url}, of this catalog", group="store")


def _sources(catalog: Catalog) -> list[Finding]:
    with catalog.read() as conn:
        registered = sources.all_sources(conn)
    found = []
    for source in registered:
        name = f"source {source.name}"
        # Bytes: a path need not be text.
        if not os.path.isdir(source.root) or not os.access(source.root, os.R_OK | os.X_OK):  # noqa: PTH112
            text = f"The folder {source.root_display} is missing or cannot be read"
            found.append(rate(name, text, fail=REASONS["folder_missing"].remedy, group="sources"))
        elif not source.active:
            text = f"{source.state}: {source.state_reason or 'no reason recorded'}"
            remedy = f"`mirror-realm sources resume {source.name}` goes on with it."
            found.append(rate(name, text, warn=remedy, group="sources"))
        else:
            scanned = f"{source.scanned_at:%Y-%m-%d %H:%M} UTC" if source.scanned_at else "never"
            found.append(rate(name, f"{source.root_display}, last scanned: {scanned}", group="sources"))
    return found or [rate("sources", "none registered", group="sources")]


def _folders(catalog: Catalog) -> int | None:
    """How many folders the files of all sources lie in; None where counting them would take long."""
    loc = t.locations.c
    with catalog.read() as conn:
        rows = conn.execute(sa.select(loc.source_id, loc.path).limit(_MAX_PLACES + 1)).all()
    return len({(row[0], bytes(row[1]).rpartition(b"/")[0]) for row in rows}) if len(rows) <= _MAX_PLACES else None


def _workers(catalog: Catalog) -> Finding:
    with catalog.read() as conn:
        alive = [liveness.is_alive(worker.process) for worker in workers.open_workers(conn)]
    dead = alive.count(False)
    remedy = "`mirror-realm up` puts their work back; so does the next `mirror-realm ingest`."
    found = f"{len(alive) - dead} at work, {dead} ended without saying so"
    return rate("workers", found, warn=remedy if dead else "", group="processes")
