"""Every read: which objects are watched, and one snapshot of all that belongs to a Model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from baton_api.errors import KubernetesError
from baton_api.kubernetes import FIELD_MANAGER, MANAGED_BY_LABEL, selector_text
from baton_wire.kube_api import KubeApi
from baton_wire.kube_watch import Reflector, Wanted, WatchTimes

from . import kinds
from .caches import Cache, deployment, settings_of, whole
from .kinds import Kind
from .settings import OperatorSettings
from .snapshot import Key, Snapshot, pod_state

KEEP: dict[Kind, Callable[[dict[str, Any]], Any]] = {
    kinds.MODEL: whole,
    kinds.POOL: whole,
    kinds.DEPLOYMENT: deployment,
    kinds.POD: pod_state,
}
"""What of an object is remembered; of other kinds all but the status."""
OURS = {"labelSelector": selector_text({MANAGED_BY_LABEL: FIELD_MANAGER})}


class Observer:
    """`run` until cancelled. `changed(key)` for every change; `failed(what, reason)` for every failed read."""

    def __init__(
        self,
        api: KubeApi,
        settings: OperatorSettings,
        changed: Callable[[Key], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._api = api
        self._settings = settings
        self._changed = changed
        self._failed = failed
        self._namespaces = settings.watch_namespaces or ("",)
        self._caches: dict[str, list[Cache[Any]]] = {}
        for kind in (kinds.MODEL, *kinds.CHILDREN, kinds.POD):
            self._add(kind)

    @property
    def ready(self) -> bool:
        """Whether some namespace can be worked on: one that is gone, or gives no rights, stops no other."""
        return any(self.is_listed(namespace) for namespace in self._namespaces)

    def is_listed(self, namespace: str) -> bool:
        """Whether everything in it was listed once: before that nobody can tell what is missing."""
        return all(self._cache(kind, namespace).listed for kind in (kinds.MODEL, *kinds.CHILDREN, kinds.POD))

    def models(self) -> Iterable[Key]:
        return [key for cache in self._caches[kinds.MODEL.kind] for key in cache.keys()]  # noqa: SIM118

    def snapshot(self, key: Key) -> Snapshot | None:
        """None: there is no such Model."""
        namespace, name = key
        model = self._cache(kinds.MODEL, namespace).of(key).get(name)
        if model is None:
            return None
        optional = frozenset(kind.kind for kind in kinds.OPTIONAL if self._is_known(kind))
        children = {
            (kind.kind, child): item
            for kind in (*kinds.CHILDREN, *kinds.OPTIONAL)
            if kind.kind in self._caches
            for child, item in self._cache(kind, namespace).of(key).items()
        }
        pods = tuple(self._cache(kinds.POD, namespace).of(key).values())
        return Snapshot(model, children, pods, optional)

    def pools(self, key: Key) -> Iterable[dict[str, Any]]:
        """Whether or not there is such a Model."""
        return tuple(self._cache(kinds.POOL, key[0]).of(key).values())

    def put(self, kind: Kind, raw: dict[str, Any]) -> None:
        """The answer to a write: read it back before the watch says it. It is no reason for another look."""
        self._cache(kind, str(raw["metadata"]["namespace"])).put(raw, tell=False)

    def version(self, kind: Kind, namespace: str, name: str) -> str:
        return self._cache(kind, namespace).version(namespace, name)

    def forget(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        self._cache(kind, namespace).forget(namespace, name, uid)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind, caches in tuple(self._caches.items()):
                for cache in caches:
                    group.create_task(self._reflect(kinds.BY_KIND[kind], cache))
            group.create_task(self._look_for_optional(group))

    def _add(self, kind: Kind) -> None:
        keep = KEEP.get(kind, settings_of)
        self._caches[kind.kind] = [Cache(kind, space, keep, self._changed) for space in self._namespaces]

    def _cache(self, kind: Kind, namespace: str) -> Cache[Any]:
        return next(cache for cache in self._caches[kind.kind] if cache.namespace in ("", namespace))

    def _is_known(self, kind: Kind) -> bool:
        return kind.kind in self._caches and all(cache.listed for cache in self._caches[kind.kind])

    async def _reflect(self, kind: Kind, cache: Cache[Any]) -> None:
        settings = self._settings
        query = {} if kind is kinds.MODEL else OURS
        what = f"{kind.plural} of {cache.namespace}" if cache.namespace else kind.plural
        wanted = Wanted(what, kind.path(cache.namespace), query, kind.metadata_only)
        times = WatchTimes(settings.request_timeout_s, settings.watch_timeout_s, settings.watch_silence_s)
        said = lambda reason: self._failed(kind.plural, reason)  # noqa: E731
        await Reflector(self._api, wanted, cache, times, random.random, said).run()

    async def _look_for_optional(self, group: asyncio.TaskGroup) -> None:
        """Kinds of other projects' CRDs are watched from when they are there."""
        running: dict[str, list[asyncio.Task[None]]] = {}
        while True:
            for kind in kinds.OPTIONAL:
                there = await self._is_served(kind)
                if there and kind.kind not in running:
                    self._add(kind)
                    caches = self._caches[kind.kind]
                    running[kind.kind] = [group.create_task(self._reflect(kind, cache)) for cache in caches]
                    running[kind.kind].append(group.create_task(self._tell_when_known(kind)))
                elif there is False and kind.kind in running:
                    for task in running.pop(kind.kind):
                        task.cancel()
                    del self._caches[kind.kind]
            await asyncio.sleep(self._settings.resync_s)

    async def _tell_when_known(self, kind: Kind) -> None:
        """Every Model may want one now."""
        while not self._is_known(kind):
            await asyncio.sleep(0.1)
        for key in self.models():
            self._changed(key)

    async def _is_served(self, kind: Kind) -> bool | None:
        """None: the API server did not say."""
        try:
            found = await self._api.call("GET", f"/apis/{kind.group}/{kind.version}")
            return any(resource.get("name") == kind.plural for resource in found.get("resources") or [])
        except KubernetesError as error:
            return False if error.status == 404 else None
