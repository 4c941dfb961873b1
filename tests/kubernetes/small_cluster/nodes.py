"""Nodes and the scheduler: a pod waits until a node has what it asks for.

What belongs here: capacity, selectors and taints. What does not: running what was scheduled (`kubelet`).
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from small_cluster.objects import Object, Objects, now
from small_cluster.quantities import quantity

_ENDED = ("Succeeded", "Failed")


class Scheduler:
    """Puts pods on nodes; `look` is called a few times a second."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def look(self) -> list[Object]:
        """Schedule what fits, in the order of creation; returns the pods that have got a node."""
        placed = []
        with self._objects.lock:
            for pod in self._objects.all("Pod"):
                if "nodeName" in pod["spec"] or "deletionTimestamp" in pod["metadata"]:
                    continue
                reasons: Counter[str] = Counter()
                for node in self._objects.all("Node"):
                    why = self._why_not(pod, node)
                    if not why:
                        self._place(pod, node)
                        placed.append(pod)
                        break
                    reasons.update(why)
                else:
                    self._wait(pod, reasons)
        return placed

    def _why_not(self, pod: Object, node: Object) -> list[str]:
        spec, labels = node.get("spec", {}), node["metadata"].get("labels", {})
        if spec.get("unschedulable"):
            return ["node(s) were unschedulable"]
        for taint in spec.get("taints", ()):
            if taint["effect"] in ("NoSchedule", "NoExecute") and not any(
                _tolerates(toleration, taint) for toleration in pod["spec"].get("tolerations") or ()
            ):
                return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
        if any(labels.get(name) != value for name, value in (pod["spec"].get("nodeSelector") or {}).items()):
            return ["node(s) didn't match Pod's node affinity/selector"]
        used = [other for other in self._objects.all("Pod") if self._takes(other, node)]
        free = {name: quantity(text) for name, text in node["status"]["allocatable"].items()}
        for other in used:
            for name, asked in requests(other).items():
                free[name] = free.get(name, Decimal(0)) - asked
        lacking = [
            f"Insufficient {name}" for name, asked in requests(pod).items() if asked > free.get(name, Decimal(0))
        ]
        return lacking + (["Too many pods"] if len(used) >= free.get("pods", Decimal(110)) else [])

    @staticmethod
    def _takes(pod: Object, node: Object) -> bool:
        return pod["spec"].get("nodeName") == node["metadata"]["name"] and pod["status"]["phase"] not in _ENDED

    def _place(self, pod: Object, node: Object) -> None:
        pod["spec"]["nodeName"] = node["metadata"]["name"]
        set_condition(pod, "PodScheduled", "True")
        self._objects.touch(pod)
        meta = pod["metadata"]
        self._objects.say(
            pod,
            "Normal",
            "Scheduled",
            f"Successfully assigned {meta['namespace']}/{meta['name']} to {node['metadata']['name']}",
            "default-scheduler",
        )

    def _wait(self, pod: Object, reasons: Counter[str]) -> None:
        nodes = len(self._objects.all("Node"))
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        message = f"0/{nodes} nodes are available: {why}." if nodes else "no nodes available to schedule pods"
        if set_condition(pod, "PodScheduled", "False", "Unschedulable", message):
            self._objects.touch(pod)
            self._objects.say(pod, "Warning", "FailedScheduling", message, "default-scheduler")


def requests(pod: Object) -> dict[str, Decimal]:
    """What a pod asks for, all containers together."""
    total: dict[str, Decimal] = {}
    for container in pod["spec"]["containers"]:
        for name, text in (container["resources"].get("requests") or {}).items():
            total[name] = total.get(name, Decimal(0)) + quantity(text)
    return total


def set_condition(pod: Object, kind: str, status: str, reason: str = "", message: str = "") -> bool:
    """Set a condition of a pod; returns whether it is another than before."""
    conditions = pod["status"].setdefault("conditions", [])
    found = next((condition for condition in conditions if condition["type"] == kind), None)
    new = {"type": kind, "status": status, **({"reason": reason, "message": message} if reason else {})}
    if found is not None and all(found.get(name) == new.get(name) for name in ("status", "reason", "message")):
        return False
    if found is not None:
        conditions.remove(found)
    conditions.append({**new, "lastProbeTime": None, "lastTransitionTime": now()})
    return True


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if not toleration.get("key"):
        return bool(toleration.get("operator") == "Exists")
    same = toleration["key"] == taint["key"]
    if toleration.get("operator", "Equal") == "Exists":
        return same
    return same and toleration.get("value", "") == taint.get("value", "")
