"""The reconciler as a sensor: it ends what is provably gone, says so, and asks for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest
from lab import Lab

from mirror_realm_assets.catalog import leases, workers
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.resources.library import LibraryResource, close_services
from mirror_realm_assets.sensors.reconcile import reconcile_sensor


@pytest.fixture
def library(lab: Lab) -> Iterator[LibraryResource]:
    found = LibraryResource(home=str(lab.home))
    yield found
    close_services(found.settings)


def tick(instance: dg.DagsterInstance, library: LibraryResource) -> str:
    found = reconcile_sensor(dg.build_sensor_context(instance=instance, resources={"library": library}))
    assert isinstance(found, dg.SkipReason)
    return found.skip_message or ""


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_runs_of_dead_workers_end_and_what_they_held_is_free(lab: Lab, library: LibraryResource) -> None:
    instance = dg.DagsterInstance.ephemeral()
    alive, gone = (dg.DagsterRun(job_name="media_batch_job", status=dg.DagsterRunStatus.STARTED) for _ in range(2))
    instance.add_run(alive)
    instance.add_run(gone)
    here = identity()
    with lab.catalog.write() as conn:
        workers.register(conn, "run", here, run_id=alive.run_id)
        dead = workers.register(conn, "run", replace(here, pid=dead_pid()), run_id=gone.run_id)
        assert leases.acquire(conn, "batch/search/demo", dead, 60)
    assert tick(instance, library) == "1 runs without a process were ended, 1 dead workers buried."
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {alive.run_id: dg.DagsterRunStatus.STARTED, gone.run_id: dg.DagsterRunStatus.FAILURE}
    with lab.catalog.read() as conn:
        assert leases.holder(conn, "batch/search/demo") is None
    assert tick(instance, library) == "Every run has its process."


def test_a_run_whose_process_nobody_knows_is_not_guessed_to_be_dead(lab: Lab, library: LibraryResource) -> None:
    instance = dg.DagsterInstance.ephemeral()
    run = dg.DagsterRun(job_name="media_batch_job", status=dg.DagsterRunStatus.STARTING)
    instance.add_run(run)
    assert tick(instance, library) == "Every run has its process."
    assert [found.status for found in instance.get_runs()] == [dg.DagsterRunStatus.STARTING]
