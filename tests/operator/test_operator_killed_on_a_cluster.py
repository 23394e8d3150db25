"""The operator dies at every write of a creation, a new revision, another size, a role that goes, on a real API server;
the next one completes it, and no Pod more was made than without any death. A deletion has no write of the operator.

Several namespaces at a time, one operator each. The in-process API server has more phases (test_operator.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from baton_wire.kube_api import MERGE, KubeApi
from support.kube_cluster import Cluster
from support.operators import (
    MODELS,
    KillAt,
    Kubelets,
    children,
    condition,
    eventually,
    model,
    operator_settings,
    running,
)  # fmt: skip

Json = dict[str, Any]
AT_ONCE = 8
NEVER = 10**9


class Site:
    """One namespace."""

    def __init__(self, cluster: Cluster, api: KubeApi, name: str) -> None:
        self.cluster, self.api, self.name = cluster, api, name

    async def create(self) -> None:
        await self.api.call("POST", MODELS.format(self.name), body=model("m", self.name))

    async def revise(self) -> None:
        await self._change({"kv": {"blockTokens": 32}})

    async def scale(self) -> None:
        await self._change({"decode": {"replicas": 3}})

    async def aggregate(self) -> None:
        await self._change({"mode": "aggregated"})

    async def _change(self, spec: Json) -> None:
        change = {"spec": spec}
        await self.api.call("PATCH", f"{MODELS.format(self.name)}/m", body=change, content_type=MERGE)

    async def is_settled(self) -> bool:
        raw = await self.api.call("GET", f"{MODELS.format(self.name)}/m")
        ready, moving = condition(raw, "Ready"), condition(raw, "Progressing")
        current = ready.get("observedGeneration") == raw["metadata"]["generation"]
        return current and ready["status"] == "True" and moving["status"] == "False"

    async def operate(self, number: int, *, after: bool) -> int:
        """Until settled or killed; the writes begun."""
        settings = operator_settings(watch_namespaces=(self.name,))
        async with running(self.cluster.access, settings) as operator:
            kill = KillAt(operator, number, after=after)

            async def over() -> bool:
                return kill.died.is_set() or await self.is_settled()

            await eventually(over, 120.0, f"{self.name} settled or dead", poll_s=0.1)
            return kill.writes

    async def objects(self) -> dict[str, Json]:
        found = await children(self.api, self.name, "m")
        return {name: without_namespace(item, self.name) for name, item in found.items()}


def without_namespace(item: Any, namespace: str) -> Any:
    if isinstance(item, dict):
        return {
            name: without_namespace(value, namespace)
            for name, value in item.items()
            if name not in ("clusterIP", "clusterIPs", "baton.dev/settings")  # a digest that has the namespace in it
        }
    if isinstance(item, list):
        return [without_namespace(value, namespace) for value in item]
    return item.replace(namespace, "NAMESPACE") if isinstance(item, str) else item


PHASES: dict[str, tuple[bool, Callable[[Site], Coroutine[Any, Any, None]]]] = {
    "create": (False, Site.create),
    "new revision": (True, Site.revise),
    "scale": (True, Site.scale),
    "without prefill": (True, Site.aggregate),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("phase", PHASES)
async def test_killed_at_every_write_the_same_objects_come_out(cluster: Cluster, namespace: str, phase: str) -> None:
    begun, change = PHASES[phase]
    api = KubeApi(cluster.access)
    turns = asyncio.Semaphore(AT_ONCE)

    async def story(number: int, after: bool) -> tuple[int, dict[str, Json], Counter[str]]:
        async with turns:
            site = Site(cluster, api, f"{namespace}-{min(number, 999)}{'a' if after else 'b'}")
            await api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": site.name}})
            kubelets = Kubelets(api, site.name)
            running_pods = asyncio.create_task(kubelets.run(0.1))
            try:
                if begun:
                    await site.create()
                    await site.operate(NEVER, after=False)
                await change(site)
                writes = await site.operate(number, after=after)
                await site.operate(NEVER, after=False)
                return writes, await site.objects(), Counter(kubelets.seen.values())
            finally:
                running_pods.cancel()
                await asyncio.gather(running_pods, return_exceptions=True)
                await api.call("DELETE", f"/api/v1/namespaces/{site.name}")

    try:
        writes, wanted, pods = await story(NEVER, False)
        points = [(number, after) for number in range(1, writes + 1) for after in (False, True)]
        stories = [asyncio.create_task(story(number, after)) for number, after in points]
        await asyncio.wait(stories)
    finally:
        await api.close()
    print(f"{phase}: {writes} writes, {len(points)} kills, {pods.total()} Pods each time")
    for point, told in zip(points, stories, strict=True):
        _, objects, made = told.result()
        assert objects == wanted, f"killed at write {point}"
        assert made == pods, f"killed at write {point}"
