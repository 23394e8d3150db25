"""What `baton doctor` makes of what it finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from baton_api.crd_manifests import manifests
from baton_api.errors import KubernetesError
from baton_cli.preflight import NEEDS, ClusterFacts, HostFacts, Line, cluster_lines, difference, host_lines, minor_of

Json = dict[str, Any]
FORBIDDEN = KubernetesError("HTTP 403: no", status=403, code="Forbidden")
MISSING = KubernetesError("HTTP 404: no", status=404, code="NotFound")


def node(name: str = "n", *, ready: bool = True, cordoned: bool = False, **allocatable: str) -> Json:
    status = {"conditions": [{"type": "Ready", "status": str(ready)}], "allocatable": {"cpu": "8", **allocatable}}
    return {"metadata": {"name": name}, "spec": {"unschedulable": True} if cordoned else {}, "status": status}


def storage(name: str, default: str = "false") -> Json:
    return {"metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}}


def deployment(name: str = "baton", available: int = 1) -> Json:
    return {"metadata": {"namespace": "system", "name": name}, "status": {"availableReplicas": available}}


WELL = ClusterFacts(
    server="1.2.3.4:443",
    version="v1.36.3",
    namespace="ns",
    groups=frozenset({"baton.dev", "monitoring.coreos.com"}),
    namespaces=({"metadata": {"name": "ns", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},),
    crds=tuple(manifests().values()),
    operators=(deployment(),),
    nodes=(node(**{"nvidia.com/gpu": "8", "rdma/hca_shared_devices": "4"}), node("m", **{"nvidia.com/gpu": "8"})),
    storage_classes=(storage("fast"), storage("plain", "true")),
    allowed=dict.fromkeys(NEEDS, True),
)
OLD_CRD = copy.deepcopy(manifests()["models.yaml"])
del OLD_CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["routing"]


def said(facts: ClusterFacts, what: str) -> list[Line]:
    return [line for line in cluster_lines(facts) if line.what == what]


def test_a_cluster_that_is_well_has_only_ok_lines() -> None:
    lines = list(cluster_lines(WELL))
    assert {line.level for line in lines} == {"ok"} and all(not line.fix for line in lines)
    assert said(WELL, "GPUs")[0].found == "16 nvidia.com/gpu"
    assert said(WELL, "RDMA")[0].found == "4 rdma/hca_shared_devices"
    assert said(WELL, "storage")[0].found == "fast, plain (default)"
    assert said(WELL, "namespace")[0].found == "ns, Pod Security restricted enforced"
    assert said(WELL, "Prometheus operator")[0].found == "monitoring.coreos.com is served"


@pytest.mark.parametrize(
    ("addresses", "supported"),
    [((), True), (("10.0.0.1",), True), (("10.0.0.1", "fd00::1"), True), (("fd00::1",), False)],
)
def test_a_cluster_without_ipv4_is_a_failed_line(addresses: tuple[str, ...], supported: bool) -> None:
    one = node()
    one["status"]["addresses"] = [{"type": "Hostname", "address": "n"}]
    one["status"]["addresses"] += [{"type": "InternalIP", "address": address} for address in addresses]
    assert [line.level for line in said(replace(WELL, nodes=(one,)), "addresses")] == ([] if supported else ["fail"])


@pytest.mark.parametrize(
    ("changes", "what", "level", "found", "fix"),
    [
        ({"version": "v1.27.4"}, "server", "fail", "v1.27.4", "use Kubernetes 1.30 or newer"),
        ({"version": "weird"}, "server", "fail", "weird", "1.30"),
        ({"version": "v1.34.0"}, "image volumes", "warn", "off by default", "feature gate ImageVolume"),
        ({"version": "v1.32.0"}, "image volumes", "warn", "not there", "pvc://"),
        ({"namespaces": MISSING}, "namespace", "fail", "ns does not exist", "kubectl create namespace ns"),
        ({"namespaces": FORBIDDEN}, "namespace", "warn", "you may not look", "administrator"),
        ({"crds": ()}, "CRDs", "fail", "models.baton.dev is not installed", "helm install"),
        ({"crds": (OLD_CRD,)}, "CRDs", "fail", "of another release: [0].schema", "kubectl apply --server-side"),
        ({"crds": FORBIDDEN}, "CRDs", "warn", "baton.dev is served", "403"),
        ({"crds": FORBIDDEN, "groups": frozenset()}, "CRDs", "fail", "baton.dev is not served", "helm install"),
        ({"operators": ()}, "operator", "fail", "no Deployment", "helm install"),
        ({"operators": (deployment(available=0),)}, "operator", "fail", "not available", "logs deploy/baton"),
        ({"operators": (deployment(), deployment("b"))}, "operator", "warn", "several: system/baton, ", "namespaces"),
        ({"operators": FORBIDDEN}, "operator", "warn", "you may not look", "administrator"),
        ({"nodes": ()}, "nodes", "fail", "0 of 0", "describe"),
        ({"nodes": (node(ready=False), node("m", cordoned=True))}, "nodes", "fail", "0 of 2", "describe"),
        ({"nodes": (node(),)}, "GPUs", "warn", "none allocatable", "device plugin"),
        ({"nodes": (node(**{"nvidia.com/gpu": "0"}),)}, "GPUs", "warn", "none allocatable", "device plugin"),
        ({"nodes": (node(),)}, "RDMA", "warn", "none allocatable", "TCP"),
        ({"nodes": FORBIDDEN}, "nodes", "warn", "you may not look", "administrator"),
        ({"storage_classes": ()}, "storage", "warn", "no StorageClass", "by hand"),
        ({"storage_classes": KubernetesError("cut")}, "storage", "warn", "cut", "again"),
        ({"groups": frozenset()}, "LeaderWorkerSet", "ok", "not there: a worker must fit one node", ""),
    ],
)  # fmt: skip
def test_what_is_amiss_is_named_with_what_to_do(
    changes: dict[str, Any], what: str, level: str, found: str, fix: str
) -> None:
    line = said(replace(WELL, **changes), what)[0]
    assert (line.level, found in line.found, fix in line.fix) == (level, True, True), line


def test_rights_are_counted_and_each_missing_one_is_named() -> None:
    lacking = {need: need.verb != "delete" and need.resource != "events" for need in NEEDS}
    lines = said(replace(WELL, allowed=lacking), "your rights")
    assert [(line.level, line.found) for line in lines] == [
        ("ok", f"{len(NEEDS) - 2} of {len(NEEDS)} in namespace ns"),
        ("fail", "you may not delete models.baton.dev"),
        ("warn", "you may not list events"),
    ]
    none = said(replace(WELL, allowed={}), "your rights")
    assert len(none) == len(NEEDS) and {line.level for line in none} == {"fail", "warn"}
    assert "you may not patch pools/scale.baton.dev" in [line.found for line in none]


def test_what_the_server_adds_to_a_schema_is_no_difference() -> None:
    wanted = {"a": [{"b": 1, "empty": []}], "c": "x"}
    assert difference(wanted, {"a": [{"b": 1, "more": 2}], "c": "x", "d": 1}) == ""
    assert difference(wanted, {"a": [{"b": 2}], "c": "x"}) == "a[0].b"
    assert difference(wanted, {"a": [], "c": "x"}) == "a" and difference(wanted, {"a": [{"b": 1}]}) == "c"


def test_this_host() -> None:
    well = HostFacts("3.13.1", "0.1.0", ("tcp/eth0", "rc_mlx5/mlx5_0:1"), ("mlx5_0",), 1 << 31)
    assert [line.level for line in host_lines(well)] == ["ok"] * 4
    poor = HostFacts("3.13.1", "0.1.0", "not usable: no ucxx", (), 64 << 20)
    lines = {line.what: line for line in host_lines(poor)}
    assert [line.level for line in lines.values()] == ["ok", "warn", "warn", "warn"]
    assert lines["/dev/shm here"].found == "64 MiB" and "baton-serve[ucx]" in lines["UCX here"].fix


def test_the_minor_version() -> None:
    assert [minor_of(text) for text in ("v1.36.3", "v1.30.0-eks-1", "v2.0", "")] == [36, 30, 0, 0]
