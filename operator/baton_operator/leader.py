"""Which replica works: the one that holds a Lease and renews it. As client-go's leader election does it.

Another replica's Lease counts as over when it was not seen to change for its duration, by this replica's own clock: the
clocks of two machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from baton_api.errors import KubernetesError
from baton_wire.kube_api import KubeApi

from .kinds import LEASE
from .settings import LeaderSettings

Json = dict[str, Any]
log = logging.getLogger("baton.operator.leader")


def micro_time(at: datetime) -> str:
    """MicroTime always has six digits of fraction: without them the API server refuses it with 400."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Leader:
    """`identity` is unique to this process. `now_s` is monotonic."""

    def __init__(
        self, api: KubeApi, settings: LeaderSettings, namespace: str, identity: str, now_s: Callable[[], float]
    ) -> None:
        self._api = api
        self._settings = settings
        self._path = LEASE.path(namespace)
        self._identity = identity
        self._now_s = now_s
        self._seen: tuple[Any, float] = (None, 0.0)
        self._held: Json | None = None
        self._renewed_s = 0.0

    async def acquire(self) -> None:
        """Returns once the Lease is held."""
        while not await self._try():
            await asyncio.sleep(self._settings.renew_s)
        log.info("%s leads", self._identity)

    async def hold(self) -> None:
        """Renews until the Lease is lost, and returns then: by that time another may work already in a moment."""
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(self._renewed_s + self._settings.duration_s - self._now_s()):
                    await asyncio.sleep(self._settings.renew_s)
                    if not await self._try() and self._held is None:
                        break
        log.error("%s has lost the Lease", self._identity)

    async def release(self) -> None:
        """So that the next one need not wait for its end."""
        if self._held is None:
            return
        try:
            await self._give_back(self._held)
        except KubernetesError as error:
            if error.status != 409:
                raise
            found = await self._find()  # a renewal was on its way when this process was told to stop
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._identity:
                await self._give_back(found)

    async def _give_back(self, lease: Json) -> None:
        await self._write("PUT", lease | {"spec": lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}})

    async def _try(self) -> bool:
        """Whether the Lease was taken or renewed now."""
        try:
            return await self._take()
        except KubernetesError as error:
            if error.status == 409:
                self._held = None
            log.warning("Lease: %s", error.message)
            return False

    async def _take(self) -> bool:
        start_s = self._now_s()
        found = await self._find()
        if found is None:
            body = {"metadata": {"name": self._settings.lease_name}, "spec": self._spec({}, changes=0)}
            await self._write("POST", body)
        else:
            spec = found.get("spec") or {}
            mine = spec.get("holderIdentity") == self._identity
            if not mine and spec.get("holderIdentity") and not self._is_over(spec):
                self._held = None
                return False
            changes = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
            await self._write("PUT", found | {"spec": self._spec(spec if mine else {}, changes)})
        self._renewed_s = start_s
        return True

    async def _find(self) -> Json | None:
        try:
            return await self._api.call(
                "GET", f"{self._path}/{self._settings.lease_name}", timeout_s=self._settings.renew_s
            )
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    def _is_over(self, spec: Json) -> bool:
        said = (spec.get("holderIdentity"), spec.get("renewTime"))
        if said != self._seen[0]:
            self._seen = (said, self._now_s())
        return self._now_s() - self._seen[1] > float(spec.get("leaseDurationSeconds") or 0)

    def _spec(self, before: Json, changes: int) -> Json:
        now = micro_time(datetime.now(UTC))
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._settings.duration_s)),
            "acquireTime": before.get("acquireTime") or now,
            "renewTime": now,
            "leaseTransitions": changes,
        }

    async def _write(self, method: str, body: Json) -> None:
        """A version in the body makes the second of two writers fail with 409."""
        path = self._path if method == "POST" else f"{self._path}/{self._settings.lease_name}"
        whole = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, **body}
        self._held = await self._api.call(method, path, body=whole, timeout_s=self._settings.renew_s)
