"""Commands about the installation: init, doctor, gc."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import dagster_instance, opened
from mirror_realm_assets.cli.output import emit, human_bytes, json_option, safe, say, show
from mirror_realm_assets.errors import LeaseLost, SetupError
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.engine import Catalog
    from mirror_realm_assets.catalog.leases import Lease
    from mirror_realm_assets.doctor import Finding
    from mirror_realm_assets.store.gc import GcReport

_LEASE = "store"
_NOT_MADE = "should_autocreate_tables: false"  # of `dagster_home/production.yaml`
_INTENT_AGE = timedelta(hours=24)
_TELL_SECONDS = 1.0
_CONFIG_SAYS = {
    "installed": "installed",
    "unchanged": "ours, up to date",
    "updated": "ours, brought up to date",
    "kept": "edited by you, kept as it is",
}
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
def init(as_json: bool) -> None:
    """Create the home, the catalog, the store and the Dagster instance; safe to repeat."""
    from mirror_realm_assets import installation
    from mirror_realm_assets.doctor import open_catalog
    from mirror_realm_assets.resources.stores import open_store

    settings = Settings.read()
    made = installation.install(settings)
    catalog = open_catalog(settings.catalog_url)
    try:
        _migrate(catalog)
        store = open_store(settings, catalog.uuid())
        where = catalog.url.render_as_string()
    finally:
        catalog.close()
    create_dagster_instance(settings)
    found = {
        "home": str(made.home),
        "catalog": where,
        "store": settings.store_url,
        "store_id": store.id,
        "models": str(made.models),
        "dagster_home": str(made.dagster_home),
        "dagster_yaml": made.config,
    }
    if as_json:
        emit(found)
        return
    for name in ("home", "catalog", "store", "models", "dagster_home"):
        show(f"{name.replace('_', ' ')}: {safe(found[name])}")
    show(f"dagster.yaml: {_CONFIG_SAYS[made.config]}")
    say("Next: mirror-realm models fetch, then mirror-realm sources add NAME --folder PATH")


def _migrate(catalog: Catalog) -> None:
    import sqlite3

    import sqlalchemy as sa
    from alembic.util import CommandError

    where = catalog.url.render_as_string()
    try:
        catalog.migrate()
    except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
        raise SetupError(
            "catalog_failed",
            f"The catalog at {where} cannot be used: {getattr(error, 'orig', None) or error}.",
            remedy="Start the database, correct MIRROR_REALM_CATALOG_URL, or restore the catalog from a backup.",
        ) from error
    except CommandError as error:
        raise SetupError(
            "catalog_failed",
            f"The catalog at {where} was made by another version: {error}.",
            remedy="Install the newer Mirror Realm that made it.",
        ) from error


def create_dagster_instance(settings: Settings) -> None:
    """Make Dagster's databases and our pools now: the programs of `up` would otherwise make them all at once."""
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.pools import make_known

    try:
        _make_tables(settings)
        with dagster_instance(settings) as instance:
            make_known(instance, standard_stages(settings), settings)
    except Exception as error:  # whatever an edited dagster.yaml may lead to
        raise SetupError(
            "invalid_argument",
            f"Dagster cannot start from {settings.dagster_home / 'dagster.yaml'}: {error}",
            remedy="Correct that file, or delete it and run `mirror-realm init`.",
        ) from error


def _make_tables(settings: Settings) -> None:
    """What the installed `dagster.yaml` leaves to us, so that not every process looks for them."""
    text = (settings.dagster_home / "dagster.yaml").read_text(encoding="utf-8")
    if (made := text.replace(_NOT_MADE, "should_autocreate_tables: true")) == text:
        return
    import dagster as dg

    with tempfile.TemporaryDirectory(prefix="mirror-realm-") as folder:
        (Path(folder) / "dagster.yaml").write_text(made, encoding="utf-8")
        with dg.DagsterInstance.from_config(folder):
            pass


@click.command()
@click.pass_context
@json_option
def doctor(ctx: click.Context, as_json: bool) -> None:
    """What is installed, found and missing, and how to mend it; exit code 1 if something keeps work from being done."""
    from mirror_realm_assets.doctor import examine

    found = examine(Settings.read())
    failed = sum(finding.level == "fail" for finding in found)
    if as_json:
        emit({"ok": not failed, "checks": [asdict(finding) for finding in found]})
    else:
        _show_findings(found)
    if failed:
        say(f"[red]{failed} of {len(found)} checks failed.[/]")
        ctx.exit(1)
    worse = sum(finding.level == "warn" for finding in found)
    if not as_json:
        say(f"[yellow]Nothing is broken; {worse} could be better.[/]" if worse else "[green]All is well.[/]")


def _show_findings(found: Sequence[Finding]) -> None:
    """Group by group; the remedy stands below what it mends."""
    group = None
    width = max(len(finding.name) for finding in found)
    for finding in found:
        if finding.group != group:
            group = finding.group
            show(f"[bold]{group}[/]")
        level = f"[{_COLOURS[finding.level]}]{finding.level:<4}[/]"
        show(f"  {level}  {safe(finding.name)}{' ' * (width - len(finding.name))}  {safe(finding.found)}")
        if finding.remedy:
            show(f"  {' ' * (width + 8)}-> {safe(finding.remedy)}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go and change nothing.")
@json_option
def gc(dry_run: bool, as_json: bool) -> None:
    """Clean the store: what nothing names goes to its trash, and for good after 7 days.

    What was made of files that were deleted more than MIRROR_REALM_PURGE_DAYS ago is not named any more.
    """
    from mirror_realm_assets.catalog import intents
    from mirror_realm_assets.catalog.purge import Purged, purge
    from mirror_realm_assets.store.gc import collect

    with opened() as (settings, services):
        retired = 0 if dry_run else intents.retire(services.catalog, _INTENT_AGE)
        purged = Purged() if dry_run else purge(services.catalog, settings.purge_days)
        report = collect(
            services.store,
            _Named(services.catalog),
            lease=_StoreLease(services.catalog, settings),
            dry_run=dry_run,
            on_progress=_Teller().tell,
        )
    if as_json:
        emit(asdict(report) | {"retired_intents": retired, "purged_media": purged.media})
        return
    for key in report.trashed_keys:
        show(safe(key))
    if report.trashed > len(report.trashed_keys):
        show(f"... and {report.trashed - len(report.trashed_keys)} more")
    if purged.media:
        show(f"{purged.media} files that were deleted long ago were purged.")
    would = "would go" if dry_run else "went"
    show(f"{report.scanned} objects, {report.kept} kept.")
    show(f"To the trash {would} {report.trashed} objects, {human_bytes(report.trashed_bytes)}.")
    show(f"For good {would} {report.purged.count} objects of the trash, {human_bytes(report.purged.bytes)};")
    show(f"and {report.unfinished.count} unfinished ones, {human_bytes(report.unfinished.bytes)}.")


class _Named:
    """What the catalog names, for the store's collector."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def named(self, keys: Sequence[str]) -> set[str]:
        from mirror_realm_assets.catalog import intents

        return intents.named_keys(self._catalog, keys)


class _StoreLease:
    """The catalog's lease on the store, held by a worker with a heartbeat."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        from mirror_realm_assets.stages.worker import Worker

        self._catalog = catalog
        self._seconds = settings.lease_seconds
        beat = settings.heartbeat_seconds
        self._worker = Worker(catalog, "gc", None, beat_seconds=beat, lease_seconds=self._seconds)
        self._lease: Lease | None = None

    def __enter__(self) -> _StoreLease:
        from mirror_realm_assets.catalog import leases

        self._worker.__enter__()
        try:
            with self._catalog.write() as conn:
                self._lease = leases.acquire(conn, _LEASE, self._worker.id, self._seconds)
            if self._lease is None:
                raise SetupError(
                    "already_running",
                    "Another `mirror-realm gc` is cleaning this store.",
                    remedy=f"Wait until it has ended; one that was killed is forgotten after {self._seconds:g} s.",
                )
        except BaseException:
            self._worker.__exit__(None, None, None)
            raise
        return self

    def renew(self) -> None:
        from mirror_realm_assets.catalog import leases

        with self._catalog.write() as conn:
            if self._lease is None or not leases.renew(conn, self._lease, self._seconds):
                raise LeaseLost("The lease of the store was lost to another worker.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)  # its end frees what it holds


class _Teller:
    """A line a second on how far the collection is."""

    def __init__(self) -> None:
        self._told_at = 0.0

    def tell(self, report: GcReport) -> None:
        if time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._told_at = time.monotonic()
            say(f"{report.scanned} objects looked at, {report.trashed} without a name")


COMMANDS: list[Any] = [init, doctor, gc]
