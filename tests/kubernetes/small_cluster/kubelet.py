"""The kubelet: a pod that has a node becomes a local process, and its status says how that fares.

What belongs here: images, environment, volumes, memory, the end of a container and its log. What does not: where a pod
runs (`nodes`) and whether another takes its place (`jobs`).

A container here shares the file system of the machine. So a volume is there for all at its path, which has to lie in
the folder of the cluster; only a host path that is mounted where it lies may be elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import psutil

from small_cluster.jobs import gone
from small_cluster.nodes import set_condition
from small_cluster.objects import ApiError, Object, Objects, now
from small_cluster.quantities import quantity

_TICK = 0.05
_RETRY = 1.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before there are threads to hold a lock while one forks
_CANNOT_START = 128  # the exit code of a container whose program is not there


@dataclass(frozen=True)
class Image:
    """What an image brings: its environment and the folder its programs start in."""

    env: dict[str, str]
    folder: Path


class _ConfigError(Exception):
    """What the manifest names is not there; the kubelet tries again."""


@dataclass
class _Container:
    """A running container."""

    process: subprocess.Popen[bytes]
    limit: Decimal | None
    log: Path
    started: str = field(default_factory=now)
    killed_at: float | None = None
    out_of_memory: bool = False

    def family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []


class Kubelet:
    """Runs pods, each in a thread.

    Args:
        objects: where their status is written.
        images: what can be pulled, by name.
        folder: for logs and volumes.
    """

    def __init__(self, objects: Objects, images: dict[str, Image], folder: Path) -> None:
        self._objects = objects
        self._images = images
        self._folder = folder
        self._threads: dict[str, threading.Thread] = {}

    def log_of(self, pod: Object) -> Path:
        return self._folder / "logs" / f"{pod['metadata']['uid']}.log"

    def start(self, pod: Object) -> None:
        """Run a pod that has just been scheduled."""
        thread = threading.Thread(target=self._run, args=(pod,), daemon=True, name=pod["metadata"]["name"])
        self._threads[pod["metadata"]["uid"]] = thread
        thread.start()

    def evict(self, pod: Object, message: str) -> None:
        """End a pod as a node does that runs out of something: at once, and it stays as `Failed`."""
        with self._objects.lock:
            pod["status"]["reason"], pod["status"]["message"] = "Evicted", message
            set_condition(pod, "DisruptionTarget", "True", "TerminationByKubelet", message)
            self._objects.touch(pod)
        self._objects.say(pod, "Warning", "Evicted", message, "kubelet")

    def _run(self, pod: Object) -> None:
        spec = pod["spec"]["containers"][0]
        with self._objects.lock:
            pod["status"]["startTime"] = now()
        container = self._start_container(pod, spec)
        if container is not None:
            self._watch(pod, spec, container)
        with self._objects.lock:
            if "deletionTimestamp" in pod["metadata"]:
                if pod["status"]["phase"] not in ("Succeeded", "Failed"):
                    pod["status"]["phase"] = "Failed"  # it never ran
                gone(self._objects, pod)

    def _start_container(self, pod: Object, spec: Object) -> _Container | None:
        """Start it, as soon as what it needs is there; None when the pod is to go before, or it cannot be started."""
        while "deletionTimestamp" not in pod["metadata"] and not _is_evicted(pod):
            image = self._images.get(spec["image"])
            if image is None:
                self._waiting(pod, spec, "ErrImagePull", f'failed to pull image "{spec["image"]}": not found')
                time.sleep(_RETRY)
                self._waiting(pod, spec, "ImagePullBackOff", f'Back-off pulling image "{spec["image"]}"')
                time.sleep(_RETRY)
                continue
            try:
                env = self._environment(pod, spec, image)
                self._mount(pod, spec)
            except _ConfigError as error:
                self._waiting(pod, spec, "CreateContainerConfigError", str(error))
                time.sleep(_RETRY)
                continue
            return self._exec(pod, spec, image, env)
        if _is_evicted(pod):
            self._ended(pod, spec, None, 137, "Error")
        return None

    def _exec(self, pod: Object, spec: Object, image: Image, env: dict[str, str]) -> _Container | None:
        words = [*(spec.get("command") or []), *(spec.get("args") or [])]
        program = shutil.which(words[0], path=env.get("PATH", "")) if words else None
        if program is None:
            message = f'exec: "{words[0] if words else ""}": executable file not found in $PATH'
            self._ended(pod, spec, None, _CANNOT_START, "StartError", message)
            return None
        log = self.log_of(pod)
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    [program, *words[1:]],
                    env=env,
                    cwd=spec.get("workingDir") or image.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_own_session,
                )
            except OSError as error:
                self._ended(pod, spec, None, _CANNOT_START, "StartError", str(error))
                return None
        limit = (spec["resources"].get("limits") or {}).get("memory")
        container = _Container(process, None if limit is None else quantity(limit), log)
        with self._objects.lock:
            pod["status"]["phase"] = "Running"
            for kind in ("Initialized", "ContainersReady", "Ready"):
                set_condition(pod, kind, "True")
            self._container_status(pod, spec, {"running": {"startedAt": container.started}}, ready=True)
        self._objects.say(pod, "Normal", "Started", f"Started container {spec['name']}", "kubelet")
        return container

    def _watch(self, pod: Object, spec: Object, container: _Container) -> None:
        while container.process.poll() is None:
            self._kill_if_due(pod, container)
            if container.limit is not None and _memory(container) > container.limit:
                container.out_of_memory = True
                _kill(container)
            time.sleep(_TICK)
        _kill(container)  # with its first process a container ends, whatever else still runs in it
        status = container.process.returncode
        code = status if status >= 0 else 128 - status
        reason = "OOMKilled" if container.out_of_memory else "Error" if code else "Completed"
        self._ended(pod, spec, container, code, reason)

    def _kill_if_due(self, pod: Object, container: _Container) -> None:
        meta = pod["metadata"]
        if _is_evicted(pod):
            _kill(container)
        elif "deletionTimestamp" in meta:
            at = time.monotonic()
            if container.killed_at is None:
                container.killed_at = at
                with contextlib.suppress(ProcessLookupError):
                    container.process.send_signal(signal.SIGTERM)  # to the first process alone
                self._objects.say(pod, "Normal", "Killing", "Stopping container", "kubelet")
            elif at - container.killed_at >= meta["deletionGracePeriodSeconds"]:
                _kill(container)

    def _ended(
        self,
        pod: Object,
        spec: Object,
        container: _Container | None,
        code: int,
        reason: str,
        message: str | None = None,
    ) -> None:
        at = now()
        ended = {
            "exitCode": code,
            "reason": reason,
            "startedAt": container.started if container else at,
            "finishedAt": at,
            **({"message": message} if message else {}),
        }
        with self._objects.lock:
            pod["status"]["phase"] = "Failed" if code or _is_evicted(pod) else "Succeeded"
            why = "PodFailed" if pod["status"]["phase"] == "Failed" else "PodCompleted"
            for kind in ("ContainersReady", "Ready"):
                set_condition(pod, kind, "False", why)
            self._container_status(pod, spec, {"terminated": ended}, ready=False)

    def _waiting(self, pod: Object, spec: Object, reason: str, message: str) -> None:
        with self._objects.lock:
            self._container_status(pod, spec, {"waiting": {"reason": reason, "message": message}}, ready=False)
        self._objects.say(pod, "Warning", "Failed", message, "kubelet")

    def _container_status(self, pod: Object, spec: Object, state: Object, *, ready: bool) -> None:
        pod["status"]["containerStatuses"] = [
            {
                "name": spec["name"],
                "image": spec["image"],
                "imageID": "",
                "state": state,
                "lastState": {},
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "containerID": f"local://{uuid.uuid5(uuid.NAMESPACE_OID, pod['metadata']['uid'])}",
            }
        ]
        self._objects.touch(pod)

    def _environment(self, pod: Object, spec: Object, image: Image) -> dict[str, str]:
        """The image's, then `envFrom`, then `env`; of this machine's environment nothing."""
        env = {**image.env, "HOSTNAME": pod["metadata"]["name"]}
        for source in spec.get("envFrom") or []:
            kind, name = ("ConfigMap", "configMapRef") if "configMapRef" in source else ("Secret", "secretRef")
            found = self._data(pod, kind, source[name])
            env |= {source.get("prefix", "") + key: value.decode() for key, value in found.items()}
        for variable in spec.get("env") or []:
            if "valueFrom" in variable:
                value = self._value_from(pod, variable["valueFrom"])
                if value is not None:
                    env[variable["name"]] = value
            else:
                env[variable["name"]] = variable.get("value") or ""
        return env

    def _value_from(self, pod: Object, source: Object) -> str | None:
        for name, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if name in source:
                found = self._data(pod, kind, source[name]).get(source[name]["key"])
                if found is None and not source[name].get("optional"):
                    raise _ConfigError(f"couldn't find key {source[name]['key']} in {kind} {source[name]['name']}")
                return None if found is None else found.decode()
        if "fieldRef" in source:
            place: object = pod
            for part in source["fieldRef"]["fieldPath"].split("."):
                place = place.get(part) if isinstance(place, dict) else None
            return "" if place is None else str(place)
        raise _ConfigError(f"not copied by this server: valueFrom {', '.join(source)}")

    def _data(self, pod: Object, kind: str, reference: Object) -> dict[str, bytes]:
        try:
            found = self._objects.get(kind, pod["metadata"]["namespace"], reference["name"])
        except ApiError as error:
            if reference.get("optional"):
                return {}
            raise _ConfigError(f'{kind.lower()} "{reference["name"]}" not found') from error
        plain = {key: value.encode() for key, value in found.get("data", {}).items()}
        if kind == "Secret":
            plain = {key: base64.b64decode(value) for key, value in plain.items()}
            plain |= {key: value.encode() for key, value in found.get("stringData", {}).items()}
        return plain

    def _mount(self, pod: Object, spec: Object) -> None:
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
        for mount in spec.get("volumeMounts") or []:
            volume, path = volumes[mount["name"]], Path(mount["mountPath"])
            if "hostPath" in volume:
                if Path(volume["hostPath"]["path"]) != path or not path.exists():
                    raise _ConfigError(f"{volume['hostPath']['path']} can be mounted only where it lies, and is there")
                continue
            if not path.is_relative_to(self._folder):
                raise _ConfigError(f"{path} is not in the folder of this cluster, {self._folder}")
            if "emptyDir" in volume:
                path.mkdir(parents=True, exist_ok=True)
                continue
            kind, name = ("ConfigMap", "name") if "configMap" in volume else ("Secret", "secretName")
            source = volume["configMap" if kind == "ConfigMap" else "secret"]
            data = self._data(pod, kind, {"name": source[name], "optional": source.get("optional")})
            _write(path, data, mount.get("subPath"))


def _write(path: Path, data: dict[str, bytes], sub_path: str | None) -> None:
    if sub_path is not None:
        if sub_path not in data:
            raise _ConfigError(f"{sub_path} is not in the volume")
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data[sub_path])
        return
    path.mkdir(parents=True, exist_ok=True)
    for name, content in data.items():
        _replace(path / name, content)


def _replace(path: Path, content: bytes) -> None:
    """At once: another pod may be reading it, which would have a volume of its own on a cluster."""
    if path.exists() and path.read_bytes() == content:
        return
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    hidden.write_bytes(content)
    hidden.rename(path)


def _is_evicted(pod: Object) -> bool:
    return bool(pod["status"].get("reason") == "Evicted")


def _memory(container: _Container) -> int:
    """What the container holds, with shared pages counted once; the cheap upper bound first."""
    family = container.family()
    total = 0
    with contextlib.suppress(psutil.Error):
        total = sum(process.memory_info().rss for process in family)
        if container.limit is not None and total > container.limit:
            total = sum(process.memory_full_info().pss for process in family)
    return total


def _kill(container: _Container) -> None:
    for process in container.family():
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(container.process.pid, signal.SIGKILL)


def _own_session() -> None:
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
