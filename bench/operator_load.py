"""What bench.operator_scale compares: Models, and plain Deployments of as many Pods, through the same life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from baton_api.crd import parse_model
from baton_api.kubernetes import MODEL_LABEL
from baton_operator.desired import desired
from baton_operator.objects import Owner
from baton_operator.settings import OperatorSettings
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


@dataclass(frozen=True, slots=True)
class Part:
    """One Deployment of an object: its Pods' spec, replicas at first, scaled, and during a new revision, which replaces
    them or not."""

    pod: Json
    replicas: int
    scaled: int
    revised: int
    is_replaced: bool


class Contender(Protocol):
    """Each call is about one object. `pods_when_revised`: its Pods during and after a new revision."""

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
    """Plain Deployments: `parts` of one object, with a Pod template and replicas now and scaled for each."""

    label = FLOOR_LABEL

    def __init__(self, api: KubeApi, name: str, namespace: str, parts: Mapping[str, Part]) -> None:
        self._api, self._parts = api, parts
        self.name, self.namespace = name, namespace
        self.pods_when_revised = sum(part.revised for part in parts.values())
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments"

    async def create(self, name: str) -> object:
        return await asyncio.gather(*(self._create(name, part) for part in self._parts))

    async def _create(self, name: str, part: str) -> object:
        labels = {FLOOR_LABEL: name, "part": part}
        spec = {
            "replicas": self._parts[part].replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": _spread_over(self._parts[part].pod, labels)},
        }
        metadata = {"name": f"{name}-{part}", "labels": labels}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        return await self._api.call("POST", self._path, body=body, timeout_s=60.0)

    async def scale(self, name: str) -> object:
        return await self._each(name, lambda part: {"replicas": part.scaled} if part.scaled != part.replicas else None)

    async def before_revision(self, name: str) -> object:
        return await self._each(name, lambda part: {"replicas": part.revised} if part.revised != part.scaled else None)

    async def revise(self, name: str) -> object:
        change = {"template": {"metadata": {"annotations": {"revision": "2"}}}}
        return await self._each(name, lambda part: change if part.is_replaced else None)

    async def delete(self, name: str) -> object:
        """The garbage collector takes their Pods."""
        paths = [f"{self._path}/{name}-{part}" for part in self._parts]
        return await asyncio.gather(*(self._api.call("DELETE", path, timeout_s=60.0) for path in paths))

    async def _each(self, name: str, change: Callable[[Part], Json | None]) -> object:
        changes = {part: spec for part, of in self._parts.items() if (spec := change(of)) is not None}
        return await asyncio.gather(
            *(
                self._api.call(
                    "PATCH", f"{self._path}/{name}-{part}", body={"spec": spec}, content_type=MERGE, timeout_s=60.0
                )
                for part, spec in changes.items()
            )
        )


def same_pods(api: KubeApi, sizes: Sizes) -> Deployments:
    """What a Model's Pods alone take: the three Deployments that it has, with the very Pods, and nothing else."""
    raw = {
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "m", "namespace": "floor", "uid": "0"},
        "spec": {"source": "demo_model/model"},
    }
    settings = OperatorSettings(prefill_image="p:1", decode_image="d:1", gateway_image="g:1")
    wanted = desired(parse_model(raw), Owner("m", "floor", "0"), settings, frozenset())
    gateway = next(item for item in wanted.objects if item["kind"] == "Deployment")["spec"]["template"]["spec"]
    workers = {
        role.value: Part(item["spec"]["template"]["spec"], sizes.workers, sizes.scaled, sizes.scaled, True)
        for role, item in wanted.workers.items()
    }
    parts = workers | {
        "gateway": Part({**gateway, "serviceAccountName": "default"}, GATEWAYS, GATEWAYS, GATEWAYS, False)
    }
    return Deployments(api, "same Pods by Deployments", "same", parts)


def bare_pods(api: KubeApi, sizes: Sizes) -> Deployments:
    """One Deployment of as many Pods of one bare container. Before a new revision it loses the Pod that stands for the
    gateway, which a Model does not replace: as many are replaced, one at a time beyond its size."""
    pod = {"containers": [{"name": "sleeper", "image": "localhost/sleeper:1"}]}
    parts = {"all": Part(pod, sizes.pods, sizes.scaled_pods, sizes.replaced, True)}
    return Deployments(api, "bare Pods of a Deployment", "bare", parts)


def _spread_over(pod: Json, labels: Mapping[str, str]) -> Json:
    """With the constraints' selectors those of this Deployment."""
    spread = [{**one, "labelSelector": {"matchLabels": labels}} for one in pod.get("topologySpreadConstraints", ())]
    return {**pod, "topologySpreadConstraints": spread}
