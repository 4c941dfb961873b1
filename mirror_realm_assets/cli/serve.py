"""Commands that keep running: up, watch; and the recovery that `up` starts with."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import dagster_instance, opened
from mirror_realm_assets.cli.output import safe, say
from mirror_realm_assets.cli.pacing import rest
from mirror_realm_assets.errors import MirrorRealmError, SetupError
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.status import SourceStatus
    from mirror_realm_assets.stages.services import Services
    from mirror_realm_assets.supervise import Event

_TELL_SECONDS = 2.0
_READY_SECONDS = 120.0
_RECOVERY_SECONDS = 120.0


@click.command()
@click.option("--host", help="Where the UI binds.  [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the UI; one that is taken is an error.  [default: 3000]"
)
def up(host: str | None, port: int | None) -> None:
    """Run the UI, the daemon and the watcher until Ctrl-C."""
    from mirror_realm_assets import address, installation
    from mirror_realm_assets.ports import require_port, socket_folder, wait_ready
    from mirror_realm_assets.supervise import children_of, supervise

    settings = Settings.read()
    installation.require(settings)
    host, port = host or settings.host, port or settings.port
    url = f"http://{host}:{port}"

    def before() -> None:
        require_port(host, port)
        address.write(settings.home, host, port)
        _recover()

    def announce() -> None:
        if wait_ready(f"{url}/server_info", _READY_SECONDS):
            say(f"[bold]The UI is at {url}[/bold] - assets: {url}/asset-groups - runs: {url}/runs. Ctrl-C ends it.")

    with opened() as (_settings, services), socket_folder(settings.home) as sockets:
        _require_weights(settings, services)
        threading.Thread(target=announce, daemon=True).start()
        teller = _Changes(settings, services)
        code = supervise(
            children_of(settings, host, port, sockets),
            home=settings.home,
            before=before,
            every=[(_TELL_SECONDS, teller.tell)],
            on_event=_say_event,
        )
    _end_leftovers(settings)
    sys.exit(code)


def _end_leftovers(settings: Settings) -> None:
    from mirror_realm_assets.recovery import end_orphaned_tails

    end_orphaned_tails(settings.dagster_home / "storage", older_than=0)


def _require_weights(settings: Settings, services: Services) -> None:
    """The models that default options need, and those that sources use: without them only failures would come."""
    from mirror_realm_assets.catalog import sources
    from mirror_realm_assets.weights.added import find
    from mirror_realm_assets.weights.fetch import require
    from mirror_realm_assets.weights.registry import NEEDED

    for spec in NEEDED:
        require(spec, settings.models_dir)
    with services.catalog.read() as conn:
        active = [source for source in sources.all_sources(conn) if source.state == "active"]
    for source in active:
        try:
            require(find(settings.models_dir, source.policy.embedder, "embed"), settings.models_dir)
            if source.policy.enhance:
                require(find(settings.models_dir, source.policy.enhance_model, "enhance"), settings.models_dir)
        except SetupError as error:
            remedy = f"{error.remedy} Or let the others go on without it: `mirror-realm sources pause {source.name}`."
            raise SetupError(error.code, f"The source {source.name}: {error.message}", remedy=remedy) from error


def _recover() -> None:
    """End what a power cut left, in a process of its own: the supervisor stays small."""
    done = subprocess.run(
        [sys.executable, "-m", "mirror_realm_assets.cli", "recover"], timeout=_RECOVERY_SECONDS, check=False
    )
    if done.returncode:
        say("[yellow]The recovery failed; the reconciler tries again every 10 s.[/yellow]")


def _say_event(event: Event) -> None:
    words = safe(f"{event.name}: {event.message}" if event.name else event.message)
    say(f"[red]{words}[/red]" if event.kind in ("exited", "failed") else words)


class _Changes:
    """Says what happened to the sources since the last look."""

    def __init__(self, settings: Settings, services: Any) -> None:
        self._settings = settings
        self._services = services
        self._last: dict[str, str] = {}
        self._rests_until = 0.0

    def tell(self) -> None:
        """Say what is new. Called every two seconds; counting takes a fiftieth of the time at most."""
        from mirror_realm_assets.catalog import sources, status
        from mirror_realm_assets.pipeline import standard_stages

        began = time.monotonic()
        if began < self._rests_until:
            return
        rules = [stage.rule for stage in standard_stages(self._settings)]
        with self._services.catalog.read() as conn:
            limits = self._services.limits()
            found = {s.name: status.of_source(conn, s, rules, limits) for s in sources.all_sources(conn)}
        self._rests_until = time.monotonic() + rest(time.monotonic() - began, share=0.02, at_least=0.0)
        for name, counts in found.items():
            words = _words(counts)
            if words != self._last.get(name):
                say(f"{safe(name)}: {words}")
            self._last[name] = words


def _words(counts: SourceStatus) -> str:
    """One line: files, batches, searchable, enhanced, and what went wrong."""
    raw, embedded = counts.features["raw_media"], counts.features["embeddings"]
    enhanced = counts.features["enhanced_images"]
    wanted = sum(enhanced[status] for status in ("ok", "pending", "running", "failed"))
    parts = [
        f"{counts.files} files in {counts.batches} {'batch' if counts.batches == 1 else 'batches'}",
        f"{embedded['ok']} searchable",
        f"{enhanced['ok']} of {wanted} enhanced" if wanted else "none to be enhanced",
        f"{counts.index['vectors']} in the index",
    ]
    refused = raw["refused"]
    failed = sum(feature["failed"] for feature in counts.features.values())
    parts.extend(f"{count} {word}" for count, word in ((refused, "refused"), (failed, "failed")) if count)
    if counts.state != "active":
        parts.append(f"{counts.state}: {safe(counts.state_reason or 'by hand')}")
    return ", ".join(parts)


@click.command()
def watch() -> None:
    """Watch all sources and write what is found into the journal."""
    from mirror_realm_assets.catalog import workers
    from mirror_realm_assets.ingest.watch import watch as watch_sources
    from mirror_realm_assets.stages.worker import Worker

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with opened() as (settings, services):
        workers.bury_the_dead(services.catalog)  # a watcher that was killed holds its sources no longer
        beat = {"beat_seconds": settings.heartbeat_seconds, "lease_seconds": settings.lease_seconds}
        with Worker(services.catalog, "watch", None, **beat) as worker:
            watch_sources(services.catalog, settings, worker.id, stop, lambda text: say(safe(text)))


@click.command(hidden=True)
def recover() -> None:
    """End runs whose process is gone; `up` does it at its start."""
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.pools import make_known
    from mirror_realm_assets.recovery import reconcile

    with opened() as (settings, services), dagster_instance(settings) as instance:
        make_known(
            instance, standard_stages(settings), settings
        )  # a home of an earlier release knows none before its first run
        try:
            found = reconcile(instance, services.catalog, runs=not settings.on_cluster, forgive=True)
        except MirrorRealmError as error:
            raise SystemExit(f"{error}") from error
    if found.runs:
        say(f"{len(found.runs)} runs whose process is gone were ended; their work goes on.")


COMMANDS = [up, watch, recover]
