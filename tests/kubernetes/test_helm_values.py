"""The values for Dagster's Helm chart describe the same instance as `deploy/base`.

The chart itself cannot be had from a package index, so what it makes of the values is written down here, as the
template `configmap-instance.yaml` of its release 1.13 does it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from installation_on_cluster import REPOSITORY

from mirror_realm_assets.cluster_launcher import ClusterRunLauncher

VALUES: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy" / "helm" / "values.yaml").read_text())
BASE: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy" / "base" / "dagster.yaml").read_text())
# The fields of `DagsterHelmValues` in the chart's schema, and those every chart has.
KNOWN = {
    "global", "dagsterWebserver", "dagster-user-deployments", "postgresql", "generatePostgresqlPasswordSecret",
    "generateCeleryConfigSecret", "rabbitmq", "redis", "flower", "ingress", "imagePullSecrets", "computeLogManager",
    "scheduler", "runLauncher", "pythonLogs", "dagsterDaemon", "busybox", "migrate", "telemetry", "serviceAccount",
    "retention", "concurrency", "additionalInstanceConfig", "nameOverride", "fullnameOverride", "rbacEnabled",
}  # fmt: skip


def snake(value: Any) -> Any:
    """Names as Dagster writes them."""
    if not isinstance(value, dict):
        return value
    return {re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name): snake(each) for name, each in value.items()}


def instance(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart writes into the instance's configuration, but for the storage."""
    daemon = values["dagsterDaemon"]
    (coordinator,) = daemon["runCoordinator"]["config"].values()
    (logs,) = values["computeLogManager"]["config"].values()
    (launcher,) = values["runLauncher"]["config"].values()
    found = {
        "run_launcher": launcher,
        "run_coordinator": coordinator,
        "compute_logs": logs,
        "run_monitoring": snake(daemon["runMonitoring"]),
        "telemetry": values["telemetry"],
        "retention": {name: each for name, each in snake(values["retention"]).items() if name != "enabled"},
        "concurrency": {name: each for name, each in snake(values["concurrency"]).items() if name != "enabled"},
    }
    if daemon["runRetries"]["enabled"]:
        found["run_retries"] = snake(daemon["runRetries"])
    assert not found.keys() & values["additionalInstanceConfig"].keys(), "the chart would write it twice"
    return found | values["additionalInstanceConfig"]


def test_the_instance_is_the_one_of_the_manifests() -> None:
    made, base = instance(VALUES), {name: each for name, each in BASE.items() if name != "storage"}
    name = f"{VALUES['global']['fullnameOverride']}-instance"  # of the ConfigMap that the chart makes
    launcher = base["run_launcher"]["config"]
    assert made["run_launcher"]["config"].pop("postgres_password_secret") == VALUES["global"]["postgresqlSecretName"]
    launcher["instance_config_map"] = name
    for volume in launcher["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = name
    assert made == base
    assert launcher["dagster_home"] == VALUES["global"]["dagsterHome"]


def test_dagster_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = yaml.safe_load((REPOSITORY / "deploy" / "base" / "settings.yaml").read_text())["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    config = instance(yaml.safe_load((REPOSITORY / "deploy" / "helm" / "values.yaml").read_text()))
    server = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "current-context": "c"}
    user = {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(server | user))
    where = {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    config["run_launcher"]["config"] |= where
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(tmp_path)) as loaded:
        assert isinstance(loaded.run_launcher, ClusterRunLauncher)
        assert loaded.run_launcher.job_image == data["MIRROR_REALM_IMAGE"]
        assert loaded.run_retries_enabled


def test_only_what_the_chart_knows_is_given() -> None:
    assert VALUES.keys() <= KNOWN


def test_every_part_is_of_one_image_and_has_the_label_of_its_policies() -> None:
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    parts = {"webserver": VALUES["dagsterWebserver"], "daemon": VALUES["dagsterDaemon"], "code": code}
    for name, part in parts.items():
        assert f"{part['image']['repository']}:{part['image']['tag']}" == "mirror-realm/light:0.1.0"
        assert part["labels"] == {"mirror-realm/part": name}
        assert part["podSecurityContext"]["runAsNonRoot"] is True
    server = yaml.safe_load_all((REPOSITORY / "deploy" / "base" / "code-server.yaml").read_text())
    (deployment, service) = list(server)
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert all(word in args for word in code["dagsterApiGrpcArgs"])
    assert code["port"] == service["spec"]["ports"][0]["port"]
    assert code["name"] == service["metadata"]["name"]  # the policies of `deploy/base` let the daemon reach it there
