"""What `deploy/` renders is valid, and the instance configuration inside it is loaded by Dagster."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from cluster_programs import program
from dagster_k8s import K8sRunLauncher
from installation_on_cluster import REPOSITORY
from small_cluster.validation import VERSIONS

from mirror_realm_assets.cluster_launcher import ClusterRunLauncher
from mirror_realm_assets.installation import TEMPLATE

OVERLAYS = ("small", "gpu", "helm", "istio")
# Where a cluster wants something else than one machine; `deploy/base/dagster.yaml` says why.
_DIFFERENT = {"storage", "compute_logs", "run_launcher", "run_coordinator", "concurrency", "run_monitoring"}


def rendered(overlay: str) -> list[dict[str, Any]]:
    return rendered_at(REPOSITORY / "deploy" / "overlays" / overlay)


def rendered_at(path: Path) -> list[dict[str, Any]]:
    done = subprocess.run([program("kubectl"), "kustomize", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    objects = rendered(overlay)
    assert {"Deployment", "Job", "Role", "NetworkPolicy", "PodDisruptionBudget"} <= {found["kind"] for found in objects}
    for found in objects:
        if "istio.io" in found["apiVersion"]:
            continue  # see test_istio.py
        kubernetes_validate.validate(found, version, strict=True)
        if not found["kind"].startswith("Cluster"):
            assert found["metadata"]["namespace"] == "mirror-realm"


def test_the_validation_finds_a_wrong_field() -> None:
    wrong = next(found for found in rendered("small") if found["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_confined(overlay: str) -> None:
    """Pod Security Standards, "restricted", and what else a pod of ours always says."""
    templates = [
        found["spec"]["template"]["spec"] for found in rendered(overlay) if "template" in found.get("spec", {})
    ]
    assert len(templates) == (2 if overlay == "helm" else 5)
    for spec in templates:
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"]["memory"]
            assert container["resources"]["limits"]["memory"]
            assert not any(variable.get("value") for variable in container.get("env", ()))


def test_no_secret_stands_in_a_manifest() -> None:
    for overlay in OVERLAYS:
        for found in rendered(overlay):
            assert found["kind"] != "Secret"
            assert "password" not in str(found).lower() or found["kind"] == "ConfigMap"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_instance_inside_is_loaded_by_dagster(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    objects = {(found["kind"], found["metadata"]["name"]): found for found in rendered(overlay)}
    for name, value in objects["ConfigMap", "mirror-realm"]["data"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MIRROR_REALM_DAGSTER_URL", postgres_url)
    config = yaml.safe_load(objects["ConfigMap", "mirror-realm-dagster"]["data"]["dagster.yaml"])
    # Here is no pod, whose token the launcher would take.
    kubeconfig = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "current-context": "c"}
    kubeconfig |= {
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    launcher = config["run_launcher"]["config"]
    launcher |= {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, K8sRunLauncher)
        assert isinstance(instance.run_launcher, ClusterRunLauncher)
        assert instance.run_launcher.job_image == "mirror-realm/light:0.1.0"
        assert instance.run_monitoring_max_resume_run_attempts == 3


def test_what_is_the_same_on_a_cluster_as_on_one_machine_is_the_same() -> None:
    one = yaml.safe_load(TEMPLATE.read_text())
    cluster = yaml.safe_load((REPOSITORY / "deploy" / "base" / "dagster.yaml").read_text())
    assert {name for name in one.keys() | cluster.keys() if one.get(name) != cluster.get(name)} <= _DIFFERENT


@pytest.mark.parametrize("version", VERSIONS)
def test_the_overlay_of_the_documentation_renders_with_one_image_everywhere(tmp_path: Path, version: str) -> None:
    page = (REPOSITORY / "docs" / "how-to" / "kubernetes.md").read_text(encoding="utf-8")
    own, more = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[:2]
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "mirror-realm" / "deploy")
    folder = tmp_path / "my-cluster"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text((own + more).replace("namespace: mirror-realm", "namespace: photos"))
    config = (REPOSITORY / "deploy" / "base" / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(config.replace("max_concurrent_runs: 25", "max_concurrent_runs: 112"))
    objects = rendered_at(folder)
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)
    images = {
        container["image"]
        for found in objects
        if "template" in found.get("spec", {})
        for container in found["spec"]["template"]["spec"]["containers"]
    }
    maps = {found["metadata"]["name"]: found["data"] for found in objects if found["kind"] == "ConfigMap"}
    assert images == {"registry.example/mirror-realm/light:0.1.0"} == {maps["mirror-realm"]["MIRROR_REALM_IMAGE"]}
    assert maps["mirror-realm"]["MIRROR_REALM_GPUS"] == "4"
    assert maps["mirror-realm"]["MIRROR_REALM_NAMESPACE"] == "photos"
    for found in objects:  # nobody of another namespace is given a right
        assert found["metadata"].get("namespace", "photos") == "photos"
        assert {subject["namespace"] for subject in found.get("subjects", ())} <= {"photos"}
    changed = yaml.safe_load(maps["mirror-realm-dagster"]["dagster.yaml"])
    assert changed["concurrency"]["runs"]["max_concurrent_runs"] == 112
