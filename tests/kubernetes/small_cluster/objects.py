"""What the cluster holds, as its API shows it: objects by kind, namespace and name.

What belongs here: keeping and finding objects, and the errors of the API. What does not: what follows from an object
(`jobs`, `nodes`, `kubelet`).
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

API_VERSIONS = {
    "Job": "batch/v1",
    "Pod": "v1",
    "Node": "v1",
    "Event": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
}
PLURALS = {kind: kind.lower() + "s" for kind in API_VERSIONS}
_EQUAL = re.compile(r"([^=!,\s]+)\s*(==|=|!=)\s*([^=!,\s]*)")
_FIELDS = {"metadata.name", "metadata.namespace", "status.phase", "spec.nodeName", "involvedObject.name"}


class ApiError(Exception):
    """An answer other than the object asked for."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details or {}

    @property
    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def now() -> str:
    """The time as the API writes it: whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)).total_seconds()


class Objects:
    """The store. Everything that looks and then changes holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._found: dict[tuple[str, str, str], Object] = {}
        self._version = 0
        self.ended: set[str] = set()
        """Pods that have ended and are to be deleted, but are not counted yet."""

    def add(self, kind: str, obj: Object) -> Object:
        """Keep a new object; it gets what the server alone may give."""
        with self.lock:
            meta = obj.setdefault("metadata", {})
            place = (kind, meta.get("namespace", ""), meta["name"])
            if place in self._found:
                raise ApiError(
                    409,
                    "AlreadyExists",
                    f'{_resource(kind)} "{meta["name"]}" already exists',
                    {"name": meta["name"], "kind": PLURALS[kind]},
                )
            obj["apiVersion"], obj["kind"] = API_VERSIONS[kind], kind
            meta["uid"], meta["creationTimestamp"] = str(uuid.uuid4()), now()
            self._found[place] = obj
            return self.touch(obj)

    def touch(self, obj: Object) -> Object:
        """The object has changed."""
        with self.lock:
            self._version += 1
            obj["metadata"]["resourceVersion"] = str(self._version)
            return obj

    def get(self, kind: str, namespace: str, name: str) -> Object:
        with self.lock:
            found = self._found.get((kind, namespace, name))
        if found is None:
            raise ApiError(
                404, "NotFound", f'{_resource(kind)} "{name}" not found', {"name": name, "kind": PLURALS[kind]}
            )
        return found

    def remove(self, obj: Object) -> None:
        with self.lock:
            meta = obj["metadata"]
            self._found.pop((obj["kind"], meta.get("namespace", ""), meta["name"]), None)

    def all(self, kind: str, namespace: str | None = None) -> list[Object]:
        with self.lock:
            return [obj for (k, n, _), obj in self._found.items() if k == kind and namespace in (None, n)]

    def select(self, kind: str, namespace: str | None, labels: str, fields: str) -> Object:
        """A list of what both selectors let through."""
        with self.lock:
            tests = [*_tests(labels, _label), *_tests(fields, _field)]
            items = [obj for obj in self.all(kind, namespace) if all(test(obj) for test in tests)]
            return {
                "kind": f"{kind}List",
                "apiVersion": API_VERSIONS[kind],
                "metadata": {"resourceVersion": str(self._version)},
                "items": items,
            }

    def exists(self, uid: str) -> bool:
        with self.lock:
            return any(obj["metadata"]["uid"] == uid for obj in self._found.values())

    def say(self, about: Object, kind: str, reason: str, message: str, component: str) -> None:
        """Record an event, or count one that was said before."""
        meta = about["metadata"]
        with self.lock:
            for event in self.all("Event", meta.get("namespace", "default")):
                of = event["involvedObject"]
                if (of["uid"], event["reason"], event["message"]) == (meta["uid"], reason, message):
                    event["count"] += 1
                    event["lastTimestamp"] = now()
                    self.touch(event)
                    return
            self.add(
                "Event",
                {
                    "metadata": {
                        "name": f"{meta['name'][:40]}.{uuid.uuid4().hex[:16]}",
                        "namespace": meta.get("namespace", "default"),
                    },
                    "involvedObject": {
                        "kind": about["kind"],
                        "namespace": meta.get("namespace", ""),
                        "name": meta["name"],
                        "uid": meta["uid"],
                    },
                    "type": kind,
                    "reason": reason,
                    "message": message,
                    "count": 1,
                    "firstTimestamp": now(),
                    "lastTimestamp": now(),
                    "source": {"component": component},
                },
            )


def _resource(kind: str) -> str:
    group = API_VERSIONS[kind].rpartition("/")[0]
    return f"{PLURALS[kind]}.{group}" if group else PLURALS[kind]


def _tests(selector: str, read: Callable[[Object, str], str | None]) -> Iterable[Callable[[Object], bool]]:
    for term in filter(None, (part.strip() for part in selector.split(","))):
        match = _EQUAL.fullmatch(term)
        if match is None:
            raise ApiError(501, "NotImplemented", f"selectors other than by equality are not copied here: {term!r}")
        name, sign, value = match.groups()
        if read is _field and name not in _FIELDS:
            raise ApiError(400, "BadRequest", f'"{name}" is not a known field selector')
        yield lambda obj, name=name, sign=sign, value=value: (read(obj, name) == value) == (sign != "!=")  # type: ignore[misc]


def _label(obj: Object, name: str) -> str | None:
    found = obj["metadata"].get("labels", {}).get(name)
    return None if found is None else str(found)


def _field(obj: Object, name: str) -> str | None:
    found: Any = obj
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return None if found is None else str(found)
