"""EndpointSlices and Pods in, fleet out."""

from __future__ import annotations

from typing import Any

import pytest

from baton_api.errors import SettingError
from baton_api.fleet import Fleet, FleetWorker
from baton_api.kubernetes import worker_pod_labels
from baton_api.settings import parse
from baton_api.worker import Role
from baton_gateway.kube_fleet import Address, PodFacts, addresses, fleet, pod_facts
from baton_gateway.settings import GatewaySettings

DECODE = PodFacts(Role.DECODE, "r1")


def endpoint(address: str, pod: str | None = "p", **conditions: bool) -> dict[str, Any]:
    target = {} if pod is None else {"targetRef": {"kind": "Pod", "name": pod}}
    return {"addresses": [address], "conditions": conditions, **target}


def endpoint_slice(*endpoints: dict[str, Any], family: str = "IPv4", ports: Any = None) -> dict[str, Any]:
    return {"metadata": {"name": "s"}, "addressType": family, "endpoints": list(endpoints), "ports": ports}


def test_every_endpoint_is_known_whatever_kubernetes_thinks_of_it() -> None:
    """How it is, the worker says; an API server that is away or behind must not take anybody out."""
    found = addresses(
        endpoint_slice(
            endpoint("10.0.0.1", "ready", ready=True, serving=True, terminating=False),
            endpoint("10.0.0.2", "starting", ready=False, serving=False, terminating=False),
            endpoint("10.0.0.3", "draining", ready=False, serving=True, terminating=True),
            endpoint("10.0.0.4", "ending", ready=False, serving=False, terminating=True),
        )
    )
    assert [address.pod for address in found] == ["ready", "starting", "draining", "ending"]


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"name": "control", "port": 9001}, {"name": "http", "port": 9100}], 9100),
        ([{"name": "metrics", "port": 1}], 9000),
        ([{"name": "http", "port": None}], 9000),
        ([], 9000),
        (None, 9000),
    ],
)
def test_the_port_called_http_is_asked_else_the_agreed_one(ports: Any, port: int) -> None:
    (found,) = addresses(endpoint_slice(endpoint("10.0.0.1"), ports=ports))
    assert found == Address("p", "10.0.0.1", port) and found.url == f"http://10.0.0.1:{port}"


def test_slices_that_lead_nowhere_are_empty() -> None:
    assert addresses(endpoint_slice(endpoint("example.org"), family="FQDN")) == ()
    assert addresses({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": None}) == ()
    assert addresses(endpoint_slice({"addresses": []})) == ()


def test_a_pod_in_several_slices_is_one_worker_over_ipv4() -> None:
    six = addresses(endpoint_slice(endpoint("fd00::1"), family="IPv6"))
    four = addresses(endpoint_slice(endpoint("10.0.0.1")))
    assert fleet("m", [six, four, four], {"p": DECODE}) == Fleet(
        "m", (FleetWorker("http://10.0.0.1:9000", Role.DECODE, "r1"),)
    )
    assert fleet("m", [six], {"p": DECODE}).workers[0].url == "http://[fd00::1]:9000"


def test_an_address_whose_pod_is_not_known_waits_and_one_without_a_pod_is_taken_as_it_says() -> None:
    slices = [addresses(endpoint_slice(endpoint("10.0.0.1", "late"), endpoint("10.0.0.2", None)))]
    assert fleet("m", slices, {}) == Fleet("m", (FleetWorker("http://10.0.0.2:9000"),))
    assert [worker.revision for worker in fleet("m", slices, {"late": DECODE}).workers] == [None, "r1"]


def test_labels_say_what_a_worker_should_be() -> None:
    labels = worker_pod_labels("demo", Role.PREFILL, "abc")
    assert pod_facts({"metadata": {"name": "p", "labels": labels}}) == PodFacts(Role.PREFILL, "abc")
    assert pod_facts({"metadata": {"name": "p"}}) == PodFacts(None, None)
    assert pod_facts({"metadata": {"name": "p", "labels": {"baton.dev/role": "cook"}}}) == PodFacts(None, None)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "fleet_file: '' is missing; name the fleet file, or use discovery: kubernetes"),
        ({"fleet_file": "f", "namespace": "ns"}, "namespace: 'ns' does not go with discovery: file"),
        ({"fleet_file": "f", "model_name": "m"}, "model_name: 'm' does not go with discovery: file"),
        ({"fleet_file": "f", "served_name": "x"}, "served_name: 'x' does not go with discovery: file"),
        ({"discovery": "kubernetes"}, "model_name: '' is missing"),
        ({"discovery": "kubernetes", "model_name": "m", "fleet_file": "f"}, "fleet_file: 'f' does not go with"),
        ({"discovery": "kubernetes", "model_name": "No_Label"}, "model_name: 'No_Label' does not match"),
        ({"discovery": "dns"}, "discovery: 'dns' is not allowed; use one of file, kubernetes"),
    ],
)
def test_where_workers_are_looked_for_is_checked_together(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse(GatewaySettings, {"model_path": "m", **raw})
    assert says in caught.value.message
