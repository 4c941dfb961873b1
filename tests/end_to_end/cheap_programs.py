"""The programs of a home with the toy stages of `cheap_stages`, for tests that kill them many times.

`python cheap_programs.py cli ingest demo` is `mirror-realm ingest demo`; `... up` supervises a code server, a
daemon and a watcher as `mirror-realm up` does, without the webserver and with short pauses; `... daemon run` is
`dagster-daemon`. Every result is told in the file `computed.log` of the home before it is recorded, so that a test can
count what was computed twice.

Importing this module changes the pipeline of the process: no test does.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path

import dagster as dg
from counted_stages import counted_stages

from mirror_realm_assets import pipeline
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.settings import Settings

# Whoever looks for the standard pipeline from now on finds this one.
pipeline.standard_stages = counted_stages


@dg.definitions
def defs() -> dg.Definitions:
    from mirror_realm_assets.definitions import build_defs

    return build_defs()


def run_cli() -> None:
    from mirror_realm_assets.cli.main import main

    main()


def run_daemon() -> None:
    """`dagster-daemon`, with points between its own steps."""
    (program,) = entry_points(group="console_scripts", name="dagster-daemon")

    for name, before, after in (
        ("add_dynamic_partitions", "daemon.before_adding_keys", "daemon.after_adding_keys"),
        ("create_run", "daemon.before_creating_run", "daemon.after_creating_run"),
        ("submit_run", "daemon.before_submitting", "daemon.after_submitting"),
        ("launch_run", "daemon.before_launching", "daemon.after_launching"),
    ):
        _put_points_around(name, before, after)
    program.load()()


def _put_points_around(name: str, before: str, after: str) -> None:
    original = getattr(dg.DagsterInstance, name)

    def with_points(self: dg.DagsterInstance, *args: object, **kwargs: object) -> object:
        point(before)
        done = original(self, *args, **kwargs)
        point(after)
        return done

    setattr(dg.DagsterInstance, name, with_points)


def run_up() -> None:
    from mirror_realm_assets.cli.serve import _recover
    from mirror_realm_assets.ports import socket_folder
    from mirror_realm_assets.supervise import Child, Timing, code_server_of, supervise

    settings = Settings.read()
    me = (sys.executable, str(Path(__file__)))
    env = {**os.environ, "DAGSTER_HOME": str(settings.dagster_home)}
    with socket_folder(settings.home) as sockets:
        code_server, workspace = code_server_of("cheap_programs", env, settings.home, sockets)
        children = (
            code_server,
            Child("daemon", (*me, "daemon", "run", "-w", str(workspace)), env),
            Child("watch", (*me, "cli", "watch"), env),
        )
        code = supervise(
            children,
            home=settings.home,
            before=_recover,
            on_event=lambda event: print(f"{event.name}: {event.message}", flush=True),
            timing=Timing(tick=0.1, leave=4.0, interrupt=3.0, predecessor=10.0, backoff=(0.1,)),
        )
    sys.exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:2] = [sys.argv[1]]
    {"cli": run_cli, "daemon": run_daemon, "up": run_up}[sys.argv[0]]()
