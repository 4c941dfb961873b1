"""What goes wrong on a cluster: pods that die, run workers that die, GPUs that are taken, an API server with errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import pytest
from cluster_process import NAMESPACE, node
from installation_on_cluster import REPOSITORY, OnCluster, put, statuses, told

Photos = dict[str, npt.NDArray[np.uint8]]
NODES = [node("cpu", cpu="16", memory="64Gi"), node("gpu", cpu="16", memory="64Gi", gpus=1)]
_SUCCESS = dg.DagsterRunStatus.SUCCESS


@pytest.fixture
def toys(install: Callable[..., OnCluster]) -> Callable[..., OnCluster]:
    """An installation with toy stages, and a source that wants no enhancement."""
    path = ":".join(str(REPOSITORY / "tests" / part) for part in ("kubernetes", "end_to_end", "."))

    def make(nodes: list[dict[str, Any]] | None = None, **env: str) -> OnCluster:
        # Set for the processes beside the cluster, too.
        settings = {"PYTHONPATH": path, "MIRROR_REALM_LEASE_SECONDS": "4", "MIRROR_REALM_HEARTBEAT_SECONDS": "1", **env}
        home = install(nodes or NODES, module="toy_location", env=settings)
        home.command("sources", "add", "demo", "--folder", str(home.photos), "--option", "enhance=false")
        return home

    return make


def tell(home: OnCluster, *what: str) -> None:
    for name in what:
        (home.home / name).touch()


def computed(home: OnCluster) -> Counter[tuple[str, str]]:
    """How often each picture was computed, by feature and digest."""
    log = home.home / "computed.log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return Counter((words[2], words[3]) for words in lines)


def step_jobs(home: OnCluster, op: str) -> list[Any]:
    return [job for job in home.jobs("step_worker") if job.metadata.labels["dagster/op"] == op]


def running_step(home: OnCluster, op: str) -> Any:
    return told(
        home,
        lambda: next(
            (
                pod
                for pod in home.pods("step_worker")
                if pod.metadata.labels["dagster/op"] == op and pod.status.phase == "Running"
            ),
            None,
        ),
    )


def finished(home: OnCluster, runs: int = 1) -> None:
    """So many runs of the search lane have succeeded, and nothing was computed twice."""
    told(home, lambda: statuses(home, "media_batch_job").count(_SUCCESS) == runs)
    assert set(computed(home).values()) == {1}


@pytest.mark.long
def test_a_step_that_fails_one_that_takes_too_much_memory_and_one_that_is_evicted_are_tried_again(
    toys: Callable[..., OnCluster], photos: Photos
) -> None:
    home = toys()
    tell(home, "raw_media.rests", "embeddings.fails")
    home.start()
    put(home.photos, photos)
    home.cluster.evict(running_step(home, "raw_media").metadata.name)
    (home.home / "raw_media.rests").unlink()
    told(home, lambda: len(step_jobs(home, "raw_media")) == 2)  # a Job of its own for each attempt
    told(home, lambda: not (home.home / "embeddings.fails").exists())
    tell(home, "embeddings.swells")
    finished(home)
    (run,) = home.runs("media_batch_job")
    assert len(step_jobs(home, "embeddings")) == 3
    reasons = Counter(
        pod.status.container_statuses[0].state.terminated.reason
        for pod in home.pods("step_worker")
        if pod.metadata.labels["dagster/op"] == "embeddings"
    )
    assert reasons == {"Completed": 2, "OOMKilled": 1} or reasons == {"Error": 1, "OOMKilled": 1, "Completed": 1}
    assert run.status is _SUCCESS


def test_a_run_worker_that_is_killed_is_resumed_while_its_step_goes_on(
    toys: Callable[..., OnCluster], photos: Photos
) -> None:
    home = toys()
    tell(home, "embeddings.rests")
    home.start()
    put(home.photos, photos)
    running_step(home, "embeddings")
    (worker,) = [pod for pod in home.pods("run_worker") if pod.status.phase == "Running"]
    home.cluster.core().delete_namespaced_pod(worker.metadata.name, NAMESPACE, grace_period_seconds=0)
    told(home, lambda: len(home.jobs("run_worker")) == 2)
    told(home, lambda: [pod for pod in home.pods("run_worker") if pod.status.phase == "Running"])
    (home.home / "embeddings.rests").unlink()
    finished(home)
    assert len(step_jobs(home, "embeddings")) == 1
    assert len(home.runs("media_batch_job")) == 1


@pytest.mark.long
def test_a_run_worker_and_its_step_that_are_lost_together_cost_only_time(
    toys: Callable[..., OnCluster], photos: Photos
) -> None:
    home = toys()
    tell(home, "embeddings.rests")
    home.start()
    put(home.photos, photos)
    step = running_step(home, "embeddings")
    (worker,) = [pod for pod in home.pods("run_worker") if pod.status.phase == "Running"]
    for pod in (worker, step):
        home.cluster.core().delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    (home.home / "embeddings.rests").unlink()
    told(home, lambda: home.features().get(("embeddings", "ok")) == 3, 280)
    told(home, lambda: _SUCCESS in statuses(home, "media_batch_job"))
    assert set(computed(home).values()) == {1}


def test_a_terminated_run_ends_its_pods_and_frees_its_place(toys: Callable[..., OnCluster], photos: Photos) -> None:
    home = toys()
    tell(home, "embeddings.rests")
    home.start()
    put(home.photos, photos)
    pod = running_step(home, "embeddings")
    with home.instance() as instance:
        (run,) = [run for run in home.runs("media_batch_job") if run.status is dg.DagsterRunStatus.STARTED]
        instance.run_coordinator.cancel_run(run.run_id)
    told(home, lambda: pod.metadata.name not in {found.metadata.name for found in home.pods("step_worker")})
    (home.home / "embeddings.rests").unlink()
    finished(home)  # what is left is asked for again, and finds a free place in the pool


@pytest.mark.long
def test_two_gpus_run_two_steps_and_a_third_waits(toys: Callable[..., OnCluster], photos: Photos) -> None:
    home = toys(
        [node("cpu", cpu="16", memory="64Gi"), node("gpu", cpu="16", memory="64Gi", gpus=2)],
        MIRROR_REALM_GPUS="3",  # one more than there are: the third pod is made and has to wait
        MIRROR_REALM_BATCH_ITEMS="1",
    )
    tell(home, "embeddings.rests")
    home.start()
    put(home.photos, photos)

    def phases() -> list[str]:
        pods = [pod for pod in home.pods("step_worker") if pod.metadata.labels["dagster/op"] == "embeddings"]
        return sorted(pod.status.phase for pod in pods)

    told(home, lambda: phases() == ["Pending", "Running", "Running"])
    (home.home / "embeddings.rests").unlink()
    finished(home, runs=3)


@pytest.mark.long
def test_errors_of_the_api_server_cost_only_time(toys: Callable[..., OnCluster], photos: Photos) -> None:
    home = toys()
    home.cluster.fault("POST", "/jobs$", times=1, status=500)
    home.cluster.fault("POST", "/jobs$", times=1, status=503, after=True)  # done, and the answer is lost
    home.cluster.fault("POST", "/jobs$", times=2, status=429, retryAfter=1)
    home.cluster.fault("POST", "/jobs$", times=1, hang=5)  # nothing is done, and the answer comes late
    home.cluster.fault("GET", "/status$", times=2, status=500)
    home.cluster.fault("GET", "/status$", times=1, hang=5)
    home.start()
    put(home.photos, photos)
    told(home, lambda: home.features().get(("embeddings", "ok")) == 3)
    told(home, lambda: _SUCCESS in statuses(home, "media_batch_job"))
    assert set(computed(home).values()) == {1}
