"""What a cluster has of Models: read once, in one namespace, as plain objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from baton_api.errors import KubernetesError, SettingError
from baton_api.kubernetes import API_VERSION, MODEL_LABEL, MODEL_PLURAL, POOL_PLURAL
from baton_wire.kube_access import KubeAccess
from baton_wire.kube_api import KubeApi

Json = dict[str, Any]
T = TypeVar("T")
NOT_FOUND, FORBIDDEN, TOO_MANY = 404, 403, 429
TRIES, MAX_WAIT_S = 5, 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One Model and what belongs to it. `events` are about any of them."""

    model: Json
    pools: tuple[Json, ...]
    pods: tuple[Json, ...]
    events: tuple[Json, ...]


@asynccontextmanager
async def opened(access: KubeAccess) -> AsyncIterator[KubeApi]:
    api = KubeApi(access)
    try:
        yield api
    finally:
        await api.close()


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Again, as often and as late as a server says that is too busy (429), or still reads a new CRD."""
    for _ in range(TRIES - 1):
        try:
            return await ask()
        except KubernetesError as error:
            if error.status != TOO_MANY:
                raise
            await asyncio.sleep(min(MAX_WAIT_S, error.retry_after_s or 1.0))
    return await ask()


async def models(api: KubeApi, namespace: str) -> tuple[Json, ...]:
    """Raises SettingError when this cluster knows no Models."""
    try:
        return (await patiently(lambda: api.list(_path(namespace, MODEL_PLURAL)))).items
    except KubernetesError as error:
        if error.status == NOT_FOUND:
            raise _no_crds(api) from error
        raise


async def look(api: KubeApi, namespace: str, name: str) -> Seen:
    """Raises SettingError when there is no such Model."""
    try:
        model = await patiently(lambda: api.call("GET", _path(namespace, MODEL_PLURAL, name)))
    except KubernetesError as error:
        if error.status != NOT_FOUND:
            raise
        known = ", ".join(sorted(one["metadata"]["name"] for one in await models(api, namespace))) or "none there"
        fix = f"use one of: {known}; or another --namespace"
        raise SettingError("model", name, f"does not exist in namespace {namespace}", fix) from error
    of_model = {"labelSelector": f"{MODEL_LABEL}={name}"}
    pools, pods, events = await asyncio.gather(
        patiently(lambda: api.list(_path(namespace, POOL_PLURAL), of_model)),
        patiently(lambda: api.list(f"/api/v1/namespaces/{namespace}/pods", of_model)),
        _events(api, namespace),
    )
    names = {name} | {str(one["metadata"]["name"]) for one in (*pools.items, *pods.items)}
    about = tuple(event for event in events if (event.get("involvedObject") or {}).get("name") in names)
    return Seen(model, pools.items, pods.items, about)


async def _events(api: KubeApi, namespace: str) -> tuple[Json, ...]:
    """Empty when this user may not read them: they are a help, not the answer."""
    try:
        return (await patiently(lambda: api.list(f"/api/v1/namespaces/{namespace}/events"))).items
    except KubernetesError as error:
        if error.status != FORBIDDEN:
            raise
        return ()


def _no_crds(api: KubeApi) -> SettingError:
    where = f"{api.access.host}:{api.access.port}"
    return SettingError("cluster", where, "does not know Models", "install Baton there (helm); `baton doctor` checks")


def _path(namespace: str, plural: str, name: str = "") -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
