"""An operator process from its settings file to its exit: wiring, leadership, health, the loop over Models."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path

import prometheus_client
import uvloop

from baton_api.errors import BatonError, KubernetesError, NoCapacity, NotFound, SettingError
from baton_api.settings import parse
from baton_wire.exposition import CONTENT_TYPE
from baton_wire.http_server import Exchange, HttpServer, serve
from baton_wire.kube_access import KubeAccess, in_cluster
from baton_wire.kube_api import KubeApi
from baton_wire.kube_watch import Backoff

from .apply import Writer
from .leader import Leader
from .observe import Observer
from .reconcile import Reconciler
from .settings import OperatorSettings
from .snapshot import Key, condition_of
from .telemetry import Telemetry
from .work_queue import WorkQueue

log = logging.getLogger("baton.operator")
UNLISTED_S = 1.0
"""Between two looks whether a namespace is listed."""
STUCK_S = 300.0
"""A look at a Model that takes so long has gone wrong: the process is not healthy."""


def run(argv: Sequence[str]) -> int:
    """The process's main. Exit code 2 for a bad setting, 1 when the Lease was lost."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = read_settings(argv)
        logging.getLogger("baton").setLevel(settings.log_level)
        return uvloop.run(_main(settings, in_cluster(os.environ, settings.service_account_dir)))
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2


def read_settings(argv: Sequence[str]) -> OperatorSettings:
    """Raises SettingError."""
    if len(argv) != 2 or argv[0] != "--settings":
        raise SettingError("arguments", list(argv), "are not understood", "use --settings FILE.json")
    try:
        raw = json.loads(Path(argv[1]).read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError("--settings", argv[1], f"cannot be read ({error})", "give a JSON file") from error
    settings = parse(OperatorSettings, raw)
    if settings.leader.enabled and settings.leader.renew_s >= settings.leader.duration_s:
        limit = f"is not below leader.duration_s ({settings.leader.duration_s:g})"
        raise SettingError("leader.renew_s", settings.leader.renew_s, limit, "use a third of it")
    return settings


class Operator:
    """The composed process; also started inside tests. `run` until cancelled, or until the Lease is lost."""

    def __init__(self, settings: OperatorSettings, access: KubeAccess, identity: str) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        self.api = KubeApi(access)
        self.queue = WorkQueue(time.monotonic)
        self.observer = Observer(self.api, settings, self._changed, self.telemetry.failed)
        self.writer = Writer(self.api, self.observer, self.telemetry, settings.request_timeout_s)
        self.reconciler = Reconciler(self.observer, self.writer, settings, _now)
        self.leader = Leader(
            self.api, settings.leader, settings.namespace or access.namespace, identity, time.monotonic
        )
        self.leading = False
        self._backoffs: dict[Key, Backoff] = {}

    def _changed(self, key: Key) -> None:
        """Changes of the same moment are looked at together."""
        self.queue.add(key, self.settings.settle_s)

    async def run(self) -> None:
        watching = asyncio.create_task(self.observer.run())
        try:
            if self.settings.leader.enabled:
                await _until(watching, self.leader.acquire())
            await self._lead(watching)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._resign()
            await self.api.close()

    async def _lead(self, watching: asyncio.Task[None]) -> None:
        self.leading = True
        self.telemetry.lead(True)
        tasks = [asyncio.create_task(self._work()) for _ in range(self.settings.workers)]
        tasks.append(asyncio.create_task(self._resync()))
        if self.settings.leader.enabled:
            tasks.append(asyncio.create_task(self.leader.hold()))
        try:
            done, _ = await asyncio.wait((watching, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.leading = False
            self.telemetry.lead(False)

    async def _resign(self) -> None:
        try:
            await self.leader.release()
        except KubernetesError as error:
            log.warning("Lease: not released: %s", error.message)

    async def _work(self) -> None:
        while not self.observer.ready:
            await asyncio.sleep(0.05)
        while True:
            key = await self.queue.get()
            try:
                if self.observer.is_listed(key[0]):
                    await self._look_at(key)
                else:
                    self.queue.add(key, UNLISTED_S)
            finally:
                self.queue.done(key)

    async def _look_at(self, key: Key) -> None:
        start_s = time.monotonic()
        outcome = "internal"
        try:
            looked = await self.reconciler.reconcile(key)
            error = looked.error
            outcome = "ok" if error is None else error.code or error.reason
            if error is None:
                self._backoffs.pop(key, None)
                if looked.again_s is not None:
                    self.queue.add(key, looked.again_s)
            else:
                self._later(key, error.retry_after_s or 0.0)
        except Exception:
            # One Model that breaks us must not keep the others from being looked at.
            log.exception("Model %s/%s", *key)
            self._later(key)
        finally:
            self.telemetry.reconciled(outcome, time.monotonic() - start_s)

    def _later(self, key: Key, at_least_s: float = 0.0) -> None:
        settings = self.settings
        known = self._backoffs.setdefault(key, Backoff(settings.retry_base_s, settings.retry_max_s, lambda: 0.5))
        self.queue.add(key, max(known.failed(), at_least_s))

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.settings.resync_s)
            for key in self.observer.models():
                self.queue.add(key)

    # The HTTP face.

    async def handle(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/health":
                stuck = [key for key, since_s in self.queue.busy.items() if time.monotonic() - since_s > STUCK_S]
                if stuck:
                    raise NoCapacity(f"stuck at {stuck[0]}", code="stuck")
                exchange.respond(200, b'{"status":"ok"}')
            case "/ready":
                if not self.observer.ready:
                    raise NoCapacity("the cluster is not listed yet", code="not_listed", retry_after_s=1.0)
                exchange.respond(200, json.dumps({"status": "ready", "leading": self.leading}).encode())
            case "/metrics":
                reasons = (self._reason(key) for key in self.observer.models())
                body = self.telemetry.exposition(len(self.queue), reasons)
                exchange.respond(200, body, content_type=CONTENT_TYPE)
            case _:
                raise NotFound(f"{exchange.path[:128]} is not served here")

    def _reason(self, key: Key) -> str:
        snapshot = self.observer.snapshot(key)
        return str(condition_of(snapshot.model, "Ready").get("reason", "Unknown")) if snapshot else "Unknown"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _until(watching: asyncio.Task[None], waited: Coroutine[None, None, None]) -> None:
    """Waits for `waited`; a failure of `watching` ends it."""
    task = asyncio.create_task(waited)
    try:
        await asyncio.wait((watching, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watching.result()
        task.result()
    finally:
        task.cancel()


async def _main(settings: OperatorSettings, access: KubeAccess) -> int:
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{os.getpid()}_{os.urandom(4).hex()}"
    operator = Operator(settings, access, identity)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await _listen(operator)
    print(json.dumps({"ready": True, "port": server.port}), flush=True)
    running, stopped = asyncio.create_task(operator.run()), asyncio.create_task(stopping.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    lost = not stopping.is_set()
    for task in (running, stopped):
        task.cancel()
    ended, _ = await asyncio.gather(running, stopped, return_exceptions=True)
    if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
        log.critical("the operator ends: it broke", exc_info=ended)
    await server.close(1.0)
    return 1 if lost else 0


async def _listen(operator: Operator) -> HttpServer:
    settings = operator.settings
    try:
        return await serve(operator.handle, settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise SettingError("host, port", where, f"cannot be had ({error})", "give a free one") from error
