"""Old runs go when nothing depends on them, with their events and logs; what the UI shows stays."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages
from lab import Lab

from mirror_realm_assets import retention
from mirror_realm_assets.catalog import leases, retirement, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch
from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.retention import clean
from mirror_realm_assets.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home", tmp_path / "photos")
    yield made
    made.close()


@pytest.fixture
def instance(lab: Lab) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(lab.settings.dagster_home)) as opened:
        yield opened


@pytest.fixture
def definitions(lab: Lab) -> dg.Definitions:
    return build_defs(resource_overrides={"library": LibraryResource(home=str(lab.home))}, stages=cheap_stages)


def batch_of(lab: Lab, number: int) -> Batch:
    lab.picture(f"{number}.png", number)
    (batch,) = lab.form(cheap_stages(lab.settings))
    return batch


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, batch: Batch) -> str:
    instance.add_dynamic_partitions("media_batch", [batch.key])
    job = definitions.resolve_job_def("media_batch_job")
    return job.execute_in_process(partition_key=batch.key, instance=instance).run_id


def soon(lab: Lab) -> Settings:
    """Runs are old at once."""
    return lab.settings.model_copy(update={"run_retention_days": 1e-9})


def runs(instance: dg.DagsterInstance) -> set[str]:
    return {record.dagster_run.run_id for record in instance.get_run_records()}


def test_the_last_good_run_of_a_live_batch_stays_and_those_before_it_go(
    lab: Lab, instance: dg.DagsterInstance, definitions: dg.Definitions
) -> None:
    one, other = batch_of(lab, 1), batch_of(lab, 2)
    first, alone = run(definitions, instance, one), run(definitions, instance, other)
    last = run(definitions, instance, one)
    assert clean(instance, lab.catalog, lab.settings).runs == 0  # they are not old yet
    assert clean(instance, lab.catalog, soon(lab), dry_run=True).runs == 1
    assert runs(instance) == {first, alone, last}
    assert clean(instance, lab.catalog, soon(lab)).runs == 1
    assert runs(instance) == {alone, last}
    assert instance.get_materialized_partitions(dg.AssetKey("raw_media")) == {one.key, other.key}
    assert clean(instance, lab.catalog, soon(lab)).runs == 0


def test_every_run_of_a_retired_batch_goes_and_the_ledger_still_knows_it(
    lab: Lab, instance: dg.DagsterInstance, definitions: dg.Definitions
) -> None:
    batch = batch_of(lab, 1)
    gone = run(definitions, instance, batch)
    with lab.catalog.write() as conn:
        conn.execute(t.batches.update().values(retired_at=datetime.now(UTC)))
        assert retirement.retired_among(conn, [batch.key]) == {batch.key}
    assert clean(instance, lab.catalog, soon(lab)).runs == 1
    assert runs(instance) == set()
    with lab.catalog.read() as conn:
        assert conn.execute(sa.select(t.batch_runs.c.run_id)).scalars().all() == [gone]


def test_nothing_of_a_deleted_run_is_left_on_the_disk(
    lab: Lab, instance: dg.DagsterInstance, definitions: dg.Definitions
) -> None:
    batch = batch_of(lab, 1)
    first = run(definitions, instance, batch)
    run(definitions, instance, batch)
    named = [path for path in lab.settings.dagster_home.rglob("*") if first in str(path)]
    assert named
    clean(instance, lab.catalog, soon(lab))
    assert not [path for path in lab.settings.dagster_home.rglob("*") if first in str(path)]
    run(definitions, instance, batch)  # and the instance works on


def test_a_failed_run_stays_until_a_later_one_succeeds_and_runs_under_way_always(
    lab: Lab, instance: dg.DagsterInstance
) -> None:
    def add(status: dg.DagsterRunStatus, partition: str) -> str:
        made = dg.DagsterRun(job_name="media_batch_job", status=status, tags={"dagster/partition": partition})
        instance.add_run(made)
        return made.run_id

    failed, working = add(dg.DagsterRunStatus.FAILURE, "a"), add(dg.DagsterRunStatus.STARTED, "a")
    starting = add(dg.DagsterRunStatus.STARTING, "b")
    assert clean(instance, lab.catalog, soon(lab)).runs == 0
    later = add(dg.DagsterRunStatus.SUCCESS, "a")
    assert clean(instance, lab.catalog, soon(lab)).runs == 1
    assert runs(instance) == {working, starting, later} and failed not in runs(instance)


def test_many_pages_and_a_round_that_runs_out_of_time(
    lab: Lab, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAGE", 10)
    for _ in range(25):
        tags = {"dagster/partition": "a"}
        instance.add_run(dg.DagsterRun(job_name="j", status=dg.DagsterRunStatus.SUCCESS, tags=tags))
    cut = clean(instance, lab.catalog, soon(lab), seconds=0)
    assert cut.over and cut.runs == 0
    assert clean(instance, lab.catalog, soon(lab)).runs == 24
    assert len(runs(instance)) == 1


def test_workers_long_ended_are_forgotten_and_those_still_named_are_not(lab: Lab, instance: dg.DagsterInstance) -> None:
    with lab.catalog.write() as conn:
        ids = [workers.register(conn, "run", replace(identity(), pid=number + 1)) for number in range(4)]
        for ended in ids[:3]:
            workers.end(conn, ended)
        long_ago = datetime.now(UTC) - timedelta(days=90)
        conn.execute(t.workers.update().where(t.workers.c.id.in_(ids[:2])).values(ended_at=long_ago))
        assert leases.acquire(conn, "one", ids[1], 60)
    assert clean(instance, lab.catalog, lab.settings, dry_run=True).workers == 1
    assert clean(instance, lab.catalog, lab.settings).workers == 1
    with lab.catalog.read() as conn:
        left = set(conn.execute(sa.select(t.workers.c.id)).scalars())
    assert ids[0] not in left and set(ids[1:]) <= left


def test_the_job_runs_once_a_day_by_itself(lab: Lab, instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
    (schedule,) = definitions.schedules or []
    assert schedule.name == "maintenance_schedule" and schedule.cron_schedule == "23 3 * * *"  # type: ignore[union-attr]
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING  # type: ignore[union-attr]
    result = definitions.resolve_job_def("maintenance_job").execute_in_process(instance=instance)
    assert result.success
    assert uuid.UUID(result.run_id)
