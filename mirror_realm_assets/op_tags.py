"""Tags and pools of steps, each with its reason.

What belongs here: what decides where and how many at once a step runs. What does not: priorities of runs
(`catalog.batches`), and the executor that reads the tags (`cluster`).
"""

from __future__ import annotations

from typing import Any

from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import MIB, Memory, Stage

# Pools limit how many runs use a resource at once. They are not locks: what must not happen twice has a lease.
POOL_EMBED = "embed"  # search lane: one inference process at a time on a small machine
POOL_ENHANCE = "enhance"  # enhancement lane: apart, so that a slow picture never holds back the search lane's run
POOL_INDEX = "index_writer"
POOL_GPU = "gpu"
"""On a cluster: of all steps that want a GPU, and as large as it has GPUs."""

K8S_CONFIG = "dagster-k8s/config"
"""Read by `k8s_job_executor` from a step's tags: those of jobs and runs never reach step pods."""
# Python with Dagster, FAISS and the vectors of an index that is made anew.
_INDEX_BYTES = 4096 * MIB
# Of steps that wait for a GPU the ones that make pictures searchable come first.
_PRIORITY = {"search": "10", "enhance": "0", "archive": "0"}
_GPU: dict[str, Any] = {
    "node_selector": {"mirror-realm/gpu": "true"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}


def for_stage(stage: Stage, settings: Settings) -> dict[str, Any]:
    """The op tags of a stage: what kind of device it wants and, on a cluster, what of it."""
    gpu = stage.resource == "gpu"
    tags: dict[str, Any] = {"mirror-realm/device": "gpu" if gpu else "cpu"}
    if not settings.on_cluster:
        if gpu:
            tags[K8S_CONFIG] = {"container_config": _with_gpu({}), "pod_spec_config": _GPU}
        return tags
    container: dict[str, Any] = {"resources": _resources(stage.memory(), settings.threads)}
    pod = _account(settings)
    if gpu and settings.gpus:
        container, pod = _with_gpu(container), _GPU | pod
        if settings.gpu_image:
            container["image"] = settings.gpu_image
        tags["dagster/priority"] = _PRIORITY[stage.lane]
    tags[K8S_CONFIG] = {"container_config": container, "pod_spec_config": pod}
    return tags


def for_index(settings: Settings) -> dict[str, Any]:
    """The op tags of steps that belong to no stage, for when one is run by itself."""
    tags: dict[str, Any] = {"mirror-realm/device": "cpu"}
    if settings.on_cluster:
        container = {"resources": index_resources(settings.threads)}
        tags[K8S_CONFIG] = {"container_config": container, "pod_spec_config": _account(settings)}
    return tags


def pool_of(stage: Stage, settings: Settings) -> str | None:
    """The pool of a stage's step.

    On one machine the steps of a run share its device, so that each holds the lane's pool. On a cluster a step has a
    pod to itself, and only what wants a GPU waits for one.
    """
    if not settings.on_cluster:
        return stage.pool
    if stage.resource == "cpu":
        return None
    return POOL_GPU if settings.gpus else stage.pool


def index_resources(threads: int) -> dict[str, Any]:
    """What an index wants that is made anew."""
    return _resources(Memory(_INDEX_BYTES // 2, _INDEX_BYTES), threads)


def _account(settings: Settings) -> dict[str, Any]:
    """Pods of steps read files of strangers: none has the rights of the run's, which starts others."""
    account = settings.step_service_account
    return {"service_account_name": account} if account else {}


def _with_gpu(container: dict[str, Any]) -> dict[str, Any]:
    resources = container.get("resources", {})
    limits = {**resources.get("limits", {}), "nvidia.com/gpu": "1"}
    return {**container, "resources": {**resources, "limits": limits}}


def _resources(memory: Memory, threads: int) -> dict[str, Any]:
    # No limit of CPUs: a step that is throttled holds its memory, and its GPU, for longer.
    return {
        "requests": {"cpu": str(threads), "memory": _mebibytes(memory.usual)},
        "limits": {"memory": _mebibytes(max(memory.usual, memory.most))},
    }


def _mebibytes(count: int) -> str:
    """A quantity of memory, rounded up."""
    return f"{-(-count // MIB)}Mi"
