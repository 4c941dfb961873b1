"""Istio's objects are what its resource definitions allow, and mean what they say.

The models are generated from the definitions, but take any field that they do not know; so fields are held against them
here.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import pytest
from cloudcoil.models.istio.networking import v1 as networking
from cloudcoil.models.istio.security import v1 as security
from pydantic import BaseModel, ValidationError
from test_manifests import rendered

MODELS: dict[str, type[BaseModel]] = {
    "VirtualService": networking.VirtualService,
    "DestinationRule": networking.DestinationRule,
    "PeerAuthentication": security.PeerAuthentication,
}
_FREE = {"metadata"}  # of Kubernetes, and looked at by nobody here


def of_istio(overlay: str = "istio") -> list[dict[str, Any]]:
    return [found for found in rendered(overlay) if "istio.io" in found["apiVersion"]]


def faults(found: dict[str, Any]) -> list[str]:
    """Fields that do not exist, and values that are not allowed."""
    model = MODELS[found["kind"]]
    wrong = list(_unknown(model, found, found["kind"]))
    try:
        model.model_validate(found)
    except ValidationError as error:
        wrong += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return wrong


def _unknown(annotation: Any, value: Any, path: str) -> Iterator[str]:
    models = list(_models(annotation))
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _unknown(annotation, each, f"{path}.{number}")
    elif isinstance(value, dict) and models:
        fields = {field.alias or name: field for model in models for name, field in model.model_fields.items()}
        for name, each in value.items():
            if name not in fields:
                yield f"{path} has no field {name}"
            elif name not in _FREE and get_origin(_bare(fields[name].annotation)) is not dict:
                yield from _unknown(fields[name].annotation, each, f"{path}.{name}")


def _bare(annotation: Any) -> Any:
    """Without `None` beside it."""
    if get_origin(annotation) in (Union, types.UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return others[0] if len(others) == 1 else annotation
    return annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def test_every_object_is_allowed() -> None:
    objects = of_istio()
    assert sorted(found["kind"] for found in objects) == [
        "DestinationRule",
        "DestinationRule",
        "PeerAuthentication",
        "VirtualService",
    ]
    for found in objects:
        assert faults(found) == []
    assert of_istio("gpu") == []


@pytest.mark.parametrize(
    ("kind", "where", "field", "value"),
    [
        ("VirtualService", ("spec", "http", 0), "circuitBreakers", {"http": {"maxConnections": 100}}),
        ("VirtualService", ("spec", "http", 2, "corsPolicy"), "allowedOrigins", ["https://a.example"]),
        ("DestinationRule", ("spec", "trafficPolicy", "loadBalancer"), "simple", "FASTEST"),
        ("DestinationRule", ("spec", "trafficPolicy", "connectionPool", "tcp"), "maxConnections", "many"),
        ("DestinationRule", ("spec",), "subset", []),
        ("PeerAuthentication", ("spec", "mtls"), "mode", "SOMETIMES"),
    ],
)
def test_what_istio_does_not_know_would_be_found(kind: str, where: tuple[Any, ...], field: str, value: Any) -> None:
    found = next(one for one in of_istio() if one["kind"] == kind)
    part: Any = found
    for step in where:
        part = part[step]
    part[field] = value
    assert faults(found)


def test_a_launch_is_never_sent_twice_and_no_error_is_made_up() -> None:
    service = next(found for found in of_istio() if found["kind"] == "VirtualService")
    routes = {route["name"]: route for route in service["spec"]["http"]}
    assert list(routes) == ["subscriptions", "reads", "graphql"]  # the first that fits is taken
    assert all("fault" not in route for route in routes.values())
    assert routes["graphql"]["retries"] == {"attempts": 0}
    assert routes["reads"]["match"] == [{"method": {"regex": "GET|HEAD"}}]
    assert "timeout" not in routes["subscriptions"]
    for route in routes.values():
        assert sum(one["weight"] for one in route["route"]) == 100


def test_subsets_and_hosts_are_there() -> None:
    objects = rendered("istio")
    services = {found["metadata"]["name"] for found in objects if found["kind"] == "Service"}
    rules = {one["spec"]["host"]: one["spec"] for one in objects if one["kind"] == "DestinationRule"}
    assert rules.keys() <= services
    webserver = next(
        found
        for found in objects
        if (found["kind"], found["metadata"]["name"]) == ("Deployment", "mirror-realm-webserver")
    )
    labels = webserver["spec"]["template"]["metadata"]["labels"].items()
    stable, canary = rules["mirror-realm-webserver"]["subsets"]
    assert stable["labels"].items() <= labels
    assert not canary["labels"].items() <= labels
    service = next(found for found in objects if found["kind"] == "VirtualService")
    for route in service["spec"]["http"]:
        assert {one["destination"]["subset"] for one in route["route"]} == {stable["name"], canary["name"]}


def test_pods_that_must_end_have_no_proxy() -> None:
    for found in rendered("istio"):
        if found["kind"] == "Job":
            assert found["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
