"""Runs and steps as Jobs of a Kubernetes cluster.

What belongs here: which executor there is, and what the pods of whole runs ask for. What does not: what a step's pod
asks for (`op_tags`), how the run's pod is made (`dagster.yaml`), and the cluster's own objects (`deploy/`).
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from mirror_realm_assets.op_tags import K8S_CONFIG, index_resources
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Lane

# A batch's run has two steps, of which the second waits for the first; a run that a person puts together may have more.
_STEPS_AT_ONCE = 4
_RETRIES, _LEASE_MARGIN = 2, 10.0


def executor(settings: Settings) -> dg.ExecutorDefinition:
    """What runs the steps of every job that does not say otherwise, those that a person puts together included.

    It stands on the definitions, because runs that the UI starts from assets know no other place.
    """
    if not settings.on_cluster:
        # Steps of a run share one process: torch is imported once, and models stay loaded from step to step.
        return dg.in_process_executor
    from dagster_k8s import k8s_job_executor  # a second of import that nobody else needs

    # No owner references: with them the steps' pods would die with the run's, which is resumed while they go on.
    configured = {"max_concurrent": _STEPS_AT_ONCE, "retries": {"enabled": {}}}
    made: dg.ExecutorDefinition = k8s_job_executor.configured(configured, name="k8s_job_executor")
    return made


def retry_policy(settings: Settings, lane: Lane) -> dg.RetryPolicy | None:
    """When a step whose pod was killed, evicted or lost is tried again; what our own code says is final is not.

    The pod that is gone cannot give back what it held, and nobody on another machine can prove its death. So the next
    one waits until its leases have run out.
    """
    if not settings.on_cluster or lane == "archive":  # which runs in its run's own pod, and waits there if it is ended
        return None
    return dg.RetryPolicy(max_retries=_RETRIES, delay=settings.lease_seconds + _LEASE_MARGIN)


def one_pod(settings: Settings) -> dict[str, Any]:
    """For a job of short steps on CPUs: they run in the pod of the run, since a pod each takes longer than they do.

    Returns:
        Arguments of `define_asset_job`, without `tags`.
    """
    return {"executor_def": dg.in_process_executor} if settings.on_cluster else {}


def one_pod_tags(settings: Settings) -> dict[str, Any]:
    """Tags of such a job: its run's pod works and does not only wait."""
    if not settings.on_cluster:
        return {}
    return {K8S_CONFIG: {"container_config": {"resources": index_resources(settings.threads)}}}
