"""Forming batches: the journal is drained, waiting files are cut into batches, changed recipes are swept.

What belongs here: the one transaction that turns waiting files into batches. What does not: how they are cut
(`catalog.forming`), and asking Dagster to run them (`sensors`).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.catalog import batches, files, leases, sources, statistics, sweep, texts, workers
from mirror_realm_assets.catalog.batches import Batch, NewItem
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.forming import BatchLimits, Candidate, cut
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.ingest.scan import SAMPLE_FILES
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Stage, lane_features

_FORMER = "former"
_WORDS_SECONDS = 0.3  # of a tick: the words of files follow, no file waits for them
_MAX_WAITING = 20_000  # of one source, looked at in one tick
_SWEEP_BATCHES = 10  # formed in one tick
_DRAIN_SECONDS = 20.0  # a tick must end well before Dagster gives it up after 60 s; the next one goes on
# Search-lane work of one file on two cores: a read and a decode, which go with the bytes (measured on photographs of
# 0.2 to 12 megapixels), and one embedding with all that is recorded (0.021 and 0.027 s on two machines).
_SECONDS_PER_FILE = 0.03
_SECONDS_PER_MB = 0.05


@dataclass
class Formed:
    """What a tick formed: keys of new batches, and how many journal rows were applied.

    `leased` is False when another former was at work, so that nothing was done here.
    """

    keys: list[str] = field(default_factory=list)
    drained: int = 0
    leased: bool = True


def search_seconds(size: int) -> float:
    """Estimated seconds of the search lane for a file of `size` bytes."""
    return _SECONDS_PER_FILE + _SECONDS_PER_MB * size / 1_000_000


def limits_of(settings: Settings) -> BatchLimits:
    """The limits of one batch."""
    return BatchLimits(settings.batch_items, settings.batch_bytes, settings.batch_seconds, settings.batch_age_seconds)


def form_batches(
    catalog: Catalog,
    settings: Settings,
    stages: Sequence[Stage],
    owner: str,
    *,
    source_id: int | None = None,
    now_or_never: bool = False,
    requested_by: str = "watcher",
) -> Formed:
    """Drain the journal and form every batch that is due.

    Args:
        catalog: the ledger.
        settings: of this process.
        stages: all stages, in dependency order.
        owner: who forms; while another live former works, nothing happens here.
        source_id: of one source only.
        now_or_never: do not wait for more files.
        requested_by: who asked.
    """
    formed = Formed()
    lease = _take(catalog, owner, settings.lease_seconds)
    if lease is None:
        return Formed(leased=False)
    try:
        end = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < end:
            with catalog.write() as conn:
                leases.check(conn, lease)
                drained = files.drain_journal(conn)
                _point_if(drained, "drain.before_commit")
            _point_if(drained, "drain.after_commit")
            formed.drained += drained
            if drained < files.DRAIN:
                break
        if formed.drained:
            statistics.refresh(catalog)
        with catalog.read() as conn:
            at = now(conn)
            active = [
                s
                for s in sources.all_sources(conn)
                if s.active and source_id in (None, s.id) and (now_or_never or not s.is_quiet(at))
            ]
        for source in active:
            if not _can_be_worked_on(catalog, stages, source):
                continue
            with catalog.write() as conn:
                leases.check(conn, lease)
                new = _form_source(conn, settings, stages, source, now_or_never, requested_by)
                formed.keys.extend(batch.key for batch in new)
                _point_if(new, "form.before_commit")
            _point_if(new, "form.after_commit")
            formed.keys.extend(_sweep(catalog, settings, stages, source, lease))
    finally:
        with catalog.write() as conn:
            leases.release(conn, lease)
    return formed


class Former:
    """This process as one that forms: a worker, so that its death frees the lease, and one tick of it at a time.

    Args:
        catalog: the ledger.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._one_at_a_time = threading.Lock()  # a tick that outlives its time-out has the same owner as the next
        with catalog.write() as conn:
            self._id = workers.register(conn, "form", identity())

    @property
    def worker_id(self) -> str:
        """The worker that this process is."""
        return self._id

    def form(self, settings: Settings, stages: Sequence[Stage], **options: Any) -> Formed:
        """See `form_batches`."""
        if not self._one_at_a_time.acquire(blocking=False):
            return Formed(leased=False)
        try:
            formed = form_batches(self._catalog, settings, stages, self._id, **options)
            texts.catch_up(self._catalog, _WORDS_SECONDS)
            return formed
        finally:
            self._one_at_a_time.release()

    def close(self) -> None:
        """It ends in good order."""
        with self._catalog.write() as conn:
            workers.end(conn, self._id)


def _take(catalog: Catalog, owner: str, seconds: float) -> leases.Lease | None:
    """The right to form; a holder whose process is provably gone does not count."""
    for attempt in range(2):
        with catalog.write() as conn:
            lease = leases.acquire(conn, _FORMER, owner, seconds)
        if lease is not None or attempt:
            return lease
        workers.bury_the_dead(catalog)
    return None


def _point_if(anything: object, name: str) -> None:
    if anything:  # an idle tick passes no point
        point(name)


def _can_be_worked_on(catalog: Catalog, stages: Sequence[Stage], source: Source) -> bool:
    """Whether the source's policy can be carried out; one that names an unknown model must not stop the others."""
    try:
        for stage in stages:
            stage.recipe(source.policy)
    except SetupError as error:
        with catalog.write() as conn:
            sources.set_state(conn, source.name, "paused", str(error), by="batch forming")
        return False
    return True


def _form_source(
    conn: sa.Connection,
    settings: Settings,
    stages: Sequence[Stage],
    source: Source,
    now_or_never: bool,
    requested_by: str,
) -> list[Batch]:
    # More than one batch may hold: else a busy source's would never be known to be full.
    looked_at = max(_MAX_WAITING, 2 * settings.batch_items)
    waiting = files.waiting(conn, source.id, looked_at, max_file_bytes=settings.max_file_bytes)
    if not waiting:
        return []
    if len(waiting) > SAMPLE_FILES and not batches.has_any(conn, source.id):
        # Of a new source the watcher finds a sample of every folder first.
        sample = files.sample_waiting(conn, source.id, SAMPLE_FILES)
        taken = {one.location_id for one in sample}
        waiting = sample + [one for one in waiting if one.location_id not in taken]
    slow = 1 / (source.policy.budget_read_mb_s * 1e6) if source.policy.budget_read_mb_s else 0.0
    candidates = [
        Candidate(w.location_id, w.size, max(search_seconds(w.size), w.size * slow), w.waiting_since) for w in waiting
    ]
    busy = not now_or_never and batches.has_open(conn, source.id, lane_features(stages, "search"))
    limits = limits_of(settings)
    if now_or_never:
        limits = BatchLimits(limits.items, limits.bytes, limits.seconds, age=-1.0)
    features = [stage.feature for stage in stages if stage.recipe(source.policy) is not None]
    return [
        batches.form(
            conn,
            source,
            [NewItem(location_id=c.id, size=c.size) for c in group],
            features,
            seconds=sum(c.seconds for c in group),
            requested_by=requested_by,
        )
        for group in cut(candidates, limits, now(conn), busy=busy)
    ]


def _sweep(
    catalog: Catalog, settings: Settings, stages: Sequence[Stage], source: Source, lease: leases.Lease
) -> list[str]:
    """Batches for known media whose wanted recipes or limits changed since they were last compared."""
    wanted_now = recipes_of(settings, stages, source)
    if source.swept_recipes == wanted_now:
        return []
    # Looking through a whole source takes seconds: it must not hold SQLite's only write lock meanwhile.
    with catalog.read() as conn:
        todo = missing_of(conn, settings, stages, source) if sweep.has_media(conn, source.id) else []
    with catalog.write() as conn:
        leases.check(conn, lease)
        keys, complete = recompute(conn, settings, source, todo, max_batches=_SWEEP_BATCHES)
        if complete:
            sources.set_swept(conn, source.id, wanted_now)
    return keys


def recipes_of(settings: Settings, stages: Sequence[Stage], source: Source) -> dict[str, str | float]:
    """Everything whose change makes work on known media: recipe digests and limits, by name."""
    found: dict[str, str | float] = {}
    for stage in stages:
        recipe = stage.recipe(source.policy)
        found[stage.feature] = recipe.digest if recipe else ""
        found[f"{stage.feature}.max_pixels"] = float(stage.max_pixels(source.policy) or 0)
    return found | settings.limits()


Missing = list[tuple[NewItem, tuple[str, ...]]]


def missing_of(conn: sa.Connection, settings: Settings, stages: Sequence[Stage], source: Source) -> Missing:
    """What is wanted, missing and in no open batch, among the source's known media: items with their features."""
    return list(sweep.missing_media(conn, source, [stage.rule for stage in stages], settings.limits()))


def recompute(
    conn: sa.Connection,
    settings: Settings,
    source: Source,
    missing: Missing,
    *,
    kind: str = "recompute",
    requested_by: str = "policy",
    max_batches: int | None = None,
) -> tuple[list[str], bool]:
    """Form batches for what `missing_of` found; whatever was done meanwhile costs nothing when they run.

    Returns:
        Keys of the new batches, and whether nothing was left over.
    """
    groups: dict[tuple[str, ...], list[NewItem]] = defaultdict(list)
    for item, features in missing:
        groups[features].append(item)
    keys: list[str] = []
    for features, found in groups.items():
        for start in range(0, len(found), settings.batch_items):
            if max_batches is not None and len(keys) >= max_batches:
                return keys, False
            chunk = found[start : start + settings.batch_items]
            seconds = sum(search_seconds(item.size) for item in chunk)
            batch = batches.form(conn, source, chunk, features, kind=kind, seconds=seconds, requested_by=requested_by)
            keys.append(batch.key)
    return keys, True
