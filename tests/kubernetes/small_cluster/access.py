"""Who may do what: service accounts by their tokens, and what roles allow them.

What belongs here: the answer to one question, by the roles that were created. What does not: the routes (`api`).
"""

from __future__ import annotations

from small_cluster.objects import ApiError, Object, Objects

ADMIN = "admin"
"""The user of the cluster's own token, who may do everything."""


def require(objects: Objects, user: str, verb: str, resource: str, namespace: str, name: str) -> None:
    """Refuses with 403 what no role allows.

    Args:
        objects: with roles and their bindings.
        user: `ADMIN`, or a service account as `namespace:name`.
        verb: `get`, `list`, `create`, `delete`, `patch`.
        resource: plural, with its subresource, as `pods/log`.
        namespace: of the object, empty for what has none.
        name: of the object, empty in lists.
    """
    if user == ADMIN or any(
        _allows(rule, verb, resource, name) for role in _roles(objects, user, namespace) for rule in role["rules"]
    ):
        return
    who = "system:serviceaccount:" + user
    raise ApiError(
        403,
        "Forbidden",
        f'{resource} "{name}" is forbidden: User "{who}" cannot {verb} resource "{resource}" in the namespace '
        f'"{namespace}"',
    )


def _roles(objects: Objects, user: str, namespace: str) -> list[Object]:
    """Of the namespace, and those of the whole cluster; a binding in a namespace may name one of these, too."""
    bindings = objects.all("ClusterRoleBinding", "")
    bindings += objects.all("RoleBinding", namespace) if namespace else []
    return [
        objects.get(binding["roleRef"]["kind"], _where(binding), binding["roleRef"]["name"])
        for binding in bindings
        if any(_is(subject, user, binding) for subject in binding.get("subjects", ()))
    ]


def _where(binding: Object) -> str:
    return "" if binding["roleRef"]["kind"] == "ClusterRole" else str(binding["metadata"]["namespace"])


def _is(subject: Object, user: str, binding: Object) -> bool:
    of, _, account = user.partition(":")
    namespace = subject.get("namespace", binding["metadata"].get("namespace", ""))
    return (subject["kind"], namespace, subject["name"]) == ("ServiceAccount", of, account)


def _allows(rule: Object, verb: str, resource: str, name: str) -> bool:
    group = "batch" if resource.partition("/")[0] == "jobs" else ""
    return (
        group in rule["apiGroups"]
        and (resource in rule["resources"] or "*" in rule["resources"])
        and (verb in rule["verbs"] or "*" in rule["verbs"])
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
    )
