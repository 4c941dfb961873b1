"""The pruner: the live keys of `media_batch` stay few, and no key goes that someone may still need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from lab import Lab
from runs import add_run

from mirror_realm_assets import pruning
from mirror_realm_assets.catalog import batches, leases, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.jobs import lane_job
from mirror_realm_assets.pruning import choose, prune, surplus
from mirror_realm_assets.resources.library import LibraryResource, close_services
from mirror_realm_assets.sensors.lanes import batch_sensor
from mirror_realm_assets.sensors.prune import prune_sensor

SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
LONG_AGO = 7200.0


class Garden:
    """A lab with an instance in which every batch has its key."""

    def __init__(self, lab: Lab, instance: dg.DagsterInstance) -> None:
        self.lab = lab
        self.instance = instance
        self.library = LibraryResource(home=str(lab.home))

    def grow(self, count: int, ago: float = LONG_AGO) -> list[str]:
        """Batches of one finished item, a second apart, with their keys."""
        with self.lab.catalog.write() as conn:
            source = sources.get(conn, "demo")
            first = conn.execute(sa.select(sa.func.coalesce(sa.func.max(t.batches.c.id), 0) + 1)).scalar_one()
            ended = now(conn) - timedelta(seconds=ago)
            ids = range(first, first + count)
            common = {
                "source_id": source.id, "kind": "ingest", "priority": 5, "requested_by": "test", "items": 1,
                "bytes": 1, "estimate_seconds": 1.0, "created_at": ended,
            }  # fmt: skip
            key = "demo.20260131T120000.{:05d}"
            conn.execute(t.batches.insert(), [{"id": n, "key": key.format(n), "seq": n, **common} for n in ids])
            conn.execute(
                t.batch_items.insert(),
                [
                    {
                        "batch_id": n, "n": 0, "feature": "raw_media", "state": "settled", "outcome": "ok",
                        "settled_at": ended + timedelta(microseconds=n),
                    }
                    for n in ids
                ],
            )  # fmt: skip
        keys = [key.format(n) for n in ids]
        self.instance.add_dynamic_partitions("media_batch", keys)
        return keys

    def reopen(self, key: str) -> None:
        with self.lab.catalog.write() as conn:
            batch = batches.get(conn, key)
            assert batch is not None
            mine = t.batch_items.c.batch_id == batch.id
            conn.execute(t.batch_items.update().where(mine).values(state="waiting", outcome=None, settled_at=None))

    def run(self, key: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        return add_run(self.instance, "media_batch_job", status, {"dagster/partition": key})

    def tick(self) -> str:
        found = prune_sensor(dg.build_sensor_context(instance=self.instance, resources={"library": self.library}))
        assert isinstance(found, dg.SkipReason)
        return found.skip_message or ""

    @property
    def live(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions("media_batch"))

    @property
    def retired(self) -> list[str]:
        with self.lab.catalog.read() as conn:
            query = sa.select(t.batches.c.key).where(t.batches.c.retired_at.is_not(None)).order_by(t.batches.c.id)
            return list(conn.execute(query).scalars())


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


@pytest.fixture
def garden(lab: Lab, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Garden]:
    """With more than six keys it is pruned down to three."""
    monkeypatch.setenv("MIRROR_REALM_PRUNE_ABOVE", "6")
    monkeypatch.setenv("MIRROR_REALM_PRUNE_TO", "3")
    made = Garden(lab, instance)
    yield made
    close_services(made.library.settings)


@pytest.mark.parametrize(
    ("live", "wanted"), [(0, 0), (7999, 0), (8500, 0), (9000, 0), (9001, 1001), (10_050, 2050), (60_000, 52_000)]
)
def test_nothing_goes_up_to_the_upper_bound_and_from_there_everything_above_the_lower(live: int, wanted: int) -> None:
    assert surplus(live, above=9000, to=8000) == wanted


def test_a_lower_bound_above_the_upper_one_prunes_nothing() -> None:
    assert surplus(9500, above=9000, to=20_000) == 0


def test_the_first_that_are_live_and_idle_are_chosen() -> None:
    assert choose(["a", "b", "c", "d", "e"], {"a", "c", "d", "e"}, {"c"}, 2) == ["a", "d"]


def test_a_library_of_10050_finished_batches_comes_down_to_8000_in_bounded_ticks(
    garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIRROR_REALM_PRUNE_ABOVE")
    monkeypatch.delenv("MIRROR_REALM_PRUNE_TO")
    keys = garden.grow(10_050)
    counts = []
    while len(garden.live) > 8000:
        garden.tick()
        counts.append(len(garden.live))
    assert counts == [9550, 9050, 8550, 8050, 8000]
    assert garden.live == keys[2050:]
    assert garden.retired == keys[:2050]
    assert garden.tick() == "8000 keys are live."
    assert len(garden.live) == 8000


def test_keys_up_to_the_bound_stay(garden: Garden) -> None:
    keys = garden.grow(6)
    assert garden.tick() == "6 keys are live."
    assert garden.live == keys
    assert garden.retired == []


def test_the_longest_finished_go_whenever_they_were_formed(garden: Garden) -> None:
    late, early = garden.grow(4, ago=5000), garden.grow(4, ago=9000)
    garden.tick()
    assert garden.live == late[1:]
    assert garden.retired == [late[0], *early]


def test_a_batch_with_open_work_keeps_its_key(garden: Garden) -> None:
    keys = garden.grow(8)
    garden.reopen(keys[0])
    garden.tick()
    assert garden.live == [keys[0], *keys[6:]]


@pytest.mark.parametrize("status", [status for status in dg.DagsterRunStatus if status not in (SUCCESS, FAILURE)])
def test_a_batch_with_a_run_keeps_its_key(garden: Garden, status: dg.DagsterRunStatus) -> None:
    keys = garden.grow(8)
    garden.run(keys[1], status)
    garden.tick()
    assert garden.live == [keys[1], *keys[6:]]


@pytest.mark.parametrize("status", [SUCCESS, FAILURE])
def test_a_batch_that_was_run_lately_keeps_its_key(garden: Garden, status: dg.DagsterRunStatus) -> None:
    keys = garden.grow(8)
    garden.run(keys[1], status)
    garden.tick()
    assert garden.live == [keys[1], *keys[6:]]


def test_a_batch_that_a_worker_holds_keeps_its_key(garden: Garden) -> None:
    keys = garden.grow(8)
    with garden.lab.catalog.write() as conn:
        assert leases.acquire(conn, batches.lease_name(keys[0], "enhance"), "worker", 60)
    garden.tick()
    assert garden.live == [keys[0], *keys[6:]]


def test_fresh_batches_keep_their_keys_and_the_tick_says_that_more_should_go(garden: Garden) -> None:
    old, fresh = garden.grow(2), garden.grow(8, ago=60)
    words = garden.tick()
    assert "2 were deleted, 0 retired ones are left; 5 more should go" in words
    assert garden.live == fresh
    assert garden.retired == old


def test_a_key_that_is_no_batch_of_ours_is_left_alone(garden: Garden) -> None:
    garden.instance.add_dynamic_partitions("media_batch", ["by-hand"])
    garden.grow(8)
    garden.tick()
    assert "by-hand" in garden.live
    assert len(garden.live) == 3


def test_pruning_twice_is_pruning_once(garden: Garden) -> None:
    garden.grow(8)
    garden.tick()
    live, retired = garden.live, garden.retired
    assert garden.tick() == "3 keys are live."
    assert (garden.live, garden.retired) == (live, retired)


def test_a_dry_run_says_what_would_go_and_retires_nothing(garden: Garden) -> None:
    keys = garden.grow(8)
    found = prune(garden.instance, garden.lab.catalog, garden.library.settings, dry_run=True)
    assert (found.live, found.retired, found.deleted) == (8, keys[:5], [])
    assert garden.live == keys
    assert garden.retired == []


@pytest.mark.parametrize("deleted", [0, 2])
def test_a_tick_killed_between_marks_and_deletions_is_repaired_by_the_next(
    garden: Garden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as real:
        garden.instance = real
        keys = garden.grow(8)
        left = deleted
        delete = real.delete_dynamic_partition

        def dying(name: str, key: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            delete(name, key)

        with monkeypatch.context() as patch:
            patch.setattr(real, "delete_dynamic_partition", dying)
            with pytest.raises(KeyboardInterrupt):
                garden.tick()
        assert garden.retired == keys[:5]
        assert garden.live == keys[deleted:]
        assert f"{5 - deleted} were deleted, 0 retired ones are left" in garden.tick()
        assert garden.live == keys[5:]
        assert garden.retired == keys[:5]


def test_a_key_that_was_deleted_without_a_mark_is_not_missed_and_never_returns(garden: Garden) -> None:
    keys = garden.grow(9)
    garden.instance.delete_dynamic_partition("media_batch", keys[0])
    garden.tick()
    assert garden.live == keys[6:]
    assert garden.retired == keys[1:6]
    _ask_for_runs(garden)
    assert garden.live == keys[6:]


def test_a_retired_key_that_is_run_again_goes_when_the_run_is_over(
    garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = garden.grow(8)
    with monkeypatch.context() as patch:
        patch.setattr(garden.instance, "delete_dynamic_partition", _killed)
        with pytest.raises(KeyboardInterrupt):
            garden.tick()
    run = garden.run(keys[0], dg.DagsterRunStatus.STARTED)  # by a person, just then
    assert "4 were deleted, 1 retired ones are left" in garden.tick()
    assert keys[0] in garden.live
    garden.instance.delete_run(run.run_id)
    garden.tick()
    assert keys[0] not in garden.live


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _ask_for_runs(garden: Garden) -> Sequence[dg.RunRequest]:
    stages = cheap_stages(garden.lab.settings)
    sensor = batch_sensor(lane_job("media_batch_job", stages, "search", "", garden.lab.settings), cheap_stages)
    found = sensor(dg.build_sensor_context(instance=garden.instance, resources={"library": garden.library}))
    assert isinstance(found, dg.SensorResult | dg.SkipReason)
    if isinstance(found, dg.SkipReason):
        return []
    for added in found.dynamic_partitions_requests or []:
        garden.instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
    return found.run_requests or []


def test_no_sensor_asks_for_a_retired_key_or_adds_it_again(garden: Garden) -> None:
    keys = garden.grow(8)
    garden.tick()
    garden.reopen(keys[0])  # nothing does that; if something did, the key would still not return
    garden.reopen(keys[7])
    assert [request.partition_key for request in _ask_for_runs(garden)] == [keys[7]]
    assert garden.live == keys[5:]


def test_nothing_is_retired_while_a_backfill_is_under_way(garden: Garden) -> None:
    keys = garden.grow(8)
    backfill = PartitionBackfill(
        backfill_id="fill",
        partition_names=keys,
        from_failure=False,
        reexecution_steps=None,
        tags={},
        backfill_timestamp=0.0,
        status=BulkActionStatus.REQUESTED,
    )
    garden.instance.add_backfill(backfill)
    assert garden.tick() == "8 keys are live; nothing is retired before the backfill fill has ended."
    assert garden.live == keys
    garden.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    garden.tick()
    assert garden.live == keys[5:]


def test_a_run_that_was_over_before_the_grace_keeps_no_key(garden: Garden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_PRUNE_GRACE_SECONDS", "0")
    monkeypatch.setattr(pruning, "_RETRY_SECONDS", 0.0)
    keys = garden.grow(8)
    for key in keys:
        garden.run(key, SUCCESS)
    garden.tick()
    assert garden.live == keys[5:]
