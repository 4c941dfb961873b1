"""The batch sensor and the enhance sensor: ticks over a real ledger and an instance without a daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab
from runs import add_run

from mirror_realm_assets.catalog import batches, leases, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.jobs import lane_job
from mirror_realm_assets.resources.library import LibraryResource, close_services
from mirror_realm_assets.sensors import lanes
from mirror_realm_assets.sensors.lanes import batch_sensor, enhance_sensor

Tick = dg.SensorResult | dg.SkipReason


class Floor:
    """A lab with its sensors, and Dagster's part: adding keys, queueing runs, ending them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.instance = dg.DagsterInstance.ephemeral()
        self.stages = cheap_stages(lab.settings)
        self.library = LibraryResource(home=str(lab.home))
        self.sensors = {
            "search": batch_sensor(lane_job("media_batch_job", self.stages, "search", "", lab.settings), cheap_stages),
            "enhance": enhance_sensor(lane_job("enhance_job", self.stages, "enhance", "", lab.settings), cheap_stages),
        }

    def tick(self, lane: str = "search") -> Tick:
        context = dg.build_sensor_context(instance=self.instance, resources={"library": self.library})
        found = self.sensors[lane](context)
        assert isinstance(found, dg.SensorResult | dg.SkipReason)
        if isinstance(found, dg.SensorResult):  # what the daemon does with it, in its order
            for added in found.dynamic_partitions_requests or []:
                self.instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
        return found

    def requests(self, lane: str = "search") -> Sequence[dg.RunRequest]:
        found = self.tick(lane)
        return found.run_requests or [] if isinstance(found, dg.SensorResult) else []

    def skips(self, lane: str = "search") -> str:
        found = self.tick(lane)
        assert isinstance(found, dg.SkipReason), found
        return found.skip_message or ""

    def run(
        self, request: dg.RunRequest, status: dg.DagsterRunStatus, job: str = "media_batch_job", **tags: str
    ) -> dg.DagsterRun:
        known = {"dagster/partition": request.partition_key or "", "dagster/run_key": request.run_key or ""}
        return add_run(self.instance, job, status, {**request.tags, **known, **tags})

    def over(self, run: dg.DagsterRun, status: dg.DagsterRunStatus) -> None:
        self.instance.delete_run(run.run_id)
        add_run(self.instance, run.job_name, status, run.tags)

    def see(self, *names: str) -> None:
        for name in names:
            self.lab.picture(name, sum(name.encode()))
        self.lab.scan()

    def pending(self, lane: str = "search") -> list[batches.PendingBatch]:
        features = [stage.feature for stage in self.stages if stage.lane == lane]
        with self.lab.catalog.read() as conn:
            return batches.pending(conn, lane, features)

    def end_back_off(self) -> None:
        with self.lab.catalog.write() as conn:
            conn.execute(t.batch_lanes.update().values(not_before=now(conn)))


@pytest.fixture
def floor(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Floor]:
    monkeypatch.setenv("MIRROR_REALM_BATCH_AGE_SECONDS", "0")
    monkeypatch.setenv("MIRROR_REALM_LOW_SPACE_BYTES", "0")
    made = Floor(lab)
    yield made
    close_services(made.library.settings)


QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


def test_what_the_watcher_saw_becomes_a_batch_and_a_run_in_one_tick(floor: Floor) -> None:
    floor.see("a.png", "b.png")
    found = floor.tick()
    assert isinstance(found, dg.SensorResult)
    (request,) = found.run_requests or []
    (batch,) = floor.pending()
    assert request.partition_key == batch.key
    assert request.run_key == f"{batch.key}:0"
    assert dict(request.tags) == {
        "mirror-realm/source": "demo",
        "mirror-realm/lane": "search",
        "mirror-realm/by": "sensor",
        "dagster/priority": "5",
        "dagster/max_runtime": "1800",
    }
    assert set(floor.instance.get_dynamic_partitions("media_batch")) == {batch.key}
    assert set(floor.instance.get_dynamic_partitions("data_source")) == {"demo"}
    assert found.cursor == '{"formed": 1, "requested": 1}'


def test_keys_that_are_there_are_not_added_again(floor: Floor) -> None:
    floor.see("a.png")
    floor.tick()
    again = floor.tick()  # no run was made of the first request: it is simply asked again
    assert isinstance(again, dg.SensorResult)
    assert again.dynamic_partitions_requests == []
    assert len(again.run_requests or []) == 1


def test_nothing_seen_is_nothing_to_do(floor: Floor) -> None:
    assert floor.skips() == "Nothing to do."


@pytest.mark.parametrize("status", [QUEUED, dg.DagsterRunStatus.STARTING, STARTED, dg.DagsterRunStatus.CANCELING])
def test_a_batch_with_a_run_is_not_asked_for_again(floor: Floor, status: dg.DagsterRunStatus) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    floor.run(request, status)
    assert floor.requests() == []


def test_a_tick_killed_between_forming_and_asking_is_repaired_by_the_next(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.see("a.png")
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "_tick", _killed)
        with pytest.raises(KeyboardInterrupt):
            floor.tick()
    assert floor.instance.get_dynamic_partitions("media_batch") == []
    (request,) = floor.requests()
    assert request.partition_key in floor.instance.get_dynamic_partitions("media_batch")


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_failed_run_gives_a_new_attempt_after_its_back_off(floor: Floor) -> None:
    floor.see("a.png")
    for attempt in range(3):
        (request,) = floor.requests()
        assert request.run_key == f"{request.partition_key}:{attempt}"
        floor.run(request, FAILURE)
        assert "1 runs ended with work left" in floor.skips()
        assert floor.skips() == "1 batches wait for their next attempt"
        (batch,) = floor.pending()
        with floor.lab.catalog.read() as conn:
            assert batch.not_before is not None
            wait = (batch.not_before - now(conn)).total_seconds()
        assert wait == pytest.approx(10 * 2**attempt, abs=3)
        floor.end_back_off()


def test_a_run_that_succeeded_with_work_left_is_asked_for_again_at_once(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    floor.run(request, SUCCESS)
    floor.skips()
    (again,) = floor.requests()
    assert again.run_key == f"{request.partition_key}:1"


def test_two_ticks_that_see_one_failed_run_count_it_once(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    floor.run(request, FAILURE)
    (before,) = floor.pending()
    floor.tick()
    with floor.lab.catalog.write() as conn:  # the older tick, that outlived its time-out
        batches.bump_attempt(conn, before.id, "search", before.attempt, failed=True)
    (after,) = floor.pending()
    assert after.attempt == 1


def test_a_run_that_dagster_retries_is_left_alone_until_the_retry_is_over(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    floor.run(request, FAILURE, **{"dagster/will_retry": "true"})
    assert floor.requests() == []
    assert floor.pending()[0].attempt == 0
    retry = floor.run(request, QUEUED)
    assert floor.requests() == []
    floor.over(retry, FAILURE)
    floor.tick()
    assert floor.pending()[0].attempt == 1


def test_a_retry_that_dagster_promised_and_never_started_is_not_waited_for_for_ever(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    floor.run(request, FAILURE, **{"dagster/will_retry": "true"})
    assert floor.requests() == []
    later = time.time() + 301
    monkeypatch.setattr("mirror_realm_assets.sensors.lanes.time.time", lambda: later)
    floor.tick()
    assert floor.pending()[0].attempt == 1


def test_a_leased_batch_is_left_to_its_worker(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    with floor.lab.catalog.write() as conn:
        leases.acquire(conn, batches.lease_name(str(request.partition_key), "search"), "ingest", 60)
    assert floor.skips() == "1 batches are being worked on"


def test_a_paused_source_gets_nothing_and_the_reason_says_so(floor: Floor) -> None:
    floor.see("a.png")
    with floor.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused", "systemic: the drive is broken")
    assert floor.skips() == "source demo is paused: systemic: the drive is broken"
    with floor.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "active")
    assert len(floor.requests()) == 1


def test_the_queue_is_never_filled_beyond_its_limit(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_LANE_RUNS", "3")
    for number in range(5):
        floor.see(f"{number}.png")
        floor.lab.form(floor.stages)
    requests = floor.requests()
    assert [r.partition_key for r in requests] == [b.key for b in floor.pending()][:3]
    for request in requests[:2]:
        floor.run(request, QUEUED)
    assert [r.partition_key for r in floor.requests()] == [b.key for b in floor.pending()][2:3]


def test_a_batch_that_is_done_is_asked_for_no_more(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    run_lane(floor.lab.services, floor.stages, str(request.partition_key))
    assert floor.skips() == "Nothing to do."


# --- The enhancement lane. ---


def test_enhancement_waits_until_its_batch_can_be_searched(floor: Floor) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    assert floor.skips("enhance") == "Nothing to do."
    run_lane(floor.lab.services, floor.stages, str(request.partition_key))
    (enhance,) = floor.requests("enhance")
    assert enhance.partition_key == request.partition_key
    assert enhance.tags["mirror-realm/lane"] == "enhance"
    assert int(enhance.tags["dagster/priority"]) < -5  # below every kind of batch of the search lane
    assert enhance.tags["dagster/max_runtime"] == "9000"  # of a slice of 30 minutes


def test_a_slice_that_ends_is_followed_by_the_next_until_the_batch_is_done(floor: Floor) -> None:
    floor.see("a.png")
    (search,) = floor.requests()
    run_lane(floor.lab.services, floor.stages, str(search.partition_key))
    (first,) = floor.requests("enhance")
    floor.run(first, SUCCESS, job="enhance_job")
    floor.skips("enhance")
    (second,) = floor.requests("enhance")
    assert second.run_key == f"{search.partition_key}:1"
    run_lane(floor.lab.services, floor.stages, str(search.partition_key), "enhance")
    assert floor.skips("enhance") == "Nothing to do."


def test_the_lanes_count_their_attempts_apart(floor: Floor) -> None:
    floor.see("a.png")
    (search,) = floor.requests()
    run_lane(floor.lab.services, floor.stages, str(search.partition_key))
    floor.run(search, FAILURE)  # of the other job: it says nothing about this lane
    (enhance,) = floor.requests("enhance")
    assert enhance.run_key == f"{search.partition_key}:0"


def test_enhancement_rests_below_the_low_space_mark_and_ingest_goes_on(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.see("a.png")
    (request,) = floor.requests()
    run_lane(floor.lab.services, floor.stages, str(request.partition_key))
    monkeypatch.setenv("MIRROR_REALM_LOW_SPACE_BYTES", str(10**18))
    library = floor.library
    try:
        words = floor.skips("enhance")
        assert "below the mark of 1000000000.0 GB" in words
        assert "GB are free for the store" in words
        floor.see("b.png")
        assert len(floor.requests()) == 1
    finally:
        close_services(library.settings)


def test_a_retry_that_is_not_due_is_no_reason_for_a_run(floor: Floor) -> None:
    floor.see("a.png")
    floor.requests()
    with floor.lab.catalog.write() as conn:
        later = now(conn) + timedelta(seconds=30)
        conn.execute(t.batch_items.update().values(not_before=later))
        assert conn.execute(sa.select(sa.func.count()).select_from(t.batch_items)).scalar_one() == 3
    assert floor.skips() == "1 batches wait for their next attempt"
