"""What runs: the supervisor, the UI's port, and what the running Dagster instance says of itself.

What belongs here: processes and servers of this home. What does not: starting or stopping any.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import psutil

from mirror_realm_assets import address, liveness, ports
from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.errors import Failed, clean_reason
from mirror_realm_assets.settings import Settings

_ASK_SECONDS = 3.0
_MAX_ANSWER_BYTES = 4 * 1024**2
_RESTART = "Stop `mirror-realm up` with Ctrl-C and start it again; its output says what is wrong."
_QUERY = """
{
  instance {
    daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } }
    runQueueConfig { maxConcurrentRuns }
    poolConfig { defaultPoolLimit }
    concurrencyLimits { concurrencyKey limit }
  }
  repositoriesOrError { ... on RepositoryConnection { nodes { sensors { name sensorState { status } } } } }
  workspaceOrError {
    ... on Workspace { locationEntries { name locationOrLoadError { __typename ... on PythonError { message } } } }
  }
}
"""


def serving(settings: Settings) -> list[Finding]:
    """Whether `mirror-realm up` runs, whether the UI's port is free or ours, and what Dagster says where it is ours."""
    pid = liveness.held(settings.home / "up.lock")
    found = [
        rate("supervisor", f"`mirror-realm up` runs as process {pid}" if pid else "not running", group="processes")
    ]
    host, port = address.of(settings)
    where = f"{host}:{port}"
    if ports.free_port(host, port):
        return [*found, rate("port", f"{where} is free"), _NOT_ASKED]
    told = f"{where} is taken by {_listener(port)}"
    # Our own webserver, or it is asked nothing.
    if pid is None or not ports.wait_ready(f"http://{where}", 1.0):
        remedy = "Stop it, or set MIRROR_REALM_PORT to another port (`mirror-realm up --port`)."
        return [*found, rate("port", told, warn=remedy), _NOT_ASKED]
    found.append(rate("port", told))
    try:
        return [*found, *judge(_ask(host, port))]
    except Failed as error:
        return [*found, rate("daemon", error.message, fail=error.remedy, group="Dagster")]


_NOT_ASKED = rate("daemon", "not asked: `mirror-realm up` does not run at this port", group="Dagster")


def judge(answer: dict[str, Any]) -> list[Finding]:
    """What an instance's answer means."""
    return [_daemons(answer), _sensors(answer), _limits(answer), *_broken_locations(answer)]


def _ask(host: str, port: int) -> dict[str, Any]:
    """Dagster's public GraphQL interface.

    Raises:
        Failed: it gives no answer that we understand.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_SECONDS)
    try:
        body = json.dumps({"query": _QUERY})
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read(_MAX_ANSWER_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed("internal", f"Dagster's webserver gives no answer: {error}.", remedy=_RESTART) from error
    finally:
        connection.close()
    if not isinstance(answer.get("data"), dict):
        raise Failed("internal", "Dagster's webserver answers with an error.", remedy=_RESTART)
    found: dict[str, Any] = answer["data"]
    return found


def _daemons(answer: dict[str, Any]) -> Finding:
    wanted = [each for each in answer["instance"]["daemonHealth"]["allDaemonStatuses"] if each["required"]]
    ill = [each["daemonType"] for each in wanted if not each["healthy"]]
    beats = [each["lastHeartbeatTime"] for each in wanted if each["lastHeartbeatTime"]]
    since = f"; last sign of life {max(0.0, time.time() - max(beats)):.0f} s ago" if beats else ""
    found = f"{len(wanted) - len(ill)} of {len(wanted)} daemons are healthy{since}"
    return rate(
        "daemon", found + (f"; not: {', '.join(ill)}" if ill else ""), fail=_RESTART if ill else "", group="Dagster"
    )


def _sensors(answer: dict[str, Any]) -> Finding:
    nodes = answer["repositoriesOrError"].get("nodes", [])
    sensors = [sensor for node in nodes for sensor in node["sensors"]]
    stopped = [sensor["name"] for sensor in sensors if sensor["sensorState"]["status"] != "RUNNING"]
    found = f"{len(sensors) - len(stopped)} of {len(sensors)} run"
    if stopped:
        found += f"; stopped: {', '.join(stopped)}"
    remedy = "Start them in the UI under Automation: without them nothing begins by itself." if stopped else ""
    return rate("sensors", found, warn=remedy, group="Dagster")


def _limits(answer: dict[str, Any]) -> Finding:
    instance = answer["instance"]
    queue, pools = instance["runQueueConfig"] or {}, instance["poolConfig"] or {}
    found = f"at most {queue.get('maxConcurrentRuns')} runs at once, {pools.get('defaultPoolLimit')} in a pool"
    own = [f"{pool['concurrencyKey']} {pool['limit']}" for pool in instance["concurrencyLimits"] if pool["limit"]]
    if own:
        found += f"; {', '.join(own)}"
    free = pools.get("defaultPoolLimit") is None
    remedy = "Set concurrency.pools.default_limit to 1 in dagster.yaml: two enhancements at once are slower than one."
    return rate("queue", found, warn=remedy if free else "", group="Dagster")


def _broken_locations(answer: dict[str, Any]) -> list[Finding]:
    entries = answer["workspaceOrError"].get("locationEntries", [])
    broken = [
        (entry["name"], entry["locationOrLoadError"]["message"])
        for entry in entries
        if (entry["locationOrLoadError"] or {}).get("__typename") == "PythonError"
    ]
    return [
        rate("code location", clean_reason(f"{name} cannot be loaded: {message}"), fail=_RESTART, group="Dagster")
        for name, message in broken[:1]
    ]


def _listener(port: int) -> str:
    """Who listens on a port, as far as we may know: the system shows only a user's own programs."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:
        pass  # not ours to see, or gone meanwhile
    return "another program"
