"""What the API server refuses: an object that breaks the published schema, or a rule that stands in no schema.

What belongs here: `problems` of a Job. What does not: whether it fits on a node (`nodes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from small_cluster.objects import ApiError, Object
from small_cluster.quantities import quantity

VERSIONS = ("1.35", "1.37")
"""The oldest and the newest release that Kubernetes supports; both schemas have to accept an object."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SOURCES = {"emptyDir", "hostPath", "configMap", "secret"}


def require_valid(job: Object) -> None:
    """Refuses a Job as the API server does: 422 for what is wrong, 501 for what is right and not copied here."""
    found = list(_by_schema(job)) or list(problems(job))
    if found:
        name = job.get("metadata", {}).get("name", "")
        raise ApiError(
            422,
            "Invalid",
            f'Job.batch "{name}" is invalid: ' + ", ".join(f"{field}: {what}" for field, what in found),
            {
                "name": name,
                "group": "batch",
                "kind": "Job",
                "causes": [{"reason": "FieldValueInvalid", "message": what, "field": field} for field, what in found],
            },
        )
    lacking = list(_not_copied(job))
    if lacking:
        raise ApiError(501, "NotImplemented", "not copied by this server: " + ", ".join(lacking))


def _by_schema(job: Object) -> Iterator[tuple[str, str]]:
    import kubernetes_validate

    for version in VERSIONS:
        try:
            kubernetes_validate.validate(job, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield ".".join(str(part) for part in error.path) or "object", f"{error.message} (Kubernetes {version})"
            return


def problems(job: Object) -> Iterator[tuple[str, str]]:
    """What is wrong beyond the schema: fields with words of why."""
    meta, spec = job.get("metadata", {}), job["spec"]
    template = spec["template"]
    if not _DNS_SUBDOMAIN.fullmatch(meta.get("name", "")) or len(meta["name"]) > 63:
        yield "metadata.name", f'Invalid value: "{meta.get("name", "")}": a DNS label of at most 63 characters'
    yield from _labels("metadata", meta)
    yield from _labels("spec.template", template.get("metadata", {}))
    for name in ("backoffLimit", "ttlSecondsAfterFinished", "parallelism", "completions", "activeDeadlineSeconds"):
        if spec.get(name) is not None and spec[name] < 0:
            yield f"spec.{name}", f"Invalid value: {spec[name]}: must be greater than or equal to 0"
    if spec.get("selector") and not spec.get("manualSelector"):
        yield "spec.selector", "Invalid value: field is immutable unless `manualSelector` is set"
    pod = template["spec"]
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        given = pod.get("restartPolicy", "Always")  # the default of a pod
        yield (
            "spec.template.spec.restartPolicy",
            f'Required value: valid values: "OnFailure", "Never", not "{given}"',
        )
    yield from _pod("spec.template.spec", pod)


def _labels(where: str, meta: Object) -> Iterator[tuple[str, str]]:
    for key, value in (meta.get("labels") or {}).items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _DNS_SUBDOMAIN.fullmatch(prefix)):
            yield f"{where}.labels", f'Invalid value: "{key}": name part must consist of alphanumeric characters'
        if value and not _LABEL_NAME.fullmatch(value):
            yield f"{where}.labels", f'Invalid value: "{value}": a valid label must be at most 63 characters'


def _pod(where: str, pod: Object) -> Iterator[tuple[str, str]]:
    volumes = [volume["name"] for volume in pod.get("volumes") or []]
    for name in {name for name in volumes if volumes.count(name) > 1}:
        yield f"{where}.volumes", f'Duplicate value: "{name}"'
    for index, volume in enumerate(pod.get("volumes") or []):
        if len(volume) != 2:
            yield f"{where}.volumes[{index}]", "Required value: must specify a volume type, and one only"
    containers = [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]
    names = [container["name"] for container in containers]
    for name in {name for name in names if names.count(name) > 1}:
        yield f"{where}.containers", f'Duplicate value: "{name}"'
    for index, container in enumerate(pod.get("containers") or []):
        yield from _container(f"{where}.containers[{index}]", container, volumes)
    for toleration in pod.get("tolerations") or []:
        if toleration.get("operator", "Equal") == "Exists" and toleration.get("value"):
            yield f"{where}.tolerations", "Invalid value: value must be empty when `operator` is 'Exists'"
    yield from _labels(f"{where}.nodeSelector", {"labels": pod.get("nodeSelector")})


def _container(where: str, container: Object, volumes: list[str]) -> Iterator[tuple[str, str]]:
    if not _DNS_LABEL.fullmatch(container["name"]):
        yield f"{where}.name", f'Invalid value: "{container["name"]}": a lowercase RFC 1123 label'
    if not container.get("image"):
        yield f"{where}.image", "Required value"
    for variable in container.get("env") or []:
        if not variable["name"] or "=" in variable["name"]:
            yield f"{where}.env", f'Invalid value: "{variable["name"]}": must not contain "="'
        if variable.get("value") and variable.get("valueFrom"):
            yield f"{where}.env", f"Invalid value: {variable['name']}: may not have both value and valueFrom"
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or []]
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in volumes:
            yield f"{where}.volumeMounts", f'Not found: "{mount["name"]}"'
    for path in {path for path in mounts if mounts.count(path) > 1}:
        yield f"{where}.volumeMounts", f'Invalid value: "{path}": must be unique'
    yield from _resources(f"{where}.resources", container.get("resources") or {})


def _resources(where: str, resources: Object) -> Iterator[tuple[str, str]]:
    parsed: dict[str, dict[str, Any]] = {"requests": {}, "limits": {}}
    for part, found in parsed.items():
        for name, text in (resources.get(part) or {}).items():
            try:
                found[name] = quantity(text)
            except ValueError as error:
                yield f"{where}.{part}[{name}]", f'Invalid value: "{text}": {error}'
                continue
            if found[name] < 0:
                yield f"{where}.{part}[{name}]", f'Invalid value: "{text}": must be greater than or equal to 0'
            if "/" in name and found[name] % 1:
                yield f"{where}.{part}[{name}]", f'Invalid value: "{text}": must be an integer'
    for name, asked in parsed["requests"].items():
        limit = parsed["limits"].get(name)
        if "/" in name and limit is None:
            yield f"{where}.limits", f"Required value: limit must be set for non overcommitable resources: {name}"
        elif "/" in name and asked != limit:
            yield f"{where}.requests", f'Invalid value: "{asked}": must be equal to {name} limit of {limit}'
        elif limit is not None and asked > limit:
            yield (
                f"{where}.requests",
                f'Invalid value: "{asked}": must be less than or equal to {name} limit of {limit}',
            )


_JOB = ("completionMode", "podFailurePolicy", "successPolicy", "suspend", "managedBy", "manualSelector")
_POD = ("initContainers", "affinity", "topologySpreadConstraints", "priorityClassName", "hostNetwork")
_CONTAINER = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")


def _not_copied(job: Object) -> Iterator[str]:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    found = [
        *(f"spec.{name}" for name in _JOB if spec.get(name)),
        *(f"spec.{name} other than 1" for name in ("parallelism", "completions") if spec.get(name, 1) != 1),
        *(f"spec.template.spec.{name}" for name in _POD if pod.get(name)),
        *(f"container.{name}" for name in _CONTAINER if pod["containers"][0].get(name)),
        *(
            f"a volume of kind {set(volume) - {'name'}}"
            for volume in pod.get("volumes") or []
            if not _SOURCES & set(volume)
        ),
    ]
    if pod["restartPolicy"] != "Never":
        found.append("restartPolicy other than Never")
    if len(pod["containers"]) != 1:
        found.append("several containers in a pod")
    return iter(found)
