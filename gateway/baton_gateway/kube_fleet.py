"""Which workers a Model has on a cluster: EndpointSlices say where, Pods' labels say what they should be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from baton_api.fleet import Fleet, FleetWorker
from baton_api.kubernetes import HTTP_PORT_NAME, REVISION_LABEL, ROLE_LABEL, WORKER_HTTP_PORT
from baton_api.worker import Role


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the Pod's labels say the worker in it is; None: they do not say."""

    role: Role | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint of a slice; `pod` "" when it belongs to none."""

    pod: str
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def order(self) -> tuple[bool, str, int]:
        """IPv4 first: a worker listens on 0.0.0.0."""
        return (":" in self.host, self.host, self.port)


def pod_facts(pod: Mapping[str, Any]) -> PodFacts:
    labels = pod["metadata"].get("labels") or {}
    role = labels.get(ROLE_LABEL)
    return PodFacts(Role(role) if role in set(Role) else None, labels.get(REVISION_LABEL))


def addresses(endpoint_slice: Mapping[str, Any]) -> tuple[Address, ...]:
    """Every endpoint, ready or not, serving or terminating: how a worker is, it says itself, also to an API server that
    is away. Only the first address of an endpoint counts (the API's own rule)."""
    if endpoint_slice.get("addressType") not in ("IPv4", "IPv6"):
        return ()
    ports = endpoint_slice.get("ports") or []
    named = [port["port"] for port in ports if port.get("name") == HTTP_PORT_NAME and port.get("port")]
    port = named[0] if named else WORKER_HTTP_PORT
    return tuple(
        Address(_pod(endpoint), endpoint["addresses"][0], port)
        for endpoint in endpoint_slice.get("endpoints") or []
        if endpoint.get("addresses")
    )


def fleet(model: str, slices: Iterable[tuple[Address, ...]], pods: Mapping[str, PodFacts]) -> Fleet:
    """One worker per Pod, whatever number of slices and address families name it. An address whose Pod is not known is
    left out: without its labels nobody can tell what it should be, and the two watches are moments apart at most."""
    chosen: dict[str, Address] = {}
    for address in sorted((one for some in slices for one in some), key=lambda one: one.order):
        chosen.setdefault(address.pod or address.url, address)
    known = ((address, _facts(address, pods)) for _, address in sorted(chosen.items()))
    return Fleet(model, tuple(FleetWorker(at.url, facts.role, facts.revision) for at, facts in known if facts))


def _facts(address: Address, pods: Mapping[str, PodFacts]) -> PodFacts | None:
    return pods.get(address.pod) if address.pod else PodFacts(None, None)


def _pod(endpoint: Mapping[str, Any]) -> str:
    target = endpoint.get("targetRef") or {}
    return str(target.get("name", "")) if target.get("kind") == "Pod" else ""
