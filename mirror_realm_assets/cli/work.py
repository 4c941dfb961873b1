"""Commands that work: ingest, retry."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mirror_realm_assets.cli.library import dagster_instance, opened
from mirror_realm_assets.cli.output import emit, human_bytes, human_seconds, json_option, safe, say
from mirror_realm_assets.cli.pacing import rest
from mirror_realm_assets.errors import SetupError

if TYPE_CHECKING:
    from mirror_realm_assets.catalog.sources import Source
    from mirror_realm_assets.catalog.status import SourceStatus
    from mirror_realm_assets.ingest.one_scan import Scanned
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

_RESTLESS_SECONDS = 30.0  # a file that still grows after so long is left to the next ingest
_POLL_SECONDS = 1.0
_TELL_SECONDS = 5.0


@click.command()
@click.argument("name")
@click.option("--strict", is_flag=True, help="Exit with 3 when some files failed or were refused.")
@click.option("--form-only", is_flag=True, help="Scan, form the batches, and print their keys; run none of them.")
@json_option
def ingest(name: str, strict: bool, form_only: bool, as_json: bool) -> None:
    """Scan a source now and do everything that is pending, in this process.

    Beside a running `mirror-realm up` it scans, forms the batches and waits for them.
    """
    if form_only:
        if strict:
            raise click.UsageError(
                "--strict is about what became of the files, and --form-only does nothing with them."
            )
        _form_only(name, as_json)
        return
    from mirror_realm_assets import liveness

    with opened() as (settings, services):
        source = _active(services, name)
        scanned = _scan(settings, services, source)
        daemon = liveness.held(settings.home / "up.lock")
        _form(settings, services, source)
        with _progress(settings, services, name):
            if daemon is None:
                errors = _run_here(settings, services, name)
            else:
                say(f"mirror-realm up is running (pid {daemon}): it does the work, this waits.")
                errors = _wait(settings, services, name)
        _read_sidecars(services, source)
        found = _status(settings, services, name)
    _tell_end(name, found, scanned)
    for error in errors:
        say(f"[red]A run failed:[/red] {safe(error)}")
    if as_json:
        emit({"source": name, "scanned": scanned.files, "errors": errors, **found.as_json()})
    if errors:
        raise SystemExit(1)
    bad = sum(counts["failed"] + counts["refused"] for counts in found.features.values())
    if strict and bad:
        raise SystemExit(3)


def _form_only(name: str, as_json: bool) -> None:
    from mirror_realm_assets.local_runs import make_known

    with opened() as (settings, services):
        source = _active(services, name)
        scanned = _scan(settings, services, source)
        _form(settings, services, source)
        _read_sidecars(services, source)
        with dagster_instance(settings) as instance:
            batches = make_known(settings, services, instance, name)
    if as_json:
        found = [{"key": key, "lanes": lanes} for key, lanes in batches.items()]
        emit({"source": name, "scanned": scanned.files, "batches": found})
        return
    for key in batches:
        click.echo(key)


def _active(services: Services, name: str) -> Source:
    from mirror_realm_assets.catalog import sources

    with services.catalog.read() as conn:
        source = sources.get(conn, name)
    if not source.active:
        raise SetupError(
            "invalid_argument",
            f"Source {name} is {source.state}: {source.state_reason or 'by hand'}.",
            remedy=f"Run `mirror-realm sources resume {name}`.",
        )
    return source


def _scan(settings: Settings, services: Services, source: Source) -> Scanned:
    """Look until every file rests, or long enough; a file rests when two looks saw the same."""
    from mirror_realm_assets.ingest.folder_watch import FolderWatch
    from mirror_realm_assets.ingest.one_scan import Scanned

    watched = FolderWatch(services.catalog, settings, source)
    total = Scanned()
    end = time.monotonic() + _RESTLESS_SECONDS
    while True:
        found = watched.scan()
        total = total.then(found)
        if not found.restless or time.monotonic() >= end:
            break
        time.sleep(settings.quiet_seconds + 0.05)
    say(f"{total.files} files seen, {total.changes}.")
    if total.restless:
        say(f"{total.restless} files are still being written; they are taken when they rest.")
    if total.trouble:
        say(f"[yellow]{safe(source.name)}: {safe(total.trouble)}[/yellow]")
    return total


def _read_sidecars(services: Services, source: Source) -> None:
    """Those that the scan had no time for: pictures went first."""
    from mirror_realm_assets.ingest.sidecar_watch import SidecarWatch

    read = SidecarWatch(services.catalog, source.id).read(source.root, math.inf)
    if read:
        say(f"{read} more sidecars read.")


def _form(settings: Settings, services: Services, source: Source) -> None:
    from mirror_realm_assets.ingest.batching import Former
    from mirror_realm_assets.pipeline import standard_stages

    former = services.held("former", lambda: Former(services.catalog))
    stages = standard_stages(settings)
    # A sensor's tick may be forming right now; whoever comes second finds nothing left to form.
    for _try in range(20):
        formed = former.form(settings, stages, source_id=source.id, now_or_never=True, requested_by="cli")
        if formed.leased:
            return
        time.sleep(0.5)


def _run_here(settings: Settings, services: Services, name: str) -> list[str]:
    from mirror_realm_assets.local_runs import run_source
    from mirror_realm_assets.recovery import reconcile

    with dagster_instance(settings) as instance:
        reconcile(instance, services.catalog, runs=not settings.on_cluster)
        return run_source(settings, services, instance, name, lambda text: say(safe(text))).errors


def _wait(settings: Settings, services: Services, name: str) -> list[str]:
    from mirror_realm_assets import liveness

    while _is_unfinished(settings, services, name):
        if liveness.held(settings.home / "up.lock") is None:
            return ["mirror-realm up has ended; run the ingest again."]
        if (source := _source(services, name)).state != "active":
            return [f"Source {name} is {source.state}: {source.state_reason}"]
        time.sleep(_POLL_SECONDS)
    return []


def _is_unfinished(settings: Settings, services: Services, name: str) -> bool:
    """Whether anything waits or is being done; enhancement that rests for want of space does not count."""
    from mirror_realm_assets.catalog import batches, files
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.stages.stage import Lane, lane_features

    stages = standard_stages(settings)
    free = services.store.free_bytes()
    rests = free is not None and free < settings.low_space_bytes
    lanes: list[Lane] = ["search", "archive"] if rests else ["search", "enhance", "archive"]
    features = [feature for lane in lanes for feature in lane_features(stages, lane)]
    with services.catalog.read() as conn:
        source = _source(services, name)
        return bool(
            files.waiting(conn, source.id, 1, max_file_bytes=settings.max_file_bytes)
            or batches.has_open(conn, source.id, features)
        )


def _source(services: Services, name: str) -> Source:
    from mirror_realm_assets.catalog import sources

    with services.catalog.read() as conn:
        return sources.get(conn, name)


def _status(settings: Settings, services: Services, name: str) -> SourceStatus:
    from mirror_realm_assets.catalog import sources, status
    from mirror_realm_assets.pipeline import standard_stages

    with services.catalog.read() as conn:
        source = sources.get(conn, name)
        rules = [stage.rule for stage in standard_stages(settings)]
        return status.of_source(conn, source, rules, services.limits())


@contextmanager
def _progress(settings: Settings, services: Services, name: str) -> Iterator[None]:
    """A line every few seconds while the work goes on, read from the ledger, with or without a terminal."""
    stop = threading.Event()
    teller = _Teller()

    def tell() -> None:
        pause = _TELL_SECONDS
        while not stop.wait(pause):
            began = time.monotonic()
            teller.tell(_status(settings, services, name))
            pause = rest(time.monotonic() - began, share=0.1, at_least=_TELL_SECONDS)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Teller:
    """Words about how far a source is; the time left follows from the rate since the first look."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: dict[str, int] = {}
        self._last = ""

    def tell(self, found: SourceStatus) -> None:
        parts = [f"{found.files} files, {human_bytes(found.bytes)}"]
        for feature, counts in found.features.items():
            done = sum(counts[status] for status in ("ok", "empty", "failed", "refused"))
            total = done + counts["pending"] + counts["running"]
            if not total:
                continue
            words = f"{feature} {done}/{total}"
            began_with = self._first.setdefault(feature, done)
            rate = (done - began_with) / max(time.monotonic() - self._began, 0.001)
            if rate > 0 and done < total:
                words += f" ({rate:.2f}/s, {human_seconds((total - done) / rate)} left)"
            parts.append(words)
        text = " · ".join(parts)
        if text != self._last:
            say(text)
        self._last = text


def _tell_end(name: str, found: SourceStatus, scanned: Any) -> None:
    for feature, counts in found.features.items():
        words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        say(f"{feature}: {words or 'nothing'}")
    say(f"index: {found.index['vectors']} vectors. Search with: mirror-realm search --like FILE --source {safe(name)}")


@click.command()
@click.option("--source", help="Of one source.")
@click.option("--feature", help="Of one feature.")
@json_option
def retry(source: str | None, feature: str | None, as_json: bool) -> None:
    """Put failed work back; refused files stay refused until they change."""
    from mirror_realm_assets.catalog import activity, features, files, sources, sweep
    from mirror_realm_assets.errors import REASONS
    from mirror_realm_assets.ingest.batching import missing_of, recompute
    from mirror_realm_assets.pipeline import standard_stages

    refusals = [code for code, reason in REASONS.items() if reason.refusal]
    put_back: dict[str, int] = {}
    batches: list[str] = []
    with opened() as (settings, services):
        stages = standard_stages(settings)
        if feature is not None and feature not in {stage.feature for stage in stages}:
            raise SetupError("invalid_argument", f"There is no feature {feature!r}.")
        with services.catalog.write() as conn:
            chosen = [sources.get(conn, source)] if source else sources.all_sources(conn)
            for each in chosen:
                sweep.forget_damaged(conn, each.id, feature)
                count = features.forget_failures(conn, feature, sweep.digests_of(each.id))
                if feature in (None, "raw_media"):
                    count += files.forget_failures(conn, each.id, refusals)
                put_back[each.name] = count
                if count:
                    activity.note(conn, "work_retried", each.name, {"failures": count, "feature": feature})
                    missing = missing_of(conn, settings, stages, each)
                    keys, _complete = recompute(conn, settings, each, missing, kind="retry", requested_by="cli")
                    batches.extend(keys)
    if as_json:
        emit({"put_back": put_back, "batches": batches})
    else:
        for name, count in put_back.items():
            say(f"{safe(name)}: {count} failures are tried again.")


COMMANDS = [ingest, retry]
