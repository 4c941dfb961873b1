"""Tags and pools of steps, each with its reason.

What belongs here: constants that decide where and how many at once a step runs. What does not: priorities of runs
(`catalog.batches`).
"""

from __future__ import annotations

from typing import Any

# Pools limit how many runs use a resource at once. They are not locks: what must not happen twice has a lease.
POOL_EMBED = "embed"  # search lane: one inference process at a time on a small machine
POOL_ENHANCE = "enhance"  # enhancement lane: apart, so that a slow picture never holds back the search lane's run
POOL_INDEX = "index_writer"

# Read by `k8s_job_executor` alone: tags of jobs and runs never reach step pods, so GPU needs stand on the asset.
GPU: dict[str, Any] = {
    "dagster-k8s/config": {
        "container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
        "pod_spec_config": {
            "node_selector": {"mirror-realm/gpu": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    },
    "mirror-realm/device": "gpu",
}
CPU: dict[str, Any] = {"mirror-realm/device": "cpu"}


def for_resource(resource: str) -> dict[str, Any]:
    """The op tags of a stage that wants `cpu` or `gpu`."""
    return dict(GPU if resource == "gpu" else CPU)
