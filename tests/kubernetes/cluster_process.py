"""The small cluster for tests: in a process of its own, on a free port of this machine, gone at the end.

What belongs here: starting it, and what a test asks of it beside Kubernetes' own API. What does not: what it does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

_START_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_HERE = Path(__file__).parent
NAMESPACE = "mirror-realm"
IMAGE = "mirror-realm:test"


def node(name: str, *, cpu: str = "8", memory: str = "16Gi", gpus: int = 0, **spec: Any) -> dict[str, Any]:
    """A node; one with GPUs has the label and the taint that our GPU steps are made for."""
    has = {"cpu": cpu, "memory": memory, "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}] if gpus else []
    labels = {"kubernetes.io/hostname": name, **({"mirror-realm/gpu": "true"} if gpus else {})}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints, **spec},
        "status": {"capacity": has, "allocatable": has},
    }


class SmallCluster:
    """A running cluster.

    Args:
        folder: for its log, its pods' logs and their volumes.
        nodes: what it has; one of 8 CPUs without GPU when left out.
        image_env: the environment that the one image brings; this Python's programs are on its PATH.
        accounts: service accounts that get a token and a kubeconfig of their own.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Iterable[dict[str, Any]] | None = None,
        *,
        image_env: Mapping[str, str] | None = None,
        accounts: Iterable[str] = (),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        tokens = {"admin-token": "admin"} | {f"{name}-token": f"{NAMESPACE}:{name}" for name in accounts}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        image = {"env": {"PATH": path, "HOME": str(folder), **(image_env or {})}, "folder": str(folder)}
        settings = {
            "port": port,
            "folder": str(folder),
            "nodes": list(nodes) if nodes is not None else [node("n1")],
            "images": {IMAGE: image},
            "tokens": tokens,
        }
        (folder / "config.json").write_text(json.dumps(settings))
        self._log = folder / "cluster.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "small_cluster", str(folder / "config.json")],
                env={**os.environ, "PYTHONPATH": str(_HERE)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
            )
        self._wait()

    def kubeconfig(self, account: str = "admin") -> Path:
        """A kubeconfig of a service account, or of who may do everything."""
        path = self.folder / f"kubeconfig-{account}.yaml"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "small",
            "clusters": [{"name": "small", "cluster": {"server": self.url}}],
            "users": [{"name": account, "user": {"token": f"{account}-token"}}],
            "contexts": [{"name": "small", "context": {"cluster": "small", "user": account, "namespace": NAMESPACE}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def api(self, account: str = "admin") -> client.ApiClient:
        return config.new_client_from_config(str(self.kubeconfig(account)))

    def batch(self) -> client.BatchV1Api:
        return client.BatchV1Api(self.api())

    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api())

    def fault(self, method: str, path: str, times: int = 1, **what: Any) -> None:
        """Make requests fail: `status` or `hang` in seconds, with `after` although it was done."""
        self._control("faults", {"method": method, "path": path, "times": times, **what})

    def evict(self, pod: str) -> None:
        """End a pod as a node does that runs out of memory."""
        self._control("evict", {"namespace": NAMESPACE, "name": pod})

    def requests(self) -> list[dict[str, str]]:
        """All requests so far: `method`, `path`, `user`."""
        return list(self._control("requests", {})["requests"])

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        finally:
            self._process.kill()

    def _control(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/control/{what}", json.dumps(body).encode(), {"Authorization": "Bearer admin-token"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.requests()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"the cluster did not start: {self._log.read_text()}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # ignored in what a shell puts into the background
        signal.signal(number, signal.SIG_DFL)
