"""The job controller, the garbage collector and the clean-up after a time to live.

What belongs here: which pods a Job has and what its status says. What does not: where pods run (`nodes`, `kubelet`).
"""

from __future__ import annotations

import copy
import random
import time

from small_cluster.objects import ApiError, Object, Objects, now, seconds_since

_BACKOFF, _LONGEST_BACKOFF = 10.0, 360.0  # before a failed pod of a Job is replaced
_FINALIZER = "batch.kubernetes.io/job-tracking"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # those of generated names


class Jobs:
    """Looks at all Jobs; `look` is called a few times a second."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._counted: dict[str, set[str]] = {}  # pods of a Job that its status already counts
        self._failed_at: dict[str, float] = {}  # when the last of them failed

    def add(self, job: Object, namespace: str) -> Object:
        """Keep a new Job, with the fields that the server fills in."""
        with self._objects.lock:
            return self._add(job, namespace)

    def _add(self, job: Object, namespace: str) -> Object:
        job["metadata"]["namespace"] = namespace
        job["status"] = {}
        made = self._objects.add("Job", job)
        uid, spec = made["metadata"]["uid"], made["spec"]
        labels = {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": made["metadata"]["name"],
            "controller-uid": uid,
            "job-name": made["metadata"]["name"],
        }
        template = spec["template"].setdefault("metadata", {})
        template["labels"] = {**(template.get("labels") or {}), **labels}
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        for name, value in (("backoffLimit", 6), ("completions", 1), ("parallelism", 1), ("suspend", False)):
            spec.setdefault(name, value)
        return made

    def delete(self, job: Object, policy: str | None) -> None:
        """Delete a Job; its pods stay unless the client asks for more, as `batch/v1` does for old clients' sake."""
        if policy not in (None, "Background", "Orphan"):
            raise ApiError(501, "NotImplemented", f"not copied by this server: propagationPolicy {policy}")
        with self._objects.lock:
            if policy != "Background":
                for pod in self._pods(job):
                    pod["metadata"].pop("ownerReferences")
                    self._objects.touch(pod)
            for pod in self._objects.all("Pod", job["metadata"]["namespace"]):
                if pod["metadata"].get("labels", {}).get("controller-uid") == job["metadata"]["uid"]:
                    release(self._objects, pod)
            self._objects.remove(job)

    def look(self) -> None:
        with self._objects.lock:
            for job in self._objects.all("Job"):
                if _is_finished(job):
                    self._expire(job)
                else:
                    self._advance(job)
            self._collect()

    def _pods(self, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        return [
            pod
            for pod in self._objects.all("Pod", job["metadata"]["namespace"])
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", ()))
        ]

    def _advance(self, job: Object) -> None:
        status, pods = job["status"], self._pods(job)
        before = copy.deepcopy(status)
        status.setdefault("startTime", now())
        counted = self._counted.setdefault(job["metadata"]["uid"], set())
        known = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid, pod in known.items():
            phase, leaving = pod["status"]["phase"], "deletionTimestamp" in pod["metadata"]
            if uid in counted:
                continue
            if phase == "Succeeded":
                status["succeeded"] = status.get("succeeded", 0) + 1
                counted.add(uid)
                release(self._objects, pod)
            elif phase == "Failed" or leaving:  # `podReplacementPolicy: TerminatingOrFailed`, the default
                status["failed"] = status.get("failed", 0) + 1
                self._failed_at[job["metadata"]["uid"]] = time.monotonic()
                counted.add(uid)
                release(self._objects, pod)
        active = [pod for uid, pod in known.items() if uid not in counted]
        self._conclude(job, active)
        if not _is_finished(job) and not active and self._is_due(job):
            active = [self._make_pod(job)]
        _set(status, "active", len(active) if not _is_finished(job) else 0)
        _set(status, "ready", sum(1 for pod in active if pod["status"]["phase"] == "Running"))
        status["terminating"] = sum(1 for pod in pods if "deletionTimestamp" in pod["metadata"])
        status["uncountedTerminatedPods"] = {}
        if status != before:
            self._objects.touch(job)

    def _conclude(self, job: Object, active: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        if status.get("succeeded", 0) >= 1:
            status["completionTime"] = now()
            _condition(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
            self._objects.say(job, "Normal", "Completed", "Job completed", "job-controller")
        elif status.get("failed", 0) > spec["backoffLimit"]:
            self._fail(job, active, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif (limit := spec.get("activeDeadlineSeconds")) and seconds_since(status["startTime"]) >= limit:
            self._fail(job, active, "DeadlineExceeded", "Job was active longer than specified deadline")

    def _fail(self, job: Object, active: list[Object], reason: str, message: str) -> None:
        for pod in active:
            self._counted[job["metadata"]["uid"]].add(pod["metadata"]["uid"])
            release(self._objects, pod)
            mark_deleted(self._objects, pod, None)
        job["status"]["failed"] = job["status"].get("failed", 0) + len(active)
        _condition(job, "Failed", reason, message)
        self._objects.say(job, "Warning", reason, message, "job-controller")

    def _is_due(self, job: Object) -> bool:
        failed = job["status"].get("failed", 0)
        waited = time.monotonic() - self._failed_at.get(job["metadata"]["uid"], 0.0)
        return not failed or waited >= min(_BACKOFF * 2 ** (failed - 1), _LONGEST_BACKOFF)

    def _make_pod(self, job: Object) -> Object:
        template, meta = copy.deepcopy(job["spec"]["template"]), job["metadata"]
        own = template.get("metadata") or {}
        pod = {
            "metadata": {
                "name": f"{meta['name'][:57]}-" + "".join(random.choices(_LETTERS, k=5)),  # noqa: S311 - a name
                "generateName": f"{meta['name']}-",
                "namespace": meta["namespace"],
                "finalizers": [_FINALIZER],
                "labels": own.get("labels", {}),
                **({"annotations": own["annotations"]} if own.get("annotations") else {}),
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": meta["name"],
                        "uid": meta["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": template["spec"],
        }
        made = add_pod(self._objects, pod)
        self._objects.say(
            job, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", "job-controller"
        )
        return made

    def _expire(self, job: Object) -> None:
        limit = job["spec"].get("ttlSecondsAfterFinished")
        ended = next(found["lastTransitionTime"] for found in job["status"]["conditions"])
        if limit is not None and seconds_since(ended) >= limit:
            self.delete(job, "Background")

    def _collect(self) -> None:
        """What has owners of which none is left goes with them."""
        for kind in ("Pod", "Job"):
            for obj in self._objects.all(kind):
                owners = obj["metadata"].get("ownerReferences", ())
                if owners and not any(self._objects.exists(owner["uid"]) for owner in owners):
                    if kind == "Job":
                        self.delete(obj, "Background")
                    else:
                        mark_deleted(self._objects, obj, None)


def add_pod(objects: Objects, pod: Object) -> Object:
    """Keep a new pod, with the defaults that the server fills in."""
    for container in pod["spec"]["containers"]:
        resources = container.setdefault("resources", {})
        limits, requests = resources.get("limits") or {}, dict(resources.get("requests") or {})
        for name, value in limits.items():
            requests.setdefault(name, value)
        if requests:
            resources["requests"] = requests
    pod["spec"].setdefault("terminationGracePeriodSeconds", 30)
    pod["status"] = {"phase": "Pending", "conditions": []}
    return objects.add("Pod", pod)


def mark_deleted(objects: Objects, pod: Object, grace: int | None) -> None:
    """Ask for a pod's end: it is gone when its container is, or at once when it never ran."""
    with objects.lock:
        meta = pod["metadata"]
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        if "nodeName" not in pod["spec"] or pod["status"]["phase"] in ("Succeeded", "Failed"):
            meta.setdefault("deletionTimestamp", now())
            meta.setdefault("deletionGracePeriodSeconds", 0)
            gone(objects, pod)
        elif "deletionTimestamp" not in meta or seconds < meta["deletionGracePeriodSeconds"]:
            meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"] = now(), seconds
            objects.touch(pod)


def gone(objects: Objects, pod: Object) -> None:
    """A pod that was to be deleted has ended: it is removed as soon as its Job has counted it."""
    with objects.lock:
        if pod["metadata"].get("finalizers"):
            objects.ended.add(pod["metadata"]["uid"])
        else:
            objects.remove(pod)


def release(objects: Objects, pod: Object) -> None:
    """Nobody waits for a pod to be counted any more."""
    with objects.lock:
        pod["metadata"].pop("finalizers", None)
        objects.touch(pod)
        if pod["metadata"]["uid"] in objects.ended:
            objects.remove(pod)


def _is_finished(job: Object) -> bool:
    return any(found["type"] in ("Complete", "Failed") for found in job["status"].get("conditions", ()))


def _condition(job: Object, kind: str, reason: str, message: str) -> None:
    at = now()
    job["status"].setdefault("conditions", []).append(
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastProbeTime": at,
            "lastTransitionTime": at,
        }
    )


def _set(status: Object, name: str, value: int) -> None:
    """A count of nothing is left out, as the API does."""
    if value:
        status[name] = value
    else:
        status.pop(name, None)
