"""The command migrate: the catalog of the home's SQLite file into the database that is configured now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.output import emit, json_option, safe, say, show
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.engine import Catalog


@click.command()
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The SQLite file; by default catalog.sqlite in the home.",
)
@json_option
def migrate(file: Path | None, as_json: bool) -> None:
    """Copy the catalog from SQLite into the empty database that MIRROR_REALM_CATALOG_URL names."""
    from mirror_realm_assets.catalog.engine import Catalog
    from mirror_realm_assets.catalog.moving import move
    from mirror_realm_assets.liveness import HomeLock

    settings = Settings.read()
    old = (file or settings.home / "catalog.sqlite").absolute()
    if not old.is_file():
        raise SetupError("not_found", f"There is no catalog at {old}.", remedy="Name its file with --from.")
    source, target = Catalog(f"sqlite:///{old}"), Catalog(settings.catalog_url)
    if source.url == target.url:
        raise SetupError(
            "invalid_argument",
            f"{old} is the catalog that is configured.",
            remedy="Set MIRROR_REALM_CATALOG_URL to the new database and say it again.",
        )
    try:
        with HomeLock(settings.home / "up.lock"):  # `up` must neither run nor begin
            _refuse_at_work(source)
            counts = move(source, target, _teller(as_json))
        where = target.url.render_as_string()
    finally:
        source.close()
        target.close()
    if as_json:
        emit({"from": str(old), "to": where, "rows": counts})
        return
    for name, count in counts.items():
        show(f"{name}: {count}")
    say(f"The catalog is at {safe(where)} now, row by row as it was. {safe(str(old))} is not used any more.")
    say("Dagster's runs and events stay where they are.")


def _refuse_at_work(source: Catalog) -> None:
    """What an `ingest` records in the old catalog from here on would be lost."""
    from mirror_realm_assets.catalog import workers
    from mirror_realm_assets.liveness import is_alive

    with source.read() as conn:
        alive = [worker for worker in workers.open_workers(conn) if is_alive(worker.process)]
    if alive:
        told = ", ".join(sorted({f"{worker.kind} {worker.process.pid}" for worker in alive}))
        raise SetupError(
            "already_running",
            f"Somebody works with the old catalog: {told}.",
            remedy="Wait until it has ended, or stop it.",
        )


def _teller(as_json: bool) -> Any:
    def tell(table: str, done: int, of: int) -> None:
        if not as_json and (done == of or done % 100_000 == 0):
            say(f"{table}: {done} of {of}")

    return tell


COMMANDS: list[Any] = [migrate]
