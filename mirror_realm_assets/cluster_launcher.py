"""The run launcher of a cluster: dagster-k8s's, which ends a run's steps with it and waits where it is told to.

What belongs here: what dagster-k8s 0.29.27 lacks. What does not: everything else about Jobs, which is its own.

A run that may be resumed leaves its steps alone when its pod ends, so that they go on. It does so as well when a person
has ended the run, whose steps then keep their GPUs (dagster#33923). And the API server answers 429 when it has too much
to do, which dagster-k8s takes for final.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dagster_k8s import K8sRunLauncher

_TOO_MANY_REQUESTS = 429
_TRIES, _LONGEST_SECONDS = 5, 30.0


class ClusterRunLauncher(K8sRunLauncher):
    """`K8sRunLauncher` with the same configuration."""

    def launch_run(self, context: Any) -> None:
        """Make the Job of a run; see `K8sRunLauncher`."""
        _patiently(lambda: super(ClusterRunLauncher, self).launch_run(context))

    def resume_run(self, context: Any) -> None:
        """Make another Job for a run whose pod is gone; see `K8sRunLauncher`."""
        _patiently(lambda: super(ClusterRunLauncher, self).resume_run(context))

    def terminate(self, run_id: str) -> bool:
        """End a run's Job, and those of its steps; see `K8sRunLauncher`."""
        done = bool(super().terminate(run_id))
        self._end_steps(run_id)
        return done

    def _end_steps(self, run_id: str) -> None:
        from kubernetes import client

        api = client.BatchV1Api()  # of the cluster whose configuration the launcher has loaded
        selector = f"app.kubernetes.io/component=step_worker,dagster/run-id={run_id}"
        for job in api.list_namespaced_job(self.job_namespace, label_selector=selector).items:
            try:
                api.delete_namespaced_job(job.metadata.name, self.job_namespace, propagation_policy="Background")
            except client.ApiException as error:
                if error.status != 404:  # it has gone by itself
                    raise


def _patiently(launch: Callable[[], None]) -> None:
    """Launch, and again as long as the API server has too much to do."""
    for left in reversed(range(_TRIES)):
        try:
            launch()
        except Exception as error:
            seconds = _told_to_wait(error)
            if seconds is None or not left:
                raise
            time.sleep(seconds)
        else:
            return


def _told_to_wait(error: Exception) -> float | None:
    """Seconds to wait, when that is what an error of dagster-k8s is about."""
    answer = getattr(error, "k8s_api_exception", None)
    if answer is None or answer.status != _TOO_MANY_REQUESTS:
        return None
    try:
        return min(float((answer.headers or {}).get("Retry-After", 1)), _LONGEST_SECONDS)
    except ValueError:
        return 1.0
