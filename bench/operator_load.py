"""What bench.operator compares: Models, and plain Deployments of as many Pods, through the same life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from baton_api.kubernetes import MODEL_LABEL
from baton_wire.kube_api import MERGE, KubeApi

Json = dict[str, Any]
FLOOR_LABEL = "app"
GATEWAYS = 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """`count` objects; `workers` of each of the two roles, at first and after scaling."""

    count: int
    workers: int
    scaled: int

    @property
    def pods(self) -> int:
        """Of one object at first."""
        return 2 * self.workers + GATEWAYS

    @property
    def scaled_pods(self) -> int:
        return 2 * self.scaled + GATEWAYS

    @property
    def replaced(self) -> int:
        """Pods that a new revision replaces; gateways stay."""
        return 2 * self.scaled

    @property
    def objects(self) -> list[str]:
        return [f"m{number:03}" for number in range(self.count)]


class Contender(Protocol):
    """Each call is one request for one object. `pods_when_revised`: its Pods during and after a new revision."""

    name: str
    namespace: str
    label: str
    pods_when_revised: int

    async def create(self, name: str) -> object: ...
    async def scale(self, name: str) -> object: ...
    async def before_revision(self, name: str) -> object: ...
    async def revise(self, name: str) -> object: ...
    async def delete(self, name: str) -> object: ...


class Models:
    """Prefill and decode workers and a gateway under each. Default rollout: surge 1 per role, none unavailable."""

    name = "baton"
    namespace = "models"
    label = MODEL_LABEL

    def __init__(self, api: KubeApi, sizes: Sizes) -> None:
        self._api, self._sizes = api, sizes
        self.pods_when_revised = sizes.scaled_pods
        self._path = f"/apis/baton.dev/v1alpha1/namespaces/{self.namespace}/models"

    async def create(self, name: str) -> object:
        workers = {"replicas": self._sizes.workers}
        spec = {"source": "demo_model/model", "prefill": workers, "decode": workers}
        body = {"apiVersion": "baton.dev/v1alpha1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
        return await self._api.call("POST", self._path, body=body, timeout_s=60.0)

    async def scale(self, name: str) -> object:
        workers = {"replicas": self._sizes.scaled}
        return await self._patch(name, {"prefill": workers, "decode": workers})

    async def before_revision(self, name: str) -> object:
        return None

    async def revise(self, name: str) -> object:
        return await self._patch(name, {"kv": {"blockTokens": 32}})

    async def delete(self, name: str) -> object:
        return await self._api.call("DELETE", f"{self._path}/{name}", timeout_s=60.0)

    async def unsettled(self) -> list[str]:
        """What is said of Models that are not ready and at rest."""
        found = []
        for item in (await self._api.list(self._path)).items:
            said = {one["type"]: one for one in item.get("status", {}).get("conditions", ())}
            ready, moving = said.get("Ready", {}), said.get("Progressing", {})
            seen = ready.get("observedGeneration") == item["metadata"]["generation"]
            if not seen or ready.get("status") != "True" or moving.get("status") != "False":
                found.append(f"{item['metadata']['name']}: {ready.get('message')}; {moving.get('message')}")
        return found

    async def _patch(self, name: str, spec: Json) -> object:
        path = f"{self._path}/{name}"
        return await self._api.call("PATCH", path, body={"spec": spec}, content_type=MERGE, timeout_s=60.0)


class Deployments:
    """The floor: one Deployment with as many Pods. A Model's gateway is not replaced by a new revision, so before one
    the floor loses that Pod: as many are replaced, one at a time beyond its size."""

    name = "Deployments"
    namespace = "floor"
    label = FLOOR_LABEL

    def __init__(self, api: KubeApi, sizes: Sizes) -> None:
        self._api, self._sizes = api, sizes
        self.pods_when_revised = sizes.replaced
        self._path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments"

    async def create(self, name: str) -> object:
        labels = {self.label: name}
        spec = {
            "replicas": self._sizes.pods,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "sleeper", "image": "localhost/sleeper:1"}]},
            },
        }
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
        return await self._api.call("POST", self._path, body=body, timeout_s=60.0)

    async def scale(self, name: str) -> object:
        return await self._patch(name, {"replicas": self._sizes.scaled_pods})

    async def before_revision(self, name: str) -> object:
        return await self._patch(name, {"replicas": self._sizes.replaced})

    async def revise(self, name: str) -> object:
        return await self._patch(name, {"template": {"metadata": {"annotations": {"revision": "2"}}}})

    async def delete(self, name: str) -> object:
        """A bare DELETE of a Deployment of apps/v1 lets the garbage collector take its Pods."""
        return await self._api.call("DELETE", f"{self._path}/{name}", timeout_s=60.0)

    async def _patch(self, name: str, spec: Json) -> object:
        path = f"{self._path}/{name}"
        return await self._api.call("PATCH", path, body={"spec": spec}, content_type=MERGE, timeout_s=60.0)
