"""Batches on a cluster: through sensor, queue, launcher, the run's Job and the steps' Jobs, with PostgreSQL and S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import pytest
from cluster_process import NAMESPACE, node
from installation_on_cluster import OnCluster, put, statuses, told

_SUCCESS = dg.DagsterRunStatus.SUCCESS
Photos = dict[str, npt.NDArray[np.uint8]]


@pytest.mark.xdist_group("inference")
def test_a_batch_becomes_an_index_and_enhanced_pictures_through_jobs(
    install: Callable[..., OnCluster], photos: Photos
) -> None:
    home = install([node("cpu", cpu="16", memory="64Gi"), node("gpu", cpu="16", memory="64Gi", gpus=1)])
    home.command("sources", "add", "demo", "--folder", str(home.photos))
    home.start()
    put(home.photos, photos)
    told(home, lambda: home.features().get(("enhanced_images", "ok")) == 3, 240)
    told(home, lambda: statuses(home, "index_job") and statuses(home, "index_job")[0] is _SUCCESS)
    assert home.features() == {("raw_media", "ok"): 3, ("embeddings", "ok"): 3, ("enhanced_images", "ok"): 3}
    found = home.command("search", "--like", str(home.photos / "photo-1.png"), "--json")
    assert "photo-1.png" in found

    # A job that a script launches waits in the same queue, and becomes a pod as well.
    before = len(statuses(home, "index_job"))
    home.dagster("job", "launch", "-j", "index_job", "--tags", json.dumps({"dagster/partition": "demo"}))
    told(home, lambda: statuses(home, "index_job")[0] is _SUCCESS and len(statuses(home, "index_job")) > before)

    # What wants a GPU ran where there is one, and had it for itself; a short job ran in its run's own pod.
    where = {(pod.metadata.labels["dagster/op"], pod.spec.node_name) for pod in home.pods("step_worker")}
    assert where == {("raw_media", "cpu"), ("embeddings", "gpu"), ("enhanced_images", "gpu")}
    limits = {
        pod.metadata.labels["dagster/op"]: pod.spec.containers[0].resources.limits for pod in home.pods("step_worker")
    }
    assert {name: "nvidia.com/gpu" in found for name, found in limits.items()} == {
        "raw_media": False,
        "embeddings": True,
        "enhanced_images": True,
    }
    assert all("memory" in found for found in limits.values())
    assert {pod.status.phase for pod in [*home.pods("run_worker"), *home.pods("step_worker")]} <= {
        "Succeeded",
        "Running",
    }

    # The logs of every step are in the bucket.
    client: Any = home.bucket.client()
    stored = client.list_objects_v2(Bucket="cluster", Prefix=f"{home.prefix}/compute-logs")
    keys = [found["Key"] for found in stored.get("Contents", ())]
    (run,) = [run for run in home.runs("media_batch_job") if run.status is _SUCCESS]
    assert any(run.run_id in key for key in keys)
    # And nothing of the Secret stands in a manifest.
    made = str([job.to_dict() for job in [*home.jobs("run_worker"), *home.jobs("step_worker")]])
    assert home.settings["MIRROR_REALM_DAGSTER_URL"] not in made
    assert NAMESPACE in made
