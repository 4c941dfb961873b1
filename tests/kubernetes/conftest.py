"""Fixtures of the tests on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_process import NAMESPACE, SmallCluster
from installation_on_cluster import REPOSITORY, OnCluster
from kubernetes import client
from postgres import Server
from s3_server import S3Server


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., SmallCluster]]:
    """Starts clusters, and ends them with the test."""
    running: list[SmallCluster] = []

    def start(*args: Any, **options: Any) -> SmallCluster:
        running.append(SmallCluster(tmp_path / f"cluster{len(running)}", *args, **options))
        return running[-1]

    yield start
    for cluster in running:
        cluster.close()


@pytest.fixture
def install(
    start_cluster: Callable[..., SmallCluster], postgres_server: Server, s3_server: S3Server, models_dir: Path
) -> Iterator[Callable[..., OnCluster]]:
    """Installs Mirror Realm on a cluster of its own, with the rights that `deploy/` gives."""
    running: list[OnCluster] = []

    def make(nodes: list[dict[str, Any]] | None = None, **options: Any) -> OnCluster:
        cluster = start_cluster(nodes, accounts=["mirror-realm"], image_env=options.pop("image_env", None))
        rbac = client.RbacAuthorizationV1Api(cluster.api())
        for found in yaml.safe_load_all((REPOSITORY / "deploy" / "base" / "rbac.yaml").read_text()):
            if found["kind"] == "Role":
                rbac.create_namespaced_role(NAMESPACE, found)
            elif found["kind"] == "RoleBinding":
                rbac.create_namespaced_role_binding(NAMESPACE, found)
            elif found["kind"] == "ClusterRole":
                rbac.create_cluster_role(found)
            elif found["kind"] == "ClusterRoleBinding":
                found["subjects"] = [{**subject, "namespace": NAMESPACE} for subject in found["subjects"]]
                rbac.create_cluster_role_binding(found)
        running.append(OnCluster(cluster, postgres_server, s3_server, models_dir, **options))
        return running[-1]

    yield make
    for found in running:
        found.close()
