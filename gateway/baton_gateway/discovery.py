"""Keeps the registry true: takes the fleet from its source and asks every worker who and how it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from baton_api.errors import BatonError
from baton_api.fleet import Fleet
from baton_api.worker import WorkerInfo
from baton_wire.http_client import HttpClient

from .patience import Patience
from .registry import Change, Registry
from .settings import GatewaySettings
from .source import Source

log = logging.getLogger("baton.gateway.discovery")
WORKER_PATH = "/baton/v1/worker"
SOURCE_RESTART_S = 1.0
EAGER_INTERVAL_S = 0.2
"""Between two looks at a worker that is not routable yet, so that a start is seen soon."""


class FleetChanges:
    """Wakes who waits for a worker to become routable."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def announce(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Returns at the next change or when the time is over."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(changed)
        try:
            await asyncio.wait((changed,), timeout=timeout_s)
        finally:
            self._waiting.discard(changed)


class Discovery:
    """`run(source)` until cancelled. `on_gone(url)` is called when a worker was lost, stuck, restarted or taken out.

    Workers are asked on connections of its own: requests may take all of `client`'s. Those are only looked at."""

    def __init__(
        self,
        settings: GatewaySettings,
        registry: Registry,
        client: HttpClient,
        worker_key: str,
        changes: FleetChanges,
        on_gone: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._client = client
        self._asking = HttpClient()
        self._headers = (("authorization", f"Bearer {worker_key}"),)
        self._changes = changes
        self._on_gone = on_gone
        self._hearts: dict[str, asyncio.Task[None]] = {}
        self._patience: dict[str, Patience] = {}
        self._complaints: dict[str, str | None] = {}

    async def run(self, source: Source) -> None:
        try:
            while True:
                try:
                    await source.run(self._take)
                except Exception:
                    # Else every heart would stop with it, and nobody would be served any more.
                    log.exception("the fleet's source broke off; starting it again")
                await asyncio.sleep(SOURCE_RESTART_S)
        finally:
            for task in self._hearts.values():
                task.cancel()
            await asyncio.gather(*self._hearts.values(), return_exceptions=True)
            await self._asking.close()

    def _take(self, fleet: Fleet) -> None:
        for url in self._registry.set_fleet(fleet):
            self._hearts.pop(url).cancel()
            self._complaints.pop(url, None)
            del self._patience[url]
            self._on_gone(url)
        for url in self._registry.urls:
            if url not in self._hearts:
                self._patience[url] = Patience(self._settings.heartbeat_timeout_s, self._settings.heartbeat_slow_s)
                self._hearts[url] = asyncio.create_task(self._beat(url))
        log.info("fleet: model %s, %d workers", fleet.model, len(self._registry.urls))

    async def _beat(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            start_s = loop.time()
            await self._look_at(url)
            self._complain(url)
            eager = not self._registry.is_routable(url)
            interval_s = self._settings.heartbeat_interval_s
            due_s = start_s + (min(EAGER_INTERVAL_S, interval_s) if eager else interval_s)
            await asyncio.sleep(due_s - loop.time())

    def _complain(self, url: str) -> None:
        """Once per contradiction."""
        why = self._registry.contradiction(url)
        if why != self._complaints.get(url):
            self._complaints[url] = why
            if why is not None:
                log.error("worker %s gets no requests: %s", url, why)

    async def _look_at(self, url: str) -> None:
        """Until it has answered or is lost. A look that is not answered in time is a miss, and the next one begins at
        once on another connection. Stuck, it is lost after an interval and `heartbeat_misses` timeouts at the latest.

        A slow worker is not taken for a stuck one: an answer to an earlier look still counts, bytes of any answer of
        it are a sign of life, and a timeout is as long as its slowest answer of late. One that gets no requests is
        given all that time at once: nobody waits for the verdict."""
        if not self._registry.is_routable(url):
            info = await self._ask(url)
            self._took(url, self._registry.missed(url) if info is None else self._registry.heard(url, info))
            return
        looks: set[asyncio.Task[WorkerInfo | None]] = set()
        try:
            while self._registry.is_routable(url):
                reads = self._reads(url)
                looks.add(asyncio.create_task(self._ask(url)))
                info = await _first_answer(looks, self._patience[url].timeout_s)
                if info is not None:
                    self._took(url, self._registry.heard(url, info))
                    return
                if looks and self._reads(url) != reads:
                    self._registry.sent_something(url)
                else:
                    self._took(url, self._registry.missed(url))
        finally:
            for look in looks:
                look.cancel()

    def _reads(self, url: str) -> int:
        """Grows with whatever comes from there."""
        return self._client.reads(url) + self._asking.reads(url)

    def _took(self, url: str, change: Change) -> None:
        if change in ("lost", "stuck", "new_epoch"):
            self._on_gone(url)
        if change != "none":
            log.info("worker %s: %s", url, change)
            self._changes.announce()

    async def _ask(self, url: str) -> WorkerInfo | None:
        """None when it failed."""
        patience, now = self._patience[url], asyncio.get_running_loop().time
        began_s, limit_s = now(), patience.timeout_s * self._settings.heartbeat_misses
        try:
            answer = await self._asking.request("GET", url + WORKER_PATH, headers=self._headers, timeout_s=limit_s)
            if answer.status == 200:
                patience.took(now() - began_s)
                return WorkerInfo.from_json(answer.body)
            log.warning("worker %s answered %d to a heartbeat", url, answer.status)
        except BatonError as error:
            log.debug("worker %s missed a heartbeat: %s", url, error.message)
        except Exception:
            # Else this worker's heart would stop, and it would stay routable for ever.
            log.exception("heartbeat of %s", url)
        return None


async def _first_answer(looks: set[asyncio.Task[WorkerInfo | None]], timeout_s: float) -> WorkerInfo | None:
    """Of looks under way; those that failed are taken out. None, after `timeout_s`, when nobody answered."""
    end_s = asyncio.get_running_loop().time() + timeout_s
    while (left_s := end_s - asyncio.get_running_loop().time()) > 0:
        if not looks:
            await asyncio.sleep(left_s)
            return None
        done, _ = await asyncio.wait(looks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        looks -= done
        answered = [info for look in done if (info := look.result()) is not None]
        if answered:
            return answered[0]
    return None
