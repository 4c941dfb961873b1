"""Whether the GPUs that steps wait for are there, by the nodes of the cluster and by Dagster's pool.

What belongs here: what is asked of the cluster. What does not: how steps ask for a GPU (`op_tags`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.errors import clean_reason
from mirror_realm_assets.settings import Settings

RESOURCE = "nvidia.com/gpu"
LABEL = "mirror-realm/gpu"
_POOL = "gpu"
_SECONDS = 5
_REMEDY_RIGHTS = (
    "Run it in the daemon's pod, whose account has the ClusterRole mirror-realm-nodes of deploy/base/rbac.yaml, or "
    "compare with `kubectl get nodes -L mirror-realm/gpu`."
)


def gpus(settings: Settings) -> list[Finding]:
    """MIRROR_REALM_GPUS against nodes and pool; nothing where runs are processes of one machine."""
    if not settings.on_cluster:
        return []
    return [*_of_nodes(settings.gpus), *_of_pool(settings)]


def offered(nodes: list[Any]) -> tuple[int, list[str]]:
    """GPUs that our steps can have, and the names of nodes with GPUs that they cannot, for want of the label.

    Args:
        nodes: `V1Node` objects; those that are cordoned or not ready offer nothing.
    """
    count, unlabelled = 0, []
    for node in nodes:
        here = int((node.status.allocatable or {}).get(RESOURCE, 0))
        if not here or node.spec.unschedulable or not _ready(node):
            continue
        if (node.metadata.labels or {}).get(LABEL) == "true":
            count += here
        else:
            unlabelled.append(node.metadata.name)
    return count, unlabelled


def _ready(node: Any) -> bool:
    conditions = {condition.type: condition.status for condition in node.status.conditions or ()}
    return conditions.get("Ready", "True") == "True"


def _of_nodes(wanted: int) -> list[Finding]:
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        nodes = client.CoreV1Api().list_node(_request_timeout=_SECONDS).items
    except config.ConfigException as error:
        return [rate("GPUs", clean_reason(f"No cluster is known here: {error}"), warn=_REMEDY_RIGHTS)]
    except client.ApiException as error:
        text = f"The nodes cannot be listed: {error.status} {error.reason}; {wanted} are set"
        return [rate("GPUs", clean_reason(text), warn=_REMEDY_RIGHTS)]
    except HTTPError as error:
        return [rate("GPUs", clean_reason(f"The API server does not answer: {error}"), fail="Look at the cluster.")]
    return [_judged(wanted, *offered(nodes))]


def _judged(wanted: int, count: int, unlabelled: list[str]) -> Finding:
    told = f"MIRROR_REALM_GPUS is {wanted}, nodes offer {count}"
    if unlabelled and count < wanted:
        names = " ".join(unlabelled[:4])
        told += f"; {len(unlabelled)} more with GPUs have no label {LABEL}=true"
        return rate("GPUs", told, fail=f"kubectl label node {names} {LABEL}=true")
    if count < wanted:
        remedy = f"Add nodes with GPUs and the label {LABEL}=true, or set MIRROR_REALM_GPUS={count} and run `init`."
        # Nodes that are made when a pod waits for one look like this, too.
        return rate("GPUs", told, **({"warn": remedy} if count else {"fail": remedy}))
    if count > wanted:
        return rate("GPUs", told, warn=f"Set MIRROR_REALM_GPUS={count} and run `init`, or the others stay idle.")
    return rate("GPUs", told)


def _of_pool(settings: Settings) -> list[Finding]:
    """Dagster's own limit, which `init` sets, as the database holds it: nothing here loads Dagster."""
    if not settings.dagster_url or not settings.gpus:
        return []
    limits = sa.table("concurrency_limits", sa.column("concurrency_key"), sa.column("limit"))
    engine = sa.create_engine(settings.dagster_url, connect_args={"connect_timeout": _SECONDS}, poolclass=sa.NullPool)
    try:
        with engine.connect() as conn:
            if not sa.inspect(conn).has_table("concurrency_limits"):
                return []  # told by the finding about Dagster's database
            limit = conn.execute(sa.select(limits.c.limit).where(limits.c.concurrency_key == _POOL)).scalar()
    except sa.exc.SQLAlchemyError:
        return []  # so is this
    remedy = "" if limit == settings.gpus else "Run `mirror-realm init`: it makes the pool as large as the setting."
    return [rate("GPU pool", f"{limit or 'no'} slots for {settings.gpus} GPUs", fail=remedy)]
