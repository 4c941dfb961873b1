"""The engine: exactly what is missing is done, once, and whatever ends it leaves the ledger true."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab

from mirror_realm_assets.catalog import batches, features, items, leases, sources, status, sweep, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import Failed, SystemicFailure
from mirror_realm_assets.ingest.batching import form_batches, missing_of, recompute
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.flow import each_proxy
from mirror_realm_assets.stages.stage import Result, Run, Stage


def brightness(run: Run, version: str = "1") -> Stage:
    """A second stage over proxies, with a `run` of the test's own."""
    return Stage(
        name="brightness",
        description="Mean of all pixels.",
        lane="search",
        needs=("raw_media",),
        recipe=lambda _policy: Recipe("brightness", version, inputs={"proxy": "1"}),
        run=run,
    )


MEAN = each_proxy(lambda image: {"mean": float(image.mean())})


def counts(lab: Lab, stages: tuple[Stage, ...], feature: str) -> dict[str, int]:
    with lab.catalog.read() as conn:
        found = status.of_source(conn, lab.source, [stage.rule for stage in stages])
    return {name: count for name, count in found.features[feature].items() if count}


def test_a_second_run_of_a_batch_does_nothing_twice(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    for number in range(3):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    for stage in stages:
        assert run_stage(stage, batch.key, lab.services, stages).counts == {"ok": 3}
    for stage in stages:
        assert run_stage(stage, batch.key, lab.services, stages).done == 0
    assert counts(lab, stages, "brightness") == {"ok": 3}


def test_case_b2_an_empty_result_is_done_and_not_looked_for_again(lab: Lab) -> None:
    looked: list[int] = []

    def nobody(_image: object) -> None:
        looked.append(1)

    stages = (raw_media_stage(lab.settings), brightness(each_proxy(nobody)))
    for number in range(3):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    for stage in stages:
        run_stage(stage, batch.key, lab.services, stages)
    assert counts(lab, stages, "brightness") == {"empty": 3}
    assert run_stage(stages[1], batch.key, lab.services, stages).done == 0
    assert lab.form(stages) == []
    with lab.catalog.write() as conn:
        assert not missing_of(conn, lab.settings, stages, lab.source)
        assert features.forget_failures(conn, None, sweep.digests_of(lab.source.id)) == 0
    assert len(looked) == 3


def test_what_another_run_records_meanwhile_is_not_done_again(lab: Lab) -> None:
    """A picture may be in two batches, and their runs may overlap."""
    done: list[str | None] = []

    def slow(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for work in works:
            if not done:
                assert work.recipe is not None
                with lab.catalog.write() as conn:  # another run, in the meantime
                    for other in others:
                        key = features.FeatureKey(other, 0, "brightness", work.recipe.digest)
                        features.write(conn, key, work.recipe, Finding("ok", {"mean": 1.0}))
            done.append(work.subject.image_digest)
            yield Result(work, Finding("ok", {"mean": 2.0}))

    stages = (raw_media_stage(lab.settings), brightness(slow))
    for number in range(20):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    with lab.catalog.read() as conn:
        last = (
            sa.select(t.parts.c.image_digest)
            .join(t.media, t.media.c.content_id == t.parts.c.content_id)
            .join(t.locations, t.locations.c.media_id == t.media.c.id)
            .join(t.batch_items, t.batch_items.c.location_id == t.locations.c.id)
            .where(t.batch_items.c.feature == "brightness")
            .order_by(t.batch_items.c.n.desc())
            .limit(3)
        )
        others = list(conn.execute(last).scalars())
    run_stage(stages[1], batch.key, lab.services, stages)
    assert len(done) == 17  # eight are marked at once, and these came later
    assert not set(others) & set(done)
    with lab.catalog.read() as conn:
        attempts = conn.execute(sa.select(t.features.c.attempts).where(t.features.c.feature == "brightness")).scalars()
        assert list(attempts) == [1] * 20
    assert counts(lab, stages, "brightness") == {"ok": 20}


def test_a_changed_recipe_redoes_just_its_own_feature(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    lab.picture("a.png")
    (batch,) = lab.form(stages)
    for stage in stages:
        run_stage(stage, batch.key, lab.services, stages)
    assert lab.form(stages) == []

    newer = (stages[0], brightness(MEAN, version="2"))
    (again,) = lab.form(newer)
    assert again.kind == "recompute"
    assert run_stage(newer[0], again.key, lab.services, newer).done == 0
    assert run_stage(newer[1], again.key, lab.services, newer).counts == {"ok": 1}


def test_bad_files_are_recorded_with_their_reason_and_the_rest_goes_on(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    good = lab.picture("good.png", size=(200, 150))
    (lab.folder / "empty.png").write_bytes(b"")
    (lab.folder / "cut.png").write_bytes(good.read_bytes()[:400])
    (lab.folder / "text.jpg").write_text("no picture")
    (lab.folder / "link.png").symlink_to("/etc/passwd")
    (batch,) = lab.form(stages)
    report = run_stage(stages[0], batch.key, lab.services, stages)
    assert report.counts == {"ok": 1, "refused": 3}
    assert {code for _status, code, _reason in report.refused} == {"empty_file", "truncated", "unsupported"}
    assert run_stage(stages[1], batch.key, lab.services, stages).counts == {"ok": 1}
    with lab.catalog.read() as conn:
        assert batches.pending(conn, "search", ["raw_media", "brightness"]) == []
        assert {row.state for row in _locations(lab)} == {"present", "unreadable", "ignored"}


def _locations(lab: Lab) -> list[sa.Row[tuple[object, ...]]]:
    with lab.catalog.read() as conn:
        return list(conn.execute(sa.select(t.locations)).all())


def test_a_file_that_returns_after_it_was_gone_is_taken(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings),)
    lab.picture("other.png", 9)
    picture = lab.picture("a.png")
    (batch,) = lab.form(stages)
    data, times = picture.read_bytes(), picture.stat()
    picture.unlink()
    report = run_stage(stages[0], batch.key, lab.services, stages)
    assert report.counts == {"ok": 1, "failed": 1}
    assert lab.form(stages) == []
    picture.write_bytes(data)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    (again,) = lab.form(stages)
    assert run_stage(stages[0], again.key, lab.services, stages).counts == {"ok": 1}


def test_a_changed_file_is_a_new_version_and_the_same_bytes_elsewhere_cost_nothing(lab: Lab) -> None:
    calls: list[int] = []
    stages = (raw_media_stage(lab.settings), brightness(each_proxy(lambda image: calls.append(1) or {"mean": 0.0})))
    picture = lab.picture("a.png", 1)
    for batch in lab.form(stages):
        for stage in stages:
            run_stage(stage, batch.key, lab.services, stages)
    (lab.folder / "copy.png").write_bytes(picture.read_bytes())
    picture.rename(lab.folder / "moved.png")
    for batch in lab.form(stages):
        for stage in stages:
            run_stage(stage, batch.key, lab.services, stages)
    assert len(calls) == 1
    lab.picture("moved.png", 2)
    for batch in lab.form(stages):
        for stage in stages:
            run_stage(stage, batch.key, lab.services, stages)
    assert len(calls) == 2


def test_case_a12_a_file_that_changes_between_two_stages_does_not_hold_up_its_own_new_version(lab: Lab) -> None:
    stages = cheap_stages(lab.settings)
    lab.picture("a.png", 1)
    (first,) = lab.form(stages)
    run_stage(stages[0], first.key, lab.services, stages)
    lab.picture("a.png", 2)
    lab.scan()
    form_batches(lab.catalog, lab.settings, stages, "test")  # learns of the change; the first batch is not over
    run_lane(lab.services, stages, first.key)
    (second,) = form_batches(lab.catalog, lab.settings, stages, "test").keys
    run_lane(lab.services, stages, second)
    assert counts(lab, stages, "embeddings")["ok"] == 1


def test_another_live_worker_keeps_the_batch(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings),)
    lab.picture("a.png")
    (batch,) = lab.form(stages)
    with lab.catalog.write() as conn:
        assert leases.acquire(conn, batches.lease_name(batch.key, "search"), "somebody", 60)
    report = run_stage(stages[0], batch.key, lab.services, stages)
    assert report.skipped
    assert report.done == 0
    assert counts(lab, stages, "raw_media") == {"pending": 1}


def test_a_worker_that_lost_its_lease_records_nothing_more(lab: Lab) -> None:
    def slow(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for n, work in enumerate(works):
            if n == 1:  # somebody else took over meanwhile
                with lab.catalog.write() as conn:
                    workers.end(conn, context.lease.owner)
                    assert leases.acquire(conn, context.lease.name, "successor", 60)
                time.sleep(0.6)
            yield Result(work, Finding("ok", {"mean": 1.0}))

    stages = (raw_media_stage(lab.settings), brightness(slow))
    for number in range(4):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    report = run_stage(stages[1], batch.key, lab.services, stages)
    assert "lease" in (report.stopped or "")
    assert counts(lab, stages, "brightness").get("ok", 0) == 0
    with lab.catalog.read() as conn:
        assert leases.holder(conn, batches.lease_name(batch.key, "search")) == "successor"


def test_a_cancelled_batch_stops_at_the_next_item_and_keeps_what_is_done(lab: Lab) -> None:
    def cancelling(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for n, work in enumerate(works):
            yield Result(work, Finding("ok", {"mean": 1.0}))
            if n == 0:
                with lab.catalog.write() as conn:
                    batches.request_cancel(conn, context.batch.id)
                time.sleep(0.6)

    stages = (raw_media_stage(lab.settings), brightness(cancelling))
    for number in range(20):
        lab.picture(f"{number:02d}.png", number)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    report = run_stage(stages[1], batch.key, lab.services, stages)
    assert report.stopped == "cancelled"
    assert 0 < report.counts["ok"] < 20
    with lab.catalog.read() as conn:
        assert batches.pending(conn, "search", ["raw_media", "brightness"]) == []


def test_one_failing_picture_is_retried_later_and_then_given_up(lab: Lab) -> None:
    def failing(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for work in works:
            yield Result(work, Finding("failed", code="model_failed", reason="no luck"))

    stages = (raw_media_stage(lab.settings), brightness(failing))
    lab.picture("a.png")
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    for _attempt in range(4):  # INTERNAL_ERROR: four attempts in all
        assert run_stage(stages[1], batch.key, lab.services, stages).counts == {"failed": 1}
        _make_due(lab)
    assert run_stage(stages[1], batch.key, lab.services, stages).done == 0
    assert counts(lab, stages, "brightness") == {"failed": 1}


def _make_due(lab: Lab) -> None:
    with lab.catalog.write() as conn:
        due = t.features.c.next_attempt_at.is_not(None)
        conn.execute(t.features.update().where(due).values(next_attempt_at=now(conn)))


def test_a_systemic_failure_stops_the_run_leaves_items_pending_and_pauses_the_source(lab: Lab) -> None:
    def failing(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for work in works:
            yield Result(work, Finding("failed", code="out_of_memory", reason="no memory"))

    stages = (raw_media_stage(lab.settings), brightness(failing))
    for number in range(40):
        lab.picture(f"{number:02d}.png", number)
    run_batches = lab.form(stages)
    for batch in run_batches:
        run_stage(stages[0], batch.key, lab.services, stages)
    with pytest.raises(SystemicFailure, match="out_of_memory"):
        run_stage(stages[1], run_batches[0].key, lab.services, stages)
    assert counts(lab, stages, "brightness") == {"pending": 40}
    source = lab.source
    assert source.state == "paused"
    assert "systemic" in (source.state_reason or "")
    with lab.catalog.write() as conn:
        assert batches.pending(conn, "search", ["brightness"]) == []
        sources.set_state(conn, "demo", "active")
        assert batches.pending(conn, "search", ["brightness"]) != []


def test_files_that_went_before_they_were_read_are_no_systemic_failure(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings),)
    for number in range(40):
        lab.picture(f"{number:02d}.png", number)
    formed = lab.form(stages)
    for number in range(30):
        (lab.folder / f"{number:02d}.png").unlink()
    for batch in formed:
        run_stage(stages[0], batch.key, lab.services, stages)
    assert counts(lab, stages, "raw_media") == {"ok": 10, "failed": 30}
    assert lab.source.state == "active"


KILLER = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_engine import MEAN, brightness, raw_media_stage, run_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.resources.library import open_services
from mirror_realm_assets.stages.flow import each_proxy
settings = Settings.at(Path({home!r}), quiet_seconds=0)
def run(image):
    if image.shape[1] == 77:
        os._exit(137)
    return {{"mean": float(image.mean())}}
stages = (raw_media_stage(settings), brightness(each_proxy(run)))
report = run_stage(stages[1], {batch!r}, open_services(settings), stages)
print(sorted(report.counts.items()), report.open_items)
"""


def test_case_b9_a_picture_that_kills_its_worker_is_set_aside_after_two_crashes_and_its_batch_goes_on(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    for number in range(5):
        lab.picture(f"{number}.png", number)
    lab.picture("killer.png", 99, size=(77, 40))
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script = KILLER.format(paths=paths, home=str(lab.home), batch=batch.key)
    codes, last = [], ""
    for _run in range(4):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        codes.append(done.returncode)
        last = done.stdout.strip()
        if done.returncode == 0:
            break
    assert codes == [137, 137, 0], done.stderr
    assert last.endswith("0")
    assert counts(lab, stages, "brightness") == {"ok": 5, "failed": 1}
    with lab.catalog.read() as conn:
        (failed,) = [row for row in _features(conn) if row["status"] == "failed" and row["feature"] == "brightness"]
        assert (failed["code"], failed["crashes"], failed["retryable"]) == ("crashed_worker", 2, False)
        oks = [row for row in _features(conn) if row["status"] == "ok" and row["feature"] == "brightness"]
    assert all(row["attempts"] == 1 for row in oks)


def _features(conn: sa.Connection) -> list[sa.RowMapping]:
    return list(conn.execute(sa.select(t.features)).mappings())


def test_a_stage_that_raises_keeps_what_it_found_and_leaves_the_rest_pending(lab: Lab) -> None:
    def breaking(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for n, work in enumerate(works):
            if n == 2:
                raise Failed("store_failed", "the disk is gone")
            yield Result(work, Finding("ok", {"mean": 1.0}))

    stages = (raw_media_stage(lab.settings), brightness(breaking))
    for number in range(5):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    with pytest.raises(Failed, match="disk is gone"):
        run_stage(stages[1], batch.key, lab.services, stages)
    assert counts(lab, stages, "brightness") == {"ok": 2, "pending": 3}
    healthy = (stages[0], replace(stages[1], run=MEAN))
    assert run_stage(healthy[1], batch.key, lab.services, healthy).counts == {"ok": 3}


def test_the_time_slice_ends_between_items(lab: Lab) -> None:
    def slow(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for work in works:
            time.sleep(0.3)
            yield Result(work, Finding("ok", {"mean": 1.0}))

    stages = (raw_media_stage(lab.settings), replace(brightness(slow), lane="enhance"))
    for number in range(6):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    report = run_stage(stages[1], batch.key, lab.services, stages, slice_seconds=0.5)
    assert report.stopped == "slice over"
    assert 0 < report.done < 6
    assert report.open_items == 6 - report.done


def test_a_crash_is_counted_only_for_items_that_were_begun(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    for number in range(3):
        lab.picture(f"{number}.png", number)
    (batch,) = lab.form(stages)
    with lab.catalog.write() as conn:
        works = items.open_work(conn, batch, lab.source, [s.rule for s in stages], lab.services.limits())
        items.claim(conn, [works[0]], "a-dead-worker", 60)
    run_stage(stages[0], batch.key, lab.services, stages)
    with lab.catalog.read() as conn:
        crashes = [row["crashes"] for row in _items(conn) if row["feature"] == "raw_media"]
    assert sorted(crashes) == [0, 0, 1]
    assert counts(lab, stages, "raw_media") == {"ok": 3}


def test_retry_reads_the_original_again_when_its_proxy_was_damaged(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings), brightness(MEAN))
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    with lab.catalog.read() as conn:
        key = conn.execute(sa.select(t.objects.c.key).where(t.objects.c.kind == "proxy").limit(1)).scalar_one()
    (Path(lab.settings.store_url) / key).write_bytes(b"damaged")
    assert run_stage(stages[1], batch.key, lab.services, stages).counts == {"ok": 1, "failed": 1}
    with lab.catalog.write() as conn:
        assert sweep.forget_damaged(conn, lab.source.id, "embeddings") == 0
        assert sweep.forget_damaged(conn, lab.source.id, "brightness") == 1
        assert features.forget_failures(conn, None, sweep.digests_of(lab.source.id)) == 1
        missing = missing_of(conn, lab.settings, stages, lab.source)
        keys, _complete = recompute(conn, lab.settings, lab.source, missing, kind="retry")
    for again in keys:
        for stage in stages:
            run_stage(stage, again, lab.services, stages)
    assert counts(lab, stages, "brightness") == counts(lab, stages, "raw_media") == {"ok": 2}


def _items(conn: sa.Connection) -> list[sa.RowMapping]:
    return list(conn.execute(sa.select(t.batch_items)).mappings())


def test_retry_puts_failures_back_and_leaves_refusals(lab: Lab) -> None:
    def failing(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        for work in works:
            yield Result(work, Finding("failed", code="crashed_worker", reason="died"))

    stages = (raw_media_stage(lab.settings), brightness(failing))
    lab.picture("a.png")
    (lab.folder / "b.png").write_bytes(b"nothing")
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    for _attempt in range(4):
        run_stage(stages[1], batch.key, lab.services, stages)
        _make_due(lab)
    with lab.catalog.write() as conn:
        assert features.forget_failures(conn, None, sweep.digests_of(lab.source.id)) == 1
        missing = missing_of(conn, lab.settings, stages, lab.source)
        keys, _complete = recompute(conn, lab.settings, lab.source, missing, kind="retry")
    assert len(keys) == 1
    healthy = (stages[0], replace(stages[1], run=MEAN))
    assert run_stage(healthy[1], keys[0], lab.services, healthy).counts == {"ok": 1}
    assert counts(lab, healthy, "raw_media") == {"ok": 1, "refused": 1}
