"""Runs one stage over one batch: leases, crash counting, streaming, recording.

What belongs here: the loop that every stage shares. What does not: any particular stage, and Dagster. It keeps three
promises: an item is marked running before a decoder or model sees it; a finding is recorded with the lease's fencing
token in the transaction that ends the intents of its objects; and whatever ends the loop, what is not recorded stays
pending.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import sqlalchemy as sa

from mirror_realm_assets.catalog import batches as batch_rows
from mirror_realm_assets.catalog import features, files, intents, items, leases, media, sources, statistics, workers
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import RAW, Work
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.catalog.wants import State
from mirror_realm_assets.errors import NOT_SYSTEMIC, REASONS, LeaseLost, SetupError, SystemicFailure
from mirror_realm_assets.fault_points import point
from mirror_realm_assets.stages.context import StageContext, Stopped
from mirror_realm_assets.stages.report import StageReport
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Result, Stage
from mirror_realm_assets.stages.worker import Worker

Progress = Callable[[StageReport, int], None]  # the report so far, and how many pieces of work there are

# Items marked running in one transaction. More where they are quick: after a crash all that were marked are done once
# more, one by one.
_CLAIM, _CLAIM_MOST = 8, 256
_CLAIM_SECONDS = 0.1
_FLUSH_ITEMS = 256
_FLUSH_SECONDS = 0.5
_MAX_CRASHES = 2
_SYSTEMIC_MIN = 20


def run_stage(
    stage: Stage,
    batch_key: str,
    services: Services,
    stages: Sequence[Stage],
    *,
    run_id: str | None = None,
    worker_kind: str = "run",
    slice_seconds: float | None = None,
    on_progress: Progress = lambda _report, _total: None,
) -> StageReport:
    """Do what is missing of one stage's feature for one batch.

    Args:
        stage: what to run.
        batch_key: key of the batch.
        services: settings, catalog, store, models.
        stages: all stages, in dependency order: the batch's other items are settled too.
        run_id: the Dagster run.
        worker_kind: `run` or `ingest`.
        slice_seconds: stop beginning items after so long; the rest stays pending.
        on_progress: called after each recording.

    Returns:
        What was done; `skipped` when another worker has the batch.

    Raises:
        SetupError: `not_found` for an unknown batch; whatever the stage cannot start without (weights).
        SystemicFailure: more than half of at least 20 items failed with one code.
    """
    with services.catalog.read() as conn:
        batch = batch_rows.get(conn, batch_key)
        if batch is None:
            raise SetupError("not_found", f"There is no batch {batch_key!r}.", remedy="See `mirror-realm status`.")
        source = sources.by_id(conn, batch.source_id)
    s = services.settings
    beat = {"beat_seconds": s.heartbeat_seconds, "lease_seconds": s.lease_seconds}
    with Worker(services.catalog, worker_kind, run_id, **beat) as worker:
        worker.doing = f"{stage.name} {batch_key}"
        lease = _take(services, batch_rows.lease_name(batch_key, stage.lane), worker.id)
        if lease is None:
            return StageReport(batch_key, stage.feature, skipped="Another worker runs this batch.")
        context = StageContext(
            services=services,
            stage=stage,
            stages=tuple(stages),
            batch=batch,
            source=source,
            policy=source.policy.merged(batch.request),
            lease=lease,
            run_id=run_id,
            deadline=time.monotonic() + slice_seconds if slice_seconds else None,
        )
        return _Run(context, on_progress).run()


def _take(services: Services, name: str, worker_id: str) -> Lease | None:
    """The batch's lease; a holder whose process is provably gone does not count."""
    for attempt in range(2):
        with services.catalog.write() as conn:
            lease = leases.acquire(conn, name, worker_id, services.settings.lease_seconds)
        point("lease.after_commit")
        if lease is not None or attempt:
            return lease
        workers.bury_the_dead(services.catalog)
    return None


class _Run:
    """One run of one stage over one batch, after the lease is held."""

    def __init__(self, context: StageContext, on_progress: Progress) -> None:
        self.context = context
        self.catalog = context.services.catalog
        self.stage = context.stage
        self.rules = [stage.rule for stage in context.stages]
        self.limits = context.services.limits()
        self.on_progress = on_progress
        self.report = StageReport(context.batch.key, self.stage.feature, items=context.batch.items, used=context.used)
        self.total = 0
        self.claimed: dict[int, Work] = {}
        self.waiting: list[Result] = []
        self.flushed_at = time.monotonic()
        self.recorded: set[features.FeatureKey] = set()
        self.failed: Counter[str] = Counter()
        self.changed = 0
        self.failed_keys: list[Result] = []
        context.stop = self._reason_to_stop
        self._asked_at = 0.0
        self._answer: str | None = None

    def run(self) -> StageReport:
        began = time.monotonic()
        try:
            todo, suspects = self._begin()
            self.total = len(todo) + len(suspects)
            self.on_progress(self.report, self.total)
            self._stream(todo)
            for work in suspects:  # alone and last: the one that kills its worker must not take others along
                self._stream([work])
            self._end()
        except LeaseLost as error:
            self.report.stopped = error.message
        finally:
            self.report.seconds = time.monotonic() - began
            self._leave()
        self.report.stopped = self.report.stopped or self.context.stopped
        return self.report

    def _begin(self) -> tuple[list[Work], list[Work]]:
        """Count crashes, settle what needs nothing, and split the rest into trusted and suspect."""
        context = self.context
        with self.catalog.write() as conn:
            leases.check(conn, context.lease)
            if context.run_id:
                batch_rows.note_run(conn, context.batch.id, self.stage.lane, context.run_id)
            items.count_crashes(conn, context.batch.id, self.stage.feature)
            works = self._settle(conn, self.stage.feature)
        pending = [w for w in works if w.feature == self.stage.feature and w.verdict.state is State.PENDING]
        # One piece of work for each feature to be recorded: a place, or a picture wherever it lies. The items of a
        # second file with the same picture are settled by the same record.
        unique = {work.item_id if self.stage.feature == RAW else work.key: work for work in reversed(pending)}
        pending = list(reversed(unique.values()))
        doomed = [work for work in pending if work.crashes >= _MAX_CRASHES]
        if doomed:
            self._set_aside(doomed)
        alive = [work for work in pending if work.crashes < _MAX_CRASHES]
        return [w for w in alive if not w.crashes], [w for w in alive if w.crashes]

    def _set_aside(self, doomed: list[Work]) -> None:
        for work in doomed:
            finding = Finding("failed", code="crashed_worker", reason="The picture ended its worker twice.")
            self._record([Result(work, finding)], final=True)

    def _stream(self, works: list[Work]) -> None:
        if not works or self.context.reason_to_stop():
            return
        produced = self.stage.run(self._claim(works), self.context)
        with closing(produced):  # type: ignore[type-var] # a generator: closing it ends its threads
            try:
                for result in produced:
                    self.waiting.append(result)
                    if len(self.waiting) >= _FLUSH_ITEMS or time.monotonic() - self.flushed_at >= _FLUSH_SECONDS:
                        self._flush()
            except Stopped:
                pass  # the reason stands in the context
            finally:
                # Also when the stage raises: what it found before is true.
                self._flush()

    def _claim(self, works: Sequence[Work]) -> Iterator[Work]:
        """Hand out work, marking it running first, until there is a reason to stop."""
        step = 1 if self.stage.lane == "enhance" else _CLAIM  # enhancement is slow: mark just what is being done
        start, began = 0, time.monotonic()
        while start < len(works):
            if self.context.stage.lane == "enhance":
                self.context.give_way()
            if self.context.reason_to_stop() or self._out_of_space():
                return
            chunk = works[start : start + step]
            start += step
            with self.catalog.write() as conn:
                leases.check(conn, self.context.lease)
                chunk = self._not_done_meanwhile(conn, chunk)
                items.claim(conn, chunk, self.context.lease.owner, self.context.services.settings.lease_seconds)
            point("claim.after_commit")
            self.claimed.update((work.item_id, work) for work in chunk)
            for work in chunk:
                if self.context.reason_to_stop():  # asked of the catalog twice a second; what is left is released
                    return
                yield work
            if step > 1:
                quick = time.monotonic() - began < _CLAIM_SECONDS
                step = min(2 * step, _CLAIM_MOST) if quick else _CLAIM
                began = time.monotonic()

    def _not_done_meanwhile(self, conn: sa.Connection, works: Sequence[Work]) -> Sequence[Work]:
        """Those that no other run has recorded since this one began: a picture may be in several batches."""
        if self.stage.feature == RAW:
            return works  # what is read is known by its bytes, which are not known yet
        found = features.records(conn, [work.key for work in works])
        return [work for work in works if getattr(found.get(work.key), "status", None) not in ("ok", "empty")]

    def _out_of_space(self) -> bool:
        """Whether enhancement must rest; ingest goes on, its results are small."""
        if self.stage.lane != "enhance":
            return False
        free, mark = self.context.services.store.free_bytes(), self.context.services.settings.low_space_bytes
        if free is None or free >= mark:
            return False
        self.context.stopped = (
            f"Only {free / 1e9:.1f} GB are free for the store, below the mark of {mark / 1e9:.1f} GB."
        )
        return True

    def _flush(self) -> None:
        results, self.waiting = self.waiting, []
        self.flushed_at = time.monotonic()
        if not results:
            return
        self._record(results)
        for result in results:
            work = result.work
            self.claimed.pop(work.item_id, None)
            pixels = work.subject.pixels or sum(p.width * p.height for p in _parts(result))
            self.report.add(result.finding, pixels, work.subject.size, tuple(result.pictures))
            self.report.stored.update((stored.key, stored.size) for _kind, stored in result.objects)
            if result.finding.code in NOT_SYSTEMIC:
                self.changed += 1
            elif result.finding.status == "failed":
                self.failed[result.finding.code or "internal"] += 1
                self.failed_keys.append(result)
        self.on_progress(self.report, self.total)
        self._check_systemic()

    def _record(self, results: Sequence[Result], *, final: bool = False) -> None:
        """Record findings in one transaction, under the lease."""
        with self.catalog.write() as conn:
            leases.check(conn, self.context.lease)
            # In one order everywhere: two batches with the same pictures must not wait for each other's rows.
            ordered = sorted(results, key=_record_order)
            media.record_all(conn, [reading for result in ordered if (reading := _reading(result)) is not None])
            made: list[features.Made] = []
            for result in ordered:
                if (one := self._made(conn, result, final=final)) is not None and one.key not in self.recorded:
                    made.append(one)  # two files of one batch with the same bytes are one record
                    self.recorded.add(one.key)
            features.write_all(conn, made, run_id=self.context.run_id)
            objects = [
                (stored.key, kind, stored.sha256, stored.size) for result in results for kind, stored in result.objects
            ]
            intents.name_objects(conn, objects)
            intents.end(conn, [one for result in results for one in result.intents])
            items.release(conn, [result.work for result in results])
            point("record.before_commit")
        point("record.after_commit")

    def _made(self, conn: sa.Connection, result: Result, *, final: bool) -> features.Made | None:
        """What is to be recorded of a subject; what failed before its bytes were known is recorded of the place."""
        work, finding = result.work, result.finding
        if work.recipe is None:
            raise ValueError(f"item {work.item_id} was run without being wanted")
        self.report.recipes[work.recipe.digest] = work.recipe
        digest = work.subject.digest if work.of_bytes else work.subject.image_digest
        if result.identified is not None:
            digest = result.identified.digest
        if result.known:
            return None
        if digest is None:
            self._fail_location(conn, work, finding, final=final)
            return None
        part = 0 if work.of_bytes else work.subject.part
        key = features.FeatureKey(digest, part, work.feature, work.recipe.digest)
        return features.Made(key, work.recipe, finding, work.crashes, final)

    def _fail_location(self, conn: sa.Connection, work: Work, finding: Finding, *, final: bool) -> None:
        """`raw_media` could not even read the bytes: the place keeps the reason."""
        if work.subject.location_id is None:
            return
        code = finding.code or "internal"
        attempts = (work.record.attempts if work.record else 0) + 1
        due = None if final else REASONS[code].retry.next_attempt(attempts, now(conn))
        reason, size = finding.reason or "", work.subject.size
        path = work.subject.path
        files.location_failed(conn, work.subject.location_id, code, reason, due, size=size, path=path)

    def _check_systemic(self) -> None:
        code, count = self.failed.most_common(1)[0] if self.failed else ("", 0)
        done = self.report.done - self.changed  # half of a folder may well be moved before it is read
        if done < _SYSTEMIC_MIN or count * 2 <= done:
            return
        reason = next(r.finding.reason for r in self.failed_keys if r.finding.code == code)
        message = f"{count} of {done} items of {self.stage.name} failed with {code}: {reason}"
        with self.catalog.write() as conn:
            # The fault is not theirs: they are pending again, and nothing is asked for until someone has looked.
            for result in self.failed_keys:
                self._unfail(conn, result)
            by = f"{self.stage.name} of batch {self.context.batch.key}"
            sources.set_state(conn, self.context.source.name, "paused", f"systemic: {message}", by=by)
        raise SystemicFailure("systemic", message)

    def _unfail(self, conn: sa.Connection, result: Result) -> None:
        work = result.work
        known = work.subject.digest if work.of_bytes else work.subject.image_digest
        digest = result.identified.digest if result.identified else known
        if digest is None and work.subject.location_id is not None:
            files.reset_location(conn, work.subject.location_id)
        elif digest is not None and work.recipe is not None:
            part = 0 if work.of_bytes else work.subject.part
            features.forget(conn, features.FeatureKey(digest, part, work.feature, work.recipe.digest))

    def _settle(self, conn: sa.Connection, feature: str | None = None, after: str | None = None) -> list[Work]:
        return items.settle(conn, self.context.batch, self.context.source, self.rules, self.limits, feature, after)

    def _end(self) -> None:
        with self.catalog.write() as conn:
            leases.check(conn, self.context.lease)
            works = self._settle(conn, after=self.stage.feature)
            point("settle.before_commit")
        point("settle.after_commit")
        if self.report.done:
            statistics.refresh(self.catalog)
        self.report.open_items = len({work.item_id for work in works if work.feature == self.stage.feature})

    def _leave(self) -> None:
        """Put unfinished items back and give the lease up; a lost lease makes both do nothing."""
        with self.catalog.write() as conn:
            try:
                leases.check(conn, self.context.lease)
            except LeaseLost:
                return
            items.release(conn, list(self.claimed.values()))
            leases.release(conn, self.context.lease)

    def _reason_to_stop(self) -> str | None:
        """Whether the batch was cancelled or the lease is gone; asked of the catalog at most twice a second."""
        if time.monotonic() - self._asked_at >= 0.5:
            self._asked_at = time.monotonic()
            with self.catalog.read() as conn:
                held = leases.holder(conn, self.context.lease.name) == self.context.lease.owner
                batch = batch_rows.by_id(conn, self.context.batch.id)
            self._answer = None
            if not held:
                self._answer = "The lease was lost to another worker."
            elif batch.cancel_requested_at is not None:
                self._answer = "cancelled"
        return self._answer


def _reading(result: Result) -> media.Reading | None:
    subject = result.work.subject
    if result.identified is None or subject.location_id is None:
        return None
    return media.Reading(subject.location_id, result.identified, (subject.size, subject.mtime_ns))


def _record_order(result: Result) -> tuple[str, int]:
    subject = result.work.subject
    digest = result.identified.digest if result.identified else subject.image_digest
    return digest or "", subject.part


def _parts(result: Result) -> Sequence[media.Part]:
    return result.identified.parts if result.identified else ()
