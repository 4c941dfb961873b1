"""Runs of every status in an instance, without running anything."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin


def add_run(
    instance: dg.DagsterInstance, job: str, status: dg.DagsterRunStatus, tags: Mapping[str, str]
) -> dg.DagsterRun:
    """Record a run as it is; a queued one has to say where its job comes from."""
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("tests"), "repository"), job)
    run = dg.DagsterRun(job_name=job, status=status, tags=tags, remote_job_origin=origin)
    instance.add_run(run)
    return run
