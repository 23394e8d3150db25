"""`baton doctor`: looks at this host and at a cluster; what that means is for `preflight`."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from baton_api.errors import KubernetesError
from baton_api.kubernetes import APP_NAME, COMPONENT_LABEL, GROUP, NAME_LABEL, selector_text
from baton_kv.transports.ucx_query import found_here
from baton_wire.kube_access import KubeAccess
from baton_wire.kube_api import KubeApi

from .cluster import opened
from .preflight import NEEDS, ClusterFacts, Found, HostFacts, Need

RDMA_DEVICES = Path("/sys/class/infiniband")
SHARED_MEMORY = "/dev/shm"
SIDE_BY_SIDE = 8
OPERATORS = {"labelSelector": selector_text({NAME_LABEL: APP_NAME, COMPONENT_LABEL: "operator"})}


def examine_host() -> HostFacts:
    ucx: tuple[str, ...] | str
    try:
        ucx = found_here()
    except (ImportError, OSError, RuntimeError) as error:
        ucx = f"not usable: {error}"
    devices = sorted(path.name for path in RDMA_DEVICES.iterdir()) if RDMA_DEVICES.is_dir() else []
    return HostFacts(platform.python_version(), version("baton-serve"), ucx, tuple(devices), _shared_memory_bytes())


def _shared_memory_bytes() -> int:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


async def examine_cluster(access: KubeAccess) -> ClusterFacts:
    """Raises KubernetesError when nobody answers; what this user may not see is a fact like another."""
    async with opened(access) as api:
        said = await api.call("GET", "/version")
        namespace = access.namespace
        groups = await api.call("GET", "/apis")
        namespaces, crds, operators, nodes, classes, allowed = await asyncio.gather(
            _one(api, f"/api/v1/namespaces/{namespace}"),
            _crds(api),
            _all(api, "/apis/apps/v1/deployments", OPERATORS),
            _all(api, "/api/v1/nodes"),
            _all(api, "/apis/storage.k8s.io/v1/storageclasses"),
            _allowed(api, namespace),
        )
    return ClusterFacts(
        server=f"{access.host}:{access.port}",
        version=str(said.get("gitVersion", "")),
        namespace=namespace,
        groups=frozenset(str(group["name"]) for group in groups.get("groups") or []),
        namespaces=namespaces,
        crds=crds,
        operators=operators,
        nodes=nodes,
        storage_classes=classes,
        allowed=allowed,
    )


async def _crds(api: KubeApi) -> Found:
    found = await _all(api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
    if isinstance(found, KubernetesError):
        return found
    return tuple(crd for crd in found if crd["spec"]["group"] == GROUP)


async def _all(api: KubeApi, path: str, query: Mapping[str, str] | None = None) -> Found:
    try:
        return (await api.list(path, query)).items
    except KubernetesError as error:
        return error


async def _one(api: KubeApi, path: str) -> Found:
    try:
        return (await api.call("GET", path),)
    except KubernetesError as error:
        return error


async def _allowed(api: KubeApi, namespace: str) -> dict[Need, bool]:
    gate = asyncio.Semaphore(SIDE_BY_SIDE)

    async def ask(need: Need) -> bool:
        attributes = {
            "namespace": namespace, "verb": need.verb, "group": need.group, "resource": need.resource,
            "subresource": need.subresource,
        }  # fmt: skip
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        async with gate:
            said = await api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool((said.get("status") or {}).get("allowed"))

    return dict(zip(NEEDS, await asyncio.gather(*(ask(need) for need in NEEDS)), strict=True))
