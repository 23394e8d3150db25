"""What `baton doctor` makes of what it found: one line per thing, ok, warn or fail, with what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from baton_api.crd_manifests import manifests
from baton_api.errors import KubernetesError
from baton_api.kubernetes import GROUP, MODEL_PLURAL, POOL_PLURAL

Json = dict[str, Any]
Found = tuple[Json, ...] | KubernetesError
"""Objects, or why they cannot be had."""
Level = Literal["ok", "warn", "fail"]

OLDEST_MINOR = 30
"""CEL rules in CRDs are stable since 1.29; ValidatingAdmissionPolicy and what `restricted` needs since 1.30."""
IMAGE_VOLUME_BETA, IMAGE_VOLUME_ON = 33, 35
MIN_SHM_BYTES = 1 << 30
INSTALL = "helm install baton charts/baton, see docs/kubernetes.md (CRDs: kubectl apply --server-side -f deploy/crds)"
FORBIDDEN, NOT_FOUND = 403, 404


@dataclass(frozen=True, slots=True)
class Need:
    """Something this user should be allowed in the namespace; `needed` False: a help only."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    needed: bool = True

    @property
    def text(self) -> str:
        name = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {name}" + (f".{self.group}" if self.group else "")


NEEDS = (
    *(Need(verb, GROUP, MODEL_PLURAL) for verb in ("get", "list", "create", "patch", "delete")),
    *(Need(verb, GROUP, POOL_PLURAL) for verb in ("get", "list")),
    Need("patch", GROUP, POOL_PLURAL, "scale"),
    Need("list", "", "pods"),
    Need("list", "", "events", needed=False),
    Need("get", "", "pods", "log", needed=False),
    Need("create", "", "pods", "portforward", needed=False),
    Need("get", "", "secrets", needed=False),
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """This process's host. `ucx`: transport/device pairs, or why there are none."""

    python: str
    baton: str
    ucx: tuple[str, ...] | str
    rdma_devices: tuple[str, ...]
    shm_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the API server said; `allowed` by need, `groups` are the API groups it serves."""

    server: str
    version: str
    namespace: str
    groups: frozenset[str]
    namespaces: Found
    crds: Found
    operators: Found
    nodes: Found
    storage_classes: Found
    allowed: Mapping[Need, bool]


@dataclass(frozen=True, slots=True)
class Line:
    level: Level
    what: str
    found: str
    fix: str = ""


def host_lines(facts: HostFacts) -> Iterator[Line]:
    yield Line("ok", "baton", f"{facts.baton} on Python {facts.python}")
    if isinstance(facts.ucx, str):
        yield Line("warn", "UCX here", facts.ucx, "pip install 'baton-serve[ucx]', or use kv.transport tcp")
    else:
        yield Line("ok", "UCX here", ", ".join(facts.ucx))
    if facts.rdma_devices:
        yield Line("ok", "RDMA here", ", ".join(facts.rdma_devices))
    else:
        yield Line("warn", "RDMA here", "no RDMA device on this host", "KV moves over TCP or shared memory")
    level: Level = "ok" if facts.shm_bytes >= MIN_SHM_BYTES else "warn"
    fix = "" if level == "ok" else "ucx/shm needs more: mount an emptyDir of medium Memory at /dev/shm"
    yield Line(level, "/dev/shm here", f"{facts.shm_bytes / 2**20:.0f} MiB", fix)


def cluster_lines(facts: ClusterFacts) -> Iterator[Line]:
    yield from _server(facts)
    yield _namespace(facts)
    yield from _crds(facts)
    yield _operator(facts)
    yield from _rights(facts)
    yield from _nodes(facts)
    yield _storage(facts)
    yield from _optional(facts)


def minor_of(version: str) -> int:
    """36 of "v1.36.3"; 0 when it cannot be read."""
    match = re.match(r"v1\.(\d+)", version)
    return int(match.group(1)) if match else 0


def _server(facts: ClusterFacts) -> Iterator[Line]:
    minor = minor_of(facts.version)
    if minor >= OLDEST_MINOR:
        yield Line("ok", "server", f"{facts.version} at {facts.server}")
    else:
        yield Line("fail", "server", f"{facts.version} at {facts.server}", f"use Kubernetes 1.{OLDEST_MINOR} or newer")
    if minor >= IMAGE_VOLUME_ON:
        yield Line("ok", "image volumes", "on by default: source oci://IMAGE works")
    elif minor >= IMAGE_VOLUME_BETA:
        fix = f"turn the feature gate ImageVolume on, or use 1.{IMAGE_VOLUME_ON} or newer"
        yield Line("warn", "image volumes", "beta, off by default: source oci:// may not work", fix)
    else:
        yield Line("warn", "image volumes", "not there: source oci:// does not work", "use pvc:// or hf://")


def _namespace(facts: ClusterFacts) -> Line:
    if isinstance(facts.namespaces, KubernetesError):
        if facts.namespaces.status == NOT_FOUND:
            fix = f"kubectl create namespace {facts.namespace}, or give --namespace"
            return Line("fail", "namespace", f"{facts.namespace} does not exist", fix)
        return _unseen("namespace", facts.namespaces)
    labels = facts.namespaces[0]["metadata"].get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce")
    return Line("ok", "namespace", facts.namespace + (f", Pod Security {level} enforced" if level else ""))


def _crds(facts: ClusterFacts) -> Iterator[Line]:
    if isinstance(facts.crds, KubernetesError):
        if GROUP in facts.groups:
            yield Line("warn", "CRDs", f"{GROUP} is served; whether it is current cannot be seen", facts.crds.message)
        else:
            yield Line("fail", "CRDs", f"{GROUP} is not served", INSTALL)
        return
    there = {crd["metadata"]["name"]: crd for crd in facts.crds}
    for wanted in manifests().values():
        name = wanted["metadata"]["name"]
        if name not in there:
            yield Line("fail", "CRDs", f"{name} is not installed", INSTALL)
        elif differs := difference(wanted["spec"]["versions"], there[name]["spec"]["versions"]):
            fix = "kubectl apply --server-side --force-conflicts -f deploy/crds of this release"
            yield Line("fail", "CRDs", f"{name} is of another release: {differs}", fix)
        else:
            yield Line("ok", "CRDs", f"{name} is installed and of this release")


def difference(wanted: Any, there: Any, path: str = "") -> str:
    """The first place where `there` lacks something of `wanted`, "" for none. What the server adds is no difference."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        pairs = [(f"{path}.{key}", value, there.get(key)) for key, value in wanted.items()]
    elif isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = [
            (f"{path}[{number}]", one, other) for number, (one, other) in enumerate(zip(wanted, there, strict=True))
        ]
    else:
        return "" if wanted == there or not (wanted or there) else path.lstrip(".")
    return next((found for where, one, other in pairs if (found := difference(one, other, where))), "")


def _operator(facts: ClusterFacts) -> Line:
    if isinstance(facts.operators, KubernetesError):
        return _unseen("operator", facts.operators)
    if not facts.operators:
        return Line("fail", "operator", "no Deployment of it in any namespace", INSTALL)
    for one in facts.operators:
        where = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        if not (one.get("status") or {}).get("availableReplicas"):
            logs = f"kubectl -n {one['metadata']['namespace']} logs deploy/{one['metadata']['name']}"
            return Line("fail", "operator", f"{where} is not available", logs)
    names = ", ".join(f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in facts.operators)
    if len(facts.operators) > 1:
        return Line("warn", "operator", f"several: {names}", "let each watch namespaces of its own, or remove one")
    return Line("ok", "operator", f"{names} is available")


def _rights(facts: ClusterFacts) -> Iterator[Line]:
    missing = [need for need in NEEDS if not facts.allowed.get(need, False)]
    granted = len(NEEDS) - len(missing)
    if granted:
        yield Line("ok", "your rights", f"{granted} of {len(NEEDS)} in namespace {facts.namespace}")
    for need in missing:
        level: Level = "fail" if need.needed else "warn"
        fix = f"ask for a Role in {facts.namespace} that grants it"
        yield Line(level, "your rights", f"you may not {need.text}", fix)


def _nodes(facts: ClusterFacts) -> Iterator[Line]:
    if isinstance(facts.nodes, KubernetesError):
        yield _unseen("nodes", facts.nodes)
        return
    ready = [node for node in facts.nodes if _is_ready(node)]
    level: Level = "ok" if ready else "fail"
    fix = "" if ready else "kubectl describe nodes"
    yield Line(level, "nodes", f"{len(ready)} of {len(facts.nodes)} ready and schedulable", fix)
    addresses = [address for node in facts.nodes for address in _internal_addresses(node)]
    if addresses and all(":" in address for address in addresses):
        yield Line("fail", "addresses", "nodes have IPv6 addresses only", "use a cluster with IPv4, or with both")
    gpus = _allocatable(ready, lambda name: name.rpartition("/")[2] == "gpu" or name.endswith("/gpu.shared"))
    yield _resources("GPUs", gpus, "workers run on CPUs; install your vendor's device plugin")
    rdma = _allocatable(ready, lambda name: name.startswith("rdma/") or "/rdma" in name or "/hca" in name)
    yield _resources("RDMA", rdma, "KV moves over TCP; install the RDMA shared device plugin or the network operator")


def _is_ready(node: Json) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")


def _internal_addresses(node: Json) -> list[str]:
    addresses = (node.get("status") or {}).get("addresses") or []
    return [str(one["address"]) for one in addresses if one.get("type") == "InternalIP"]


def _allocatable(nodes: list[Json], is_it: Any) -> dict[str, int]:
    """Summed by resource."""
    found: dict[str, int] = {}
    for node in nodes:
        for name, quantity in ((node.get("status") or {}).get("allocatable") or {}).items():
            if is_it(name) and str(quantity).isdigit():
                found[name] = found.get(name, 0) + int(quantity)
    return {name: count for name, count in found.items() if count}


def _resources(what: str, found: dict[str, int], otherwise: str) -> Line:
    if not found:
        return Line("warn", what, "none allocatable", otherwise)
    return Line("ok", what, ", ".join(f"{count} {name}" for name, count in sorted(found.items())))


def _storage(facts: ClusterFacts) -> Line:
    if isinstance(facts.storage_classes, KubernetesError):
        return _unseen("storage", facts.storage_classes)
    names = [_class_name(one) for one in facts.storage_classes]
    if not names:
        return Line("warn", "storage", "no StorageClass", "source pvc:// needs a volume made by hand")
    return Line("ok", "storage", ", ".join(sorted(names)))


def _class_name(one: Json) -> str:
    annotations = one["metadata"].get("annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return str(one["metadata"]["name"]) + (" (default)" if default else "")


OPTIONAL = (
    ("monitoring.coreos.com", "Prometheus operator", "no PodMonitor is made; scrape by annotation or by hand"),
    ("inference.networking.k8s.io", "InferencePool", "no InferencePool is made; the gateway Service is the endpoint"),
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet", "a worker must fit one node"),
)


def _optional(facts: ClusterFacts) -> Iterator[Line]:
    for group, what, without in OPTIONAL:
        yield Line("ok", what, f"{group} is served" if group in facts.groups else f"not there: {without}")


def _unseen(what: str, error: KubernetesError) -> Line:
    if error.status == FORBIDDEN:
        return Line("warn", what, "you may not look", "ask a cluster administrator to run `baton doctor`")
    return Line("warn", what, error.message, "run it again")
