"""The command group, and how errors end a command."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from mirror_realm_assets.cli import (
    duplicates,
    export,
    history,
    index,
    look,
    migrate,
    models,
    picture,
    prune,
    search,
    serve,
    setup,
    sources,
    work,
)
from mirror_realm_assets.cli.output import safe, say
from mirror_realm_assets.errors import Failed, MirrorRealmError, as_error
from mirror_realm_assets.weights.hardware import start_environment

_STARTED_AGAIN = "_MIRROR_REALM_STARTED_AGAIN"
_RUN_NETWORKS = frozenset({"enhance", "ingest"})  # in the command's own process


class _Commands(click.Group):
    """Turns our errors into one sentence and exit code 1; usage errors stay 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MirrorRealmError as error:
            _end(error)
        except OSError as error:
            if error.errno == 32:  # EPIPE: the reader of our output has gone, as `| head` does
                sys.exit(0)
            typed = as_error(error)
            if typed.code == "internal":
                raise
            _end(typed)
        except Exception as error:
            # Imported by whoever raised it; naming the class here would make every `--help` pay for SQLAlchemy.
            if type(error).__module__.startswith("sqlalchemy"):
                _end(_of_catalog(error))
            raise


def _of_catalog(error: Exception) -> MirrorRealmError:
    cause = getattr(error, "orig", None) or error
    if "disk is full" in str(cause):
        return Failed("disk_full", f"The catalog cannot be written: {cause}.")
    return Failed("catalog_failed", f"The catalog does not answer: {cause}.")


def _end(error: MirrorRealmError) -> NoReturn:
    say(f"[red]Error:[/red] {safe(error.message)} {safe(error.remedy)}")
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mirror-realm")
def cli() -> None:
    """Mirror Realm: folders become enhanced, searchable media."""


for module in (
    setup,
    sources,
    work,
    look,
    history,
    duplicates,
    search,
    index,
    models,
    picture,
    export,
    prune,
    migrate,
    serve,
):
    for command in module.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """Entry point of `mirror-realm`."""
    # glibc and OpenMP have read the environment by now, so a command that runs networks itself starts once more: 0.2 s
    # for a third of the time.
    again = os.environ.pop(_STARTED_AGAIN, None) is not None  # then what is missing all the same is kept from us
    missing = start_environment() and sys.platform == "linux" and not _RUN_NETWORKS.isdisjoint(sys.argv[1:2])
    if missing and not again:
        os.environ[_STARTED_AGAIN] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same program, no shell
    cli()
