"""The operator on a real API server with its controllers: what comes of a Model, and what does not happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from baton_operator.process import Operator
from baton_wire.kube_api import MERGE, KubeApi
from support.kube_cluster import Cluster
from support.operators import (
    MODELS,
    Kubelets,
    children,
    condition,
    eventually,
    model,
    operator_settings,
    running,
)  # fmt: skip

Json = dict[str, Any]


@dataclass
class Stage:
    """One namespace with an operator and kubelets of the test's."""

    api: KubeApi
    namespace: str
    operator: Operator
    kubelets: Kubelets

    async def create(self, name: str = "m", **spec: Any) -> Json:
        return await self.api.call("POST", MODELS.format(self.namespace), body=model(name, self.namespace, **spec))

    async def get(self, name: str = "m") -> Json:
        return await self.api.call("GET", f"{MODELS.format(self.namespace)}/{name}")

    async def change(self, spec: Json, name: str = "m") -> Json:
        path = f"{MODELS.format(self.namespace)}/{name}"
        return await self.api.call("PATCH", path, body={"spec": spec}, content_type=MERGE)

    async def until_settled(self, name: str = "m") -> Json:
        """Ready, of this generation, and nothing left to do."""

        async def settled() -> Json | None:
            raw = await self.get(name)
            ready, moving = condition(raw, "Ready"), condition(raw, "Progressing")
            is_so = ready.get("status") == "True" and moving.get("status") == "False"
            return raw if is_so and ready["observedGeneration"] == raw["metadata"]["generation"] else None

        found: Json = await eventually(settled, what=f"Model {name} settled")
        return found


@asynccontextmanager
async def stage(cluster: Cluster, namespace: str, **settings: Any) -> AsyncIterator[Stage]:
    api = KubeApi(cluster.access)
    kubelets = Kubelets(api, namespace)
    task = asyncio.create_task(kubelets.run())
    try:
        given = operator_settings(watch_namespaces=(namespace,), **settings)
        async with running(cluster.access, given) as operator:
            yield Stage(api, namespace, operator, kubelets)
    finally:
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        await api.close()
    assert isinstance(done[0], asyncio.CancelledError), done


OBJECTS = [
    *("ConfigMap m-gateway", "Deployment m-gateway", "PodDisruptionBudget m-gateway", "Role m-gateway"),
    *("RoleBinding m-gateway", "Service m-gateway", "ServiceAccount m-gateway", "Service m-workers", "NetworkPolicy m"),
    *("Pool m-decode", "Pool m-prefill", "PodDisruptionBudget m-decode", "PodDisruptionBudget m-prefill"),
    *("Secret m-api-key", "Secret m-secret"),
]


async def test_the_smallest_model_comes_up_with_all_its_objects(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        raw = await at.until_settled()
        status = raw["status"]
        made = await children(at.api, namespace, "m")
        revision = status["revision"]
        workers = [
            f"{kind} m-{role}-{revision}" for kind in ("ConfigMap", "Deployment") for role in ("prefill", "decode")
        ]
        assert sorted(made) == sorted([*OBJECTS, *workers])
        assert all(item["metadata"]["ownerReferences"][0]["controller"] for item in made.values())
        assert (status["prefill"]["summary"], status["decode"]["summary"], status["gateway"]) == ("1/1", "1/1", "1/1")
        assert status["endpoint"] == f"http://m-gateway.{namespace}.svc"
        assert status["observedGeneration"] == raw["metadata"]["generation"]
        assert not condition(raw, "Reconciling") and not condition(raw, "Stalled")
        lines = cluster.kubectl("get", "models,pools", "-n", namespace, "-o", "wide")
        assert "Serving" in lines and "AsWanted" in lines
        cluster.kubectl("wait", "--for=condition=Ready", "model/m", "-n", namespace, "--timeout=5s")
        assert "Serving" in cluster.kubectl("get", "events", "-n", namespace)


async def test_deleting_the_model_takes_everything_away(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        cluster.kubectl("delete", "model", "m", "-n", namespace)

        async def nothing() -> bool:
            return not await children(at.api, namespace, "m")

        await eventually(nothing, what="no object left")


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_kubectl_scale_of_a_pool_is_followed_and_kept(cluster: Cluster, namespace: str, role: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        cluster.kubectl("scale", "pool", f"m-{role}", "-n", namespace, "--replicas=3")

        async def three() -> bool:
            return bool((await at.until_settled())["status"][role].get("summary") == "3/3")

        await eventually(three)
        await at.change({"routing": {"indexKeys": 1000}})
        assert (await at.until_settled())["status"][role]["summary"] == "3/3"
        await at.change({role: {"replicas": 2}})

        async def two() -> bool:
            return bool((await at.until_settled())["status"][role].get("summary") == "2/2")

        await eventually(two)


async def test_a_pool_is_held_within_its_limits(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create(decode={"replicas": 1, "maxReplicas": 2})
        await at.until_settled()
        cluster.kubectl("scale", "pool", "m-decode", "-n", namespace, "--replicas=5")

        async def clamped() -> bool:
            raw = await at.api.call("GET", f"/apis/baton.dev/v1alpha1/namespaces/{namespace}/pools/m-decode")
            ready = condition(raw, "Ready")
            return ready.get("reason") == "ScaleClamped" and raw["status"].get("readyReplicas") == 2

        await eventually(clamped)
