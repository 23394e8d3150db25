"""The fleet from a cluster: the EndpointSlices of NAME-workers and the Pods behind them, watched (design note 0014)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from baton_api.fleet import Fleet
from baton_api.kubernetes import selector_text, workers_selector, workers_service_name
from baton_wire.kube_access import KubeAccess
from baton_wire.kube_api import KubeApi
from baton_wire.kube_watch import Mirror, Reflector, Wanted, WatchTimes

from .kube_fleet import addresses, fleet, pod_facts
from .source import Take

log = logging.getLogger("baton.gateway.source")
T = TypeVar("T")
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """`name` is the resource's, `served_name` what clients say; `namespace` "" is the service account's own."""

    name: str
    served_name: str
    namespace: str = ""


class KubernetesSource:
    """Of one Model, asked as `access`."""

    def __init__(
        self, access: KubeAccess, model: ModelPlace, *, times: WatchTimes | None = None,
        on_error: Callable[[str], None] = lambda reason: None, draw: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._access = access
        self._model = model
        self._times = times or WatchTimes()
        self._on_error = on_error
        self._draw = draw

    async def run(self, take: Take) -> None:
        take(Fleet(self._model.served_name, ()))
        said: list[Fleet] = []

        def changed() -> None:
            if slices.listed and pods.listed:
                now = fleet(self._model.served_name, slices.items.values(), pods.items)
                if [now] != said:
                    said[:] = [now]
                    take(now)

        slices, pods = Mirror(addresses, changed), Mirror(pod_facts, changed)
        api = KubeApi(self._access)
        try:
            async with asyncio.TaskGroup() as group:
                for_slices, for_pods = self._wanted()
                group.create_task(self._reflect(api, for_slices, slices))
                group.create_task(self._reflect(api, for_pods, pods))
        finally:
            await api.close()

    async def _reflect(self, api: KubeApi, wanted: Wanted, mirror: Mirror[T]) -> None:
        await Reflector(api, wanted, mirror, self._times, self._draw, self._on_error).run()

    def _wanted(self) -> tuple[Wanted, Wanted]:
        name, namespace = self._model.name, self._model.namespace or self._access.namespace
        of_service = {SERVICE_NAME_LABEL: workers_service_name(name)}
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        pods = f"/api/v1/namespaces/{namespace}/pods"
        return (
            Wanted("EndpointSlices", slices, {"labelSelector": selector_text(of_service)}),
            Wanted("Pods", pods, {"labelSelector": selector_text(workers_selector(name))}, metadata_only=True),
        )
