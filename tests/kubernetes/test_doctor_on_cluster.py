"""What doctor says of GPUs, by the nodes of a cluster and by the pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_process import NAMESPACE, SmallCluster, node
from kubernetes import client
from kubernetes.config import kube_config
from lab import Lab
from postgres import Server

from mirror_realm_assets.doctor import cluster as doctor
from mirror_realm_assets.doctor.verdict import Finding
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.pools import make_known
from mirror_realm_assets.settings import Settings

Start = Callable[..., SmallCluster]


@pytest.fixture
def found(start_cluster: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    """What doctor finds of these nodes with so many GPUs set, as a service account that may list them or may not."""

    def find(nodes: list[dict[str, Any]], gpus: int, *, may: bool = True, gone: bool = False) -> Finding:
        cluster = start_cluster(nodes, accounts=["daemon"])
        rbac = client.RbacAuthorizationV1Api(cluster.api())
        if may:
            rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
            rbac.create_cluster_role({"metadata": {"name": "nodes"}, "rules": rules})
            subject = {"kind": "ServiceAccount", "name": "daemon", "namespace": NAMESPACE}
            ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "nodes"}
            rbac.create_cluster_role_binding({"metadata": {"name": "nodes"}, "subjects": [subject], "roleRef": ref})
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig("daemon")))
        if gone:
            cluster.close()
        (finding,) = doctor.gpus(Settings.at(tmp_path, launcher="kubernetes", gpus=gpus))
        return finding

    return find


def without_label(name: str) -> dict[str, Any]:
    made = node(name, gpus=4)
    del made["metadata"]["labels"]["mirror-realm/gpu"]
    return made


@pytest.mark.parametrize(
    ("nodes", "gpus", "level", "words"),
    [
        ([node("cpu"), node("a", gpus=2), node("b", gpus=1)], 3, "ok", "nodes offer 3"),
        ([node("cpu")], 0, "ok", "nodes offer 0"),
        ([node("a", gpus=2)], 1, "warn", "MIRROR_REALM_GPUS=2"),
        ([node("a", gpus=2)], 3, "warn", "MIRROR_REALM_GPUS=2"),
        ([node("cpu")], 1, "fail", "MIRROR_REALM_GPUS=0"),
        ([node("a", gpus=2, unschedulable=True), node("b", gpus=1)], 1, "ok", "nodes offer 1"),
        ([without_label("big"), node("cpu")], 2, "fail", "kubectl label node big mirror-realm/gpu=true"),
    ],
)
def test_the_setting_is_compared_with_what_steps_can_have(
    found: Callable[..., Finding], nodes: list[dict[str, Any]], gpus: int, level: str, words: str
) -> None:
    finding = found(nodes, gpus)
    assert finding.level == level
    assert words in f"{finding.found} {finding.remedy}"


def test_who_may_not_list_nodes_is_told_where_to_look(found: Callable[..., Finding]) -> None:
    finding = found([node("a", gpus=1)], 1, may=False)
    assert finding.level == "warn"
    assert "403" in finding.found and "kubectl get nodes" in finding.remedy


def test_an_api_server_that_does_not_answer_is_told(found: Callable[..., Finding]) -> None:
    assert found([node("a", gpus=1)], 1, gone=True).level == "fail"


def test_one_machine_is_not_asked(tmp_path: Path) -> None:
    assert doctor.gpus(Settings.at(tmp_path)) == []


def test_a_pool_that_is_not_as_large_as_the_setting_is_told(postgres_server: Server, tmp_path: Path) -> None:
    import dagster as dg

    url = postgres_server.url(postgres_server.create())
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(json.dumps({"storage": {"postgres": {"postgres_url": url}}}))
    settings = Settings.at(tmp_path, launcher="kubernetes", gpus=3, dagster_url=url)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        make_known(instance, standard_stages(settings), settings)
    (finding,) = doctor._of_pool(settings)
    assert (finding.level, finding.found) == ("ok", "3 slots for 3 GPUs")
    (finding,) = doctor._of_pool(settings.model_copy(update={"gpus": 4}))
    assert finding.level == "fail" and "init" in finding.remedy


def test_a_database_without_dagsters_tables_is_left_to_its_own_finding(lab: Lab, postgres_server: Server) -> None:
    url = postgres_server.url(postgres_server.create())
    assert doctor._of_pool(Settings.at(lab.home, launcher="kubernetes", gpus=3, dagster_url=url)) == []
