"""The small cluster does what Kubernetes does: each row of `CONFORMANCE.md` has a test here."""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_process import IMAGE, NAMESPACE, SmallCluster, node
from kubernetes import client
from kubernetes.client.exceptions import ApiException

_LIST = Path(__file__).with_name("CONFORMANCE.md")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallCluster]:
    """One for all tests of this module, which take other names."""
    os.environ["OF_THE_MACHINE"] = "secret"
    nodes = [node("cpu"), node("gpu", gpus=1)]
    found = SmallCluster(
        tmp_path_factory.mktemp("cluster"), nodes, image_env={"OF_THE_IMAGE": "yes"}, accounts=["worker"]
    )
    del os.environ["OF_THE_MACHINE"]
    yield found
    found.close()


def job(name: str, code: str = "pass", *, pod: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    """A Job that runs a line of Python."""
    spec = container.pop("job", {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            **spec,
            "template": {
                "metadata": {"labels": {"of": name}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": IMAGE, "args": [sys.executable, "-c", code], **container}],
                    **(pod or {}),
                },
            },
        },
    }


def create(cluster: SmallCluster, body: dict[str, Any]) -> None:
    cluster.batch().create_namespaced_job(NAMESPACE, body)


def names(cluster: SmallCluster) -> set[str]:
    """Of all Jobs."""
    return {found.metadata.name for found in cluster.batch().list_namespaced_job(NAMESPACE).items}


def pods_of(cluster: SmallCluster, name: str) -> list[Any]:
    return list(cluster.core().list_namespaced_pod(NAMESPACE, label_selector=f"job-name={name}").items)


def wait_for(what: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def ended(cluster: SmallCluster, name: str) -> Any:
    """The status of a Job that is over, and its pod."""

    def look() -> Any:
        status = cluster.batch().read_namespaced_job_status(name, NAMESPACE).status
        return status if status.conditions else None

    return wait_for(look)


def running(cluster: SmallCluster, name: str) -> Any:
    return wait_for(lambda: next((pod for pod in pods_of(cluster, name) if pod.status.phase == "Running"), None))


def log_of(cluster: SmallCluster, pod: Any, **options: Any) -> str:
    core = cluster.core()
    answer = core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, _preload_content=False, **options)
    return str(answer.data.decode())


# --- What is refused. ---


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda body: body["spec"]["template"]["spec"].update(restartPolicy="Always"), "restartPolicy"),
        (lambda body: body["spec"]["template"]["spec"].update(nodeSelectors={"a": "b"}), "nodeSelectors"),
        (lambda body: body["metadata"].update(labels={"a": "x" * 64}), "metadata.labels"),
        (lambda body: body["metadata"].update(name="Upper_Case"), "metadata.name"),
        (lambda body: body["spec"].update(backoffLimit=-1), "backoffLimit"),
        (
            lambda body: body["spec"]["template"]["spec"]["containers"][0].update(
                resources={"limits": {"memory": "1Go"}}
            ),
            "limits[memory]",
        ),
        (
            lambda body: body["spec"]["template"]["spec"]["containers"][0].update(
                resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
            ),
            "requests",
        ),
        (
            lambda body: body["spec"]["template"]["spec"]["containers"][0].update(
                resources={"limits": {"nvidia.com/gpu": "0.5"}}
            ),
            "nvidia.com/gpu",
        ),
        (
            lambda body: body["spec"]["template"]["spec"]["containers"][0].update(
                volumeMounts=[{"name": "none", "mountPath": "/x"}]
            ),
            "volumeMounts",
        ),
    ],
)
def test_a_wrong_field_is_refused_with_422_and_named(
    cluster: SmallCluster, change: Callable[[dict[str, Any]], None], field: str
) -> None:
    body = job("wrong")
    change(body)
    with pytest.raises(ApiException) as caught:
        create(cluster, body)
    assert caught.value.status == 422
    assert field in str(caught.value.body)
    assert body["metadata"]["name"] not in names(cluster)


def test_a_name_that_is_taken_is_a_conflict_and_one_that_is_not_there_is_not_found(cluster: SmallCluster) -> None:
    create(cluster, job("once"))
    with pytest.raises(ApiException) as caught:
        create(cluster, job("once"))
    assert (caught.value.status, caught.value.reason) == (409, "Conflict")
    with pytest.raises(ApiException) as caught:
        cluster.batch().read_namespaced_job_status("never", NAMESPACE)
    assert caught.value.status == 404


def test_what_is_right_and_not_copied_is_refused_with_501(cluster: SmallCluster) -> None:
    body = job("parallel", job={"parallelism": 2})
    with pytest.raises(ApiException) as caught:
        create(cluster, body)
    assert caught.value.status == 501


# --- Jobs. ---


def test_a_job_runs_one_pod_and_completes_with_it(cluster: SmallCluster) -> None:
    create(cluster, job("good", "print('hello')"))
    status = ended(cluster, "good")
    assert (status.succeeded, status.failed, status.active) == (1, None, None)
    assert [(found.type, found.status) for found in status.conditions] == [("Complete", "True")]
    assert status.completion_time >= status.start_time
    (pod,) = pods_of(cluster, "good")
    assert pod.status.phase == "Succeeded"
    assert pod.metadata.labels["of"] == "good"
    assert pod.metadata.owner_references[0].name == "good"
    assert log_of(cluster, pod) == "hello\n"


def test_a_failed_pod_fails_the_job_when_no_retries_are_left(cluster: SmallCluster) -> None:
    create(cluster, job("bad", "raise SystemExit(3)"))
    status = ended(cluster, "bad")
    assert (status.succeeded, status.failed) == (None, 1)
    assert (status.conditions[0].type, status.conditions[0].reason) == ("Failed", "BackoffLimitExceeded")
    (pod,) = pods_of(cluster, "bad")
    state = pod.status.container_statuses[0].state.terminated
    assert (pod.status.phase, state.exit_code, state.reason) == ("Failed", 3, "Error")


def test_a_failed_pod_is_replaced_after_a_pause_while_retries_are_left(cluster: SmallCluster) -> None:
    flag = cluster.folder / "second"
    code = f"import pathlib, sys; p = pathlib.Path({str(flag)!r}); new = not p.exists(); p.touch(); sys.exit(new)"
    create(cluster, job("again", code, job={"backoffLimit": 1}))
    began = time.monotonic()
    status = wait_for(lambda: (found := ended(cluster, "again")).succeeded and found, 40)
    assert (status.succeeded, status.failed) == (1, 1)
    assert time.monotonic() - began >= 9


def test_a_job_past_its_deadline_fails_and_its_pod_is_deleted(cluster: SmallCluster) -> None:
    create(cluster, job("slow", "import time; time.sleep(60)", job={"activeDeadlineSeconds": 1}))
    status = ended(cluster, "slow")
    assert (status.conditions[0].type, status.conditions[0].reason) == ("Failed", "DeadlineExceeded")
    wait_for(lambda: not pods_of(cluster, "slow"))


def test_a_finished_job_is_deleted_with_its_pods_after_its_time_to_live(cluster: SmallCluster) -> None:
    create(cluster, job("brief", job={"ttlSecondsAfterFinished": 1}))
    wait_for(lambda: "brief" not in names(cluster))
    wait_for(lambda: not pods_of(cluster, "brief"))


def test_a_deleted_job_leaves_its_pods_unless_it_is_asked_to_take_them_along(cluster: SmallCluster) -> None:
    for name, policy in (("leaves", None), ("takes", "Background")):
        create(cluster, job(name, "import time; time.sleep(60)"))
        running(cluster, name)
        options = {"propagation_policy": policy} if policy else {}
        cluster.batch().delete_namespaced_job(name, NAMESPACE, **options)
    wait_for(lambda: not pods_of(cluster, "takes"))
    (left,) = pods_of(cluster, "leaves")
    assert left.status.phase == "Running"
    assert left.metadata.owner_references is None


def test_the_job_of_an_owner_goes_with_it(cluster: SmallCluster) -> None:
    create(cluster, job("owner", "import time; time.sleep(60)"))
    pod = running(cluster, "owner")
    body = job("owned", "import time; time.sleep(60)")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}
    body["metadata"]["ownerReferences"] = [owner]
    create(cluster, body)
    running(cluster, "owned")
    cluster.core().delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    wait_for(lambda: not pods_of(cluster, "owned"))


# --- Pods. ---


def test_a_container_gets_its_manifests_environment_and_nothing_of_this_machines(
    cluster: SmallCluster,
) -> None:
    core = cluster.core()
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "plain"}, "data": {"A": "1", "B": "1"}})
    secret = {"metadata": {"name": "hidden"}, "data": {"word": base64.b64encode(b"open sesame").decode()}}
    core.create_namespaced_secret(NAMESPACE, secret)
    env = [
        {"name": "B", "value": "2"},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}},
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    code = "import os; print(sorted((k, v) for k, v in os.environ.items() if k not in ('PATH', 'HOME', 'LC_CTYPE')))"
    create(cluster, job("env", code, env=env, envFrom=[{"configMapRef": {"name": "plain"}}]))
    ended(cluster, "env")
    (pod,) = pods_of(cluster, "env")
    name = pod.metadata.name
    expected = {"A": "1", "B": "2", "WORD": "open sesame", "ME": name, "HOSTNAME": name, "OF_THE_IMAGE": "yes"}
    assert log_of(cluster, pod).strip() == str(sorted(expected.items()))


def test_a_pod_whose_secret_is_missing_waits_for_it(cluster: SmallCluster) -> None:
    create(cluster, job("waits", envFrom=[{"secretRef": {"name": "late"}}]))

    def reason() -> str:
        (pod,) = pods_of(cluster, "waits") or (None,)
        states = pod.status.container_statuses if pod else None
        return states[0].state.waiting.reason if states and states[0].state.waiting else ""

    wait_for(lambda: reason() == "CreateContainerConfigError")
    cluster.core().create_namespaced_secret(NAMESPACE, {"metadata": {"name": "late"}, "data": {}})
    assert ended(cluster, "waits").succeeded == 1


def test_an_image_that_is_not_there_is_tried_again_and_never_fails_the_pod(cluster: SmallCluster) -> None:
    create(cluster, job("image", image="nobody/knows:1"))

    def reasons() -> set[str]:
        (pod,) = pods_of(cluster, "image") or (None,)
        states = pod.status.container_statuses if pod else None
        return {states[0].state.waiting.reason} if states else set()

    seen: set[str] = set()
    wait_for(lambda: (seen.update(reasons()), seen == {"ErrImagePull", "ImagePullBackOff"})[1])
    assert pods_of(cluster, "image")[0].status.phase == "Pending"


def test_a_program_that_is_not_there_fails_the_pod(cluster: SmallCluster) -> None:
    create(cluster, job("program", args=["no-such-program"]))
    ended(cluster, "program")
    (pod,) = pods_of(cluster, "program")
    state = pod.status.container_statuses[0].state.terminated
    assert (state.exit_code, state.reason) == (128, "StartError")


def test_config_maps_and_secrets_are_mounted_as_files(cluster: SmallCluster) -> None:
    cluster.core().create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "files"}, "data": {"a.yaml": "x: 1"}})
    path = cluster.folder / "mounted"
    volumes = [{"name": "v", "configMap": {"name": "files"}}]
    mounts = [{"name": "v", "mountPath": str(path)}]
    code = f"print(open({str(path / 'a.yaml')!r}).read())"
    create(cluster, job("mount", code, pod={"volumes": volumes}, volumeMounts=mounts))
    ended(cluster, "mount")
    assert log_of(cluster, pods_of(cluster, "mount")[0]) == "x: 1\n"


def test_a_container_above_its_memory_limit_is_killed(cluster: SmallCluster) -> None:
    code = "import time; held = bytearray(200 << 20); time.sleep(60)"
    create(cluster, job("big", code, resources={"limits": {"memory": "100Mi"}}))
    ended(cluster, "big")
    (pod,) = pods_of(cluster, "big")
    state = pod.status.container_statuses[0].state.terminated
    assert (pod.status.phase, state.exit_code, state.reason) == ("Failed", 137, "OOMKilled")


def test_a_deleted_pod_is_asked_first_and_killed_when_its_grace_is_over(cluster: SmallCluster) -> None:
    polite = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    for name, code, least, most in (("polite", polite, 0.0, 2.0), ("deaf", deaf, 2.5, 8.0)):
        create(cluster, job(name, code, pod={"terminationGracePeriodSeconds": 3}))
        pod = running(cluster, name)
        wait_for(lambda pod=pod: log_of(cluster, pod) == "up\n")
        began = time.monotonic()
        cluster.core().delete_namespaced_pod(pod.metadata.name, NAMESPACE)
        wait_for(lambda name=name: not pods_of(cluster, name))
        assert least <= time.monotonic() - began <= most
        assert ended(cluster, name).failed == 1  # its Job counts it as failed


def test_an_evicted_pod_is_deleted_and_one_that_its_node_evicts_stays_as_failed(cluster: SmallCluster) -> None:
    for name in ("drained", "pressed"):
        create(cluster, job(name, "import time; time.sleep(60)"))
    pod = running(cluster, "drained")
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name, namespace=NAMESPACE))
    cluster.core().create_namespaced_pod_eviction(pod.metadata.name, NAMESPACE, eviction)
    assert ended(cluster, "drained").failed == 1
    wait_for(lambda: not pods_of(cluster, "drained"))

    cluster.evict(running(cluster, "pressed").metadata.name)
    assert ended(cluster, "pressed").failed == 1
    (pod,) = pods_of(cluster, "pressed")
    assert (pod.status.phase, pod.status.reason) == ("Failed", "Evicted")


def test_logs_can_be_had_by_their_last_lines(cluster: SmallCluster) -> None:
    create(cluster, job("lines", "print('a'); print('b'); print('c')"))
    ended(cluster, "lines")
    (pod,) = pods_of(cluster, "lines")
    assert log_of(cluster, pod, tail_lines=2) == "b\nc\n"


# --- Nodes. ---


def test_a_pod_waits_for_a_gpu_until_another_gives_it_back(cluster: SmallCluster) -> None:
    pod = {
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "nodeSelector": {"mirror-realm/gpu": "true"},
    }
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    create(cluster, job("first", "import time; time.sleep(2)", pod=pod, resources=gpu))
    assert running(cluster, "first").spec.node_name == "gpu"
    create(cluster, job("second", pod=pod, resources=gpu))
    waiting = wait_for(lambda: pods_of(cluster, "second") and pods_of(cluster, "second")[0].status.conditions)
    assert (waiting[0].type, waiting[0].status, waiting[0].reason) == ("PodScheduled", "False", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in waiting[0].message
    first, second = ended(cluster, "first"), ended(cluster, "second")
    assert second.completion_time >= first.completion_time
    events = cluster.core().list_namespaced_event(
        NAMESPACE, field_selector=f"involvedObject.name={pods_of(cluster, 'second')[0].metadata.name}"
    )
    assert "FailedScheduling" in {event.reason for event in events.items}


@pytest.mark.parametrize(
    ("pod", "resources", "why"),
    [
        ({"nodeSelector": {"mirror-realm/gpu": "true"}}, {}, "untolerated taint"),
        ({"nodeSelector": {"no": "such"}}, {}, "didn't match Pod's node affinity/selector"),
        ({}, {"requests": {"memory": "64Gi"}}, "Insufficient memory"),
        ({}, {"limits": {"cpu": "9"}}, "Insufficient cpu"),
    ],
)
def test_a_pod_that_fits_nowhere_says_why(
    cluster: SmallCluster, pod: dict[str, Any], resources: dict[str, Any], why: str
) -> None:
    name = "nowhere-" + re.sub("[^a-z]", "", why.lower())[-12:]
    create(cluster, job(name, pod=pod, resources=resources))

    def message() -> str:
        found = pods_of(cluster, name)
        conditions = found[0].status.conditions if found else None
        return str(conditions[0].message) if conditions else ""

    wait_for(lambda: why in message())


def test_a_cordoned_node_takes_no_new_pods(cluster: SmallCluster) -> None:
    cluster.core().patch_node("cpu", {"spec": {"unschedulable": True}})
    create(cluster, job("later"))
    wait_for(lambda: pods_of(cluster, "later") and pods_of(cluster, "later")[0].status.conditions)
    assert "unschedulable" in pods_of(cluster, "later")[0].status.conditions[0].message
    cluster.core().patch_node("cpu", {"spec": {"unschedulable": None}})
    assert ended(cluster, "later").succeeded == 1


# --- Access, and errors of the server. ---


def test_a_service_account_may_do_what_its_role_says(cluster: SmallCluster) -> None:
    rules = [{"apiGroups": ["batch"], "resources": ["jobs", "jobs/status"], "verbs": ["create", "get"]}]
    rbac = client.RbacAuthorizationV1Api(cluster.api())
    rbac.create_namespaced_role(NAMESPACE, {"metadata": {"name": "runs"}, "rules": rules})
    binding = {
        "metadata": {"name": "runs"},
        "subjects": [{"kind": "ServiceAccount", "name": "worker"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "runs"},
    }
    rbac.create_namespaced_role_binding(NAMESPACE, binding)
    batch = client.BatchV1Api(cluster.api("worker"))
    batch.create_namespaced_job(NAMESPACE, job("mine"))
    batch.read_namespaced_job_status("mine", NAMESPACE)
    with pytest.raises(ApiException) as caught:
        batch.delete_namespaced_job("mine", NAMESPACE)
    assert caught.value.status == 403
    # A role of a namespace gives nothing of the cluster; a ClusterRole does, by a binding of the cluster.
    core = client.CoreV1Api(cluster.api("worker"))
    with pytest.raises(ApiException) as caught:
        core.list_node()
    assert caught.value.status == 403
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    rbac.create_cluster_role({"metadata": {"name": "nodes"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "worker", "namespace": NAMESPACE}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "nodes"}
    rbac.create_cluster_role_binding({"metadata": {"name": "nodes"}, "subjects": [subject], "roleRef": ref})
    assert core.list_node().items
    anonymous = client.BatchV1Api(client.ApiClient(client.Configuration(host=cluster.url)))
    with pytest.raises(ApiException) as caught:
        anonymous.list_namespaced_job(NAMESPACE)
    assert caught.value.status == 401


@pytest.mark.parametrize("after", [False, True])
def test_a_fault_happens_as_often_as_it_was_asked_for(cluster: SmallCluster, after: bool) -> None:
    name = f"fault-{after}".lower()
    cluster.fault("POST", "/jobs$", status=500, after=after)
    with pytest.raises(ApiException) as caught:
        create(cluster, job(name))
    assert caught.value.status == 500
    assert (name in names(cluster)) == after
    if not after:
        create(cluster, job(name))
    assert ended(cluster, name).succeeded == 1


def test_every_row_of_the_list_names_a_test_of_here_and_every_test_is_in_it() -> None:
    text = _LIST.read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_every_row_of_the_list_names_a_test_of_here_and_every_test_is_in_it"
    }
    assert named == here
    assert all(row.count("|") == 4 for row in text.splitlines() if row.startswith("|"))
