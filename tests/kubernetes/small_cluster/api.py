"""The API over HTTP, and beside it `/control`, by which a test makes the cluster misbehave.

What belongs here: routes, and the faults that were asked for. What does not: what an object means (`jobs`, `nodes`,
`kubelet`).
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from small_cluster import access
from small_cluster.jobs import Jobs, add_pod, mark_deleted
from small_cluster.kubelet import Kubelet
from small_cluster.nodes import set_condition
from small_cluster.objects import PLURALS, ApiError, Object, Objects
from small_cluster.validation import require_valid

_ROUTE = re.compile(
    r"/(?:api/v1|apis/(?P<group>batch|rbac\.authorization\.k8s\.io)/v1)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_KINDS = {plural: kind for kind, plural in PLURALS.items()}
_SUBRESOURCES = {("jobs", "status"), ("pods", "status"), ("pods", "log"), ("pods", "eviction")}


class Faults:
    """Answers that are wrong on purpose, each for a number of requests.

    A fault is `{"method", "path" (a pattern), "times", "status" or "hang" (seconds), "after" (do it all the same),
    "retryAfter"}`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Object] = []

    def add(self, fault: Object) -> None:
        with self._lock:
            self._faults.append(fault)

    def of(self, method: str, path: str) -> Object | None:
        with self._lock:
            for fault in self._faults:
                if fault["times"] > 0 and fault["method"] == method and re.search(fault["path"], path):
                    fault["times"] -= 1
                    return fault
        return None


class Cluster:
    """The objects and what works on them."""

    def __init__(self, objects: Objects, jobs: Jobs, kubelet: Kubelet, tokens: dict[str, str]) -> None:
        self.objects, self.jobs, self.kubelet, self.tokens = objects, jobs, kubelet, tokens
        self.faults = Faults()
        self.requests: list[Object] = []


class Handler(BaseHTTPRequestHandler):
    """One connection; `cluster` is set by who makes the server."""

    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are kept, for `/control/requests`."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        headers: dict[str, str] = {}
        try:
            user = self.cluster.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if user is None:
                raise ApiError(401, "Unauthorized", "Unauthorized")
            body = json.loads(text) if text else {}
            if url.path.startswith("/control/"):
                code, found = self._control(url.path.removeprefix("/control/"), body, user)
            else:
                code, found = self._with_faults(user, url.path, query, body, headers)
        except ApiError as error:
            code, found = error.code, error.status
        self._send(code, found, headers)

    def _with_faults(
        self, user: str, path: str, query: dict[str, str], body: Object, headers: dict[str, str]
    ) -> tuple[int, Object | bytes]:
        fault = self.cluster.faults.of(self.command, path)
        if fault and fault.get("after"):
            self._do(user, path, query, body)
        if fault and "hang" in fault:
            time.sleep(fault["hang"])
            raise ApiError(504, "Timeout", "the server was unable to return a response in the time allotted")
        if fault:
            if "retryAfter" in fault:
                headers["Retry-After"] = str(fault["retryAfter"])
            reasons = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
            raise ApiError(fault["status"], reasons.get(fault["status"], "Unknown"), "a fault that was asked for")
        return self._do(user, path, query, body)

    def _do(self, user: str, path: str, query: dict[str, str], body: Object) -> tuple[int, Object | bytes]:
        self.cluster.requests.append({"method": self.command, "path": path, "user": user})
        match = _ROUTE.fullmatch(path)
        if match is None or match["resource"] not in _KINDS:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        resource, sub = match["resource"], match["sub"] or ""
        namespace, name = match["namespace"] or "", match["name"] or ""
        if sub and (resource, sub) not in _SUBRESOURCES:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        verbs = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete", "PATCH": "patch"}
        if self.command not in verbs:
            raise ApiError(405, "MethodNotAllowed", f"{self.command} is not copied by this server")
        access.require(
            self.cluster.objects,
            user,
            verbs[self.command],
            f"{resource}/{sub}" if sub else resource,
            namespace,
            name,
        )
        if self.command == "POST":
            return 201, self._create(_KINDS[resource], namespace, name, sub, body)
        if self.command == "DELETE":
            return 200, self._delete(_KINDS[resource], namespace, name, query, body)
        if self.command == "PATCH":
            return 200, self._patch(_KINDS[resource], namespace, name, body)
        return 200, self._read(_KINDS[resource], namespace, name, sub, query)

    def _read(self, kind: str, namespace: str, name: str, sub: str, query: dict[str, str]) -> Object | bytes:
        objects = self.cluster.objects
        if not name:
            if query.get("watch") in ("true", "1"):
                raise ApiError(501, "NotImplemented", "watches are not copied by this server")
            labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
            return objects.select(kind, namespace or None, labels, fields)
        found = objects.get(kind, namespace, name)
        return self._log(found, query) if sub == "log" else found

    def _log(self, pod: Object, query: dict[str, str]) -> bytes:
        path = self.cluster.kubelet.log_of(pod)
        if not path.exists():
            state = pod["status"].get("containerStatuses", [{}])[0].get("state", {}).get("waiting", {})
            name = pod["spec"]["containers"][0]["name"]
            reason = state.get("reason", "ContainerCreating")
            raise ApiError(
                400,
                "BadRequest",
                f'container "{name}" in pod "{pod["metadata"]["name"]}" is waiting to start: {reason}',
            )
        lines = path.read_bytes().splitlines(keepends=True)
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
        return b"".join(lines)

    def _create(self, kind: str, namespace: str, name: str, sub: str, body: Object) -> Object:
        objects = self.cluster.objects
        if sub == "eviction":
            pod = objects.get("Pod", namespace, name)
            with objects.lock:
                set_condition(pod, "DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
                mark_deleted(objects, pod, None)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        if kind == "Job":
            require_valid(body)
            return self.cluster.jobs.add(body, namespace)
        if namespace:
            body.setdefault("metadata", {})["namespace"] = namespace
        return add_pod(objects, body) if kind == "Pod" else objects.add(kind, body)

    def _delete(self, kind: str, namespace: str, name: str, query: dict[str, str], body: Object) -> Object:
        objects = self.cluster.objects
        found = objects.get(kind, namespace, name)
        grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        if kind == "Job":
            self.cluster.jobs.delete(found, body.get("propagationPolicy") or query.get("propagationPolicy"))
        elif kind == "Pod":
            mark_deleted(objects, found, None if grace is None else int(grace))
            return found
        else:
            objects.remove(found)
        details = {"name": name, "kind": PLURALS[kind], "uid": found["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _patch(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        """A merge patch of a node's `spec`, which is what cordoning is."""
        if kind != "Node" or set(body) != {"spec"}:
            raise ApiError(501, "NotImplemented", "only the `spec` of nodes can be patched here")
        objects = self.cluster.objects
        with objects.lock:
            node = objects.get(kind, namespace, name)
            node.setdefault("spec", {}).update(body["spec"])
            return objects.touch(node)

    def _control(self, what: str, body: Object, user: str) -> tuple[int, Any]:
        if user != access.ADMIN:
            raise ApiError(403, "Forbidden", "the control of this server is its owner's")
        if what == "faults":
            self.cluster.faults.add(body)
        elif what == "evict":
            pod = self.cluster.objects.get("Pod", body["namespace"], body["name"])
            self.cluster.kubelet.evict(pod, "The node was low on resource: memory.")
        elif what != "requests":
            raise ApiError(404, "NotFound", what)
        return 200, {"requests": list(self.cluster.requests)}

    def _send(self, code: int, found: Object | bytes, headers: dict[str, str]) -> None:
        with self.cluster.objects.lock:
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain" if isinstance(found, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
