"""A worker process from its settings file to its exit: wiring, readiness, drain.

stdout is for whoever started it: JSON lines {"progress": ...} while the model loads, then one
{"ready": true, "port": ..., "control_port": ..., "epoch": ...}; logs go to stderr.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc.aio
import uvloop

from baton_api.blocks import derive_key
from baton_api.errors import BatonError, SettingError
from baton_api.kubernetes import ADVERTISE_HOST_VARIABLE, WORKER_ID_VARIABLE
from baton_api.settings import parse
from baton_api.worker import Role, WorkerInfo, WorkerLoad
from baton_wire.grpc_server import GrpcServer, start_grpc
from baton_wire.http_server import Exchange, HttpServer, serve
from baton_wire.pb.control_pb2_grpc import add_WorkerServicer_to_server
from baton_wire.stops import ignore_stops

from .answer import complete
from .control import ControlService
from .face import Face
from .job import Job
from .kv_journal import KvJournal
from .parts import Parts, load_parts
from .quarantine import Quarantine
from .settings import WorkerSettings

log = logging.getLogger("baton.worker")
MIN_SECRET_BYTES = 32
CLOSE_S = 10.0
"""After the drain: time for connections and the step under way to end. Kubernetes gives a Pod drain + 15 s."""
OVERRIDES = {WORKER_ID_VARIABLE: "worker_id", ADVERTISE_HOST_VARIABLE: "advertise_host"}
"""What differs from Pod to Pod of one settings file: these variables win over it."""
QUARANTINED = 3
"""Exit code of a worker that does not trust its own engine any more."""
HAND_OVER_S = 2.0
"""For the last error event or answer of what is handed over to be written."""


class LegHandler(Protocol):
    """A role's half: what it does with one job, and what it adds to the gRPC server."""

    async def start(self) -> None: ...

    async def serve(self, job: Job, exchange: Exchange) -> None: ...

    def add_services(self, server: grpc.aio.Server) -> None: ...

    leases: int  # promises to other workers still open

    def check_invariants(self) -> None:
        """Raises AssertionError when transfers do not add up."""

    async def quiesce(self, budget_s: float) -> int:
        """Waits until nothing this role promised is outstanding (leases, pulls); how many are left at the end."""

    async def close(self) -> None: ...


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def run(role: Role, build: Callable[[Parts], LegHandler], argv: Sequence[str]) -> int:
    """The process's main. Exit code 2 for a bad setting, which is named on stderr; 3 when its engine failed too
    often."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = read_settings(argv, os.environ)
        return uvloop.run(_main(role, build, settings))
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2


def read_settings(argv: Sequence[str], environment: Mapping[str, str]) -> WorkerSettings:
    """The file's, and over them the environment's (`OVERRIDES`). Raises SettingError naming field or variable."""
    if len(argv) != 2 or argv[0] != "--settings":
        raise SettingError("arguments", list(argv), "are not understood", "use --settings FILE.json")
    try:
        raw = json.loads(Path(argv[1]).read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError("--settings", argv[1], f"cannot be read ({error})", "give a JSON file") from error
    return parse(WorkerSettings, overridden(raw, environment))


def overridden(raw: object, environment: Mapping[str, str]) -> object:
    """`raw` with what the environment says in its place. A variable that is set must hold something that fits."""
    given = {variable: environment[variable] for variable in OVERRIDES if variable in environment}
    if not given or not isinstance(raw, dict):
        return raw
    for variable, value in given.items():
        if not FITS[variable](value):
            raise SettingError(variable, value, "cannot be used", f"give {MEANT[variable]}, or unset it")
    return raw | {OVERRIDES[variable]: value for variable, value in given.items()}


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


FITS: Mapping[str, Callable[[str], bool]] = {
    WORKER_ID_VARIABLE: lambda text: re.fullmatch(r"[A-Za-z0-9._-]{1,253}", text) is not None,
    ADVERTISE_HOST_VARIABLE: _is_address,
}
MEANT = {
    WORKER_ID_VARIABLE: "the Pod's name (fieldRef metadata.name)",
    ADVERTISE_HOST_VARIABLE: "the Pod's IP address (fieldRef status.podIP)",
}


def read_secret(path: str) -> bytes:
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingError("secret_file", path, f"cannot be read ({error})", "give a readable file") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise SettingError("secret_file", path, f"holds {len(secret)} bytes", f"put at least {MIN_SECRET_BYTES} there")
    return secret


class Worker:
    """The composed process."""

    def __init__(self, role: Role, parts: Parts, leg: LegHandler, worker_key: str) -> None:
        self.role = role
        self.parts = parts
        self.leg = leg
        self.draining = False
        # Who missed more than the cache holds is told the cache instead.
        self.journal = KvJournal(parts.engine.cached_keys, capacity=parts.engine.stats().total_blocks)
        self.control = ControlService(parts.epoch, self.journal, self.drain)
        self.face = Face(parts, worker_key, self)
        self.grpc: GrpcServer | None = None
        self.http: HttpServer | None = None
        self.stopped = asyncio.Event()
        self.exit_code = 0
        self._quarantine = Quarantine(parts.settings.engine.max_failures, parts.settings.engine.failure_window_s)

    async def start(self) -> None:
        """Listens; raises SettingError when an address cannot be had."""
        settings = self.parts.settings
        self.parts.engine.on_kv_events(self.control.publish)
        self.parts.engine.on_failure(self.failed)
        await self.leg.start()
        services = (lambda server: add_WorkerServicer_to_server(self.control, server), self.leg.add_services)
        self.grpc = await start_grpc(settings.host, settings.control_port, services)
        self.http = await serve(self.face.handle, settings.host, settings.port)
        self.parts.telemetry.on_link(settings.kv.transport, self.parts.transport.negotiated)

    def info(self) -> WorkerInfo:
        settings, stats = self.parts.settings, self.parts.engine.stats()
        assert self.grpc is not None
        return WorkerInfo(
            worker_id=settings.worker_id,
            role=self.role,
            epoch=self.parts.epoch,
            model=settings.model_name,
            revision=settings.revision,
            fingerprint=self.parts.engine.layout.fingerprint,
            control_address=_address(settings.reached_at, self.grpc.port),
            kv_transport=self.parts.transport.negotiated,
            block_tokens=self.parts.engine.layout.block_tokens,
            max_model_len=self.parts.engine.max_model_len,
            ready=not self.draining and self.trouble() is None,
            draining=self.draining,
            load=WorkerLoad(stats.running, stats.waiting, stats.kv_usage, stats.total_blocks, stats.free_blocks),
        )

    def trouble(self) -> str | None:
        """Why this process cannot serve and will not again; None: it can."""
        engine, limit_s = self.parts.engine, self.parts.settings.stuck_s
        if not engine.running:
            return "the engine has stopped; the log says why"
        if engine.step_age_s() > limit_s:
            return f"the engine has been in one step for more than {limit_s:g} s"
        return None

    def exposition(self) -> bytes:
        self.parts.telemetry.metrics.gauge("baton_worker_tasks").set(len(asyncio.all_tasks()))
        return self.parts.telemetry.exposition(self.parts.engine.stats(), self.draining)

    async def serve_job(self, job: Job, exchange: Exchange) -> None:
        if job.emitted is not None and job.emitted.over:
            complete(job, exchange)
        else:
            await self.leg.serve(job, exchange)

    async def drain(self, budget_s: float) -> int:
        """Takes no new work, waits for what runs and for what is promised; then the process ends. What runs longer is
        handed over to other workers. Returns how many requests and promises were left."""
        self.draining = True
        end_s = time.monotonic() + min(budget_s, self.parts.settings.drain_s)
        while self.face.in_flight and time.monotonic() < end_s:
            await asyncio.sleep(0.02)
        handed_over = await self.hand_over()
        left = await self.leg.quiesce(max(0.0, end_s - time.monotonic()))
        self.stopped.set()
        return left + handed_over

    async def hand_over(self) -> int:
        """Ends what is being served so that other workers go on with it; returns how many requests that were."""
        handed_over = self.face.hand_over()
        if handed_over:
            log.warning("%d requests handed over to other workers", handed_over)
        end_s = time.monotonic() + HAND_OVER_S
        while self.face.in_flight and time.monotonic() < end_s:
            await asyncio.sleep(0.01)
        return handed_over

    def failed(self, what: str) -> None:
        """The engine failed in a step, or stopped for good."""
        self.parts.telemetry.engine_failed(what)
        too_many = self._quarantine.failed(time.monotonic())
        if (too_many or what == "stopped") and not self.exit_code:
            self.draining, self.exit_code = True, QUARANTINED
            self._leaving = asyncio.get_running_loop().create_task(self._leave(what))

    async def _leave(self, what: str) -> None:
        """Ends itself: whoever started it starts it anew, on a device that may have recovered."""
        log.error("the engine failed too often (last: %s); this worker ends with exit code %d", what, QUARANTINED)
        await self.hand_over()
        self.stopped.set()

    async def close(self) -> None:
        if self.http is not None:
            await self.http.close(0.5)
        self.face.close()
        self.control.close()
        await self.leg.close()
        if self.grpc is not None:
            await self.grpc.stop(0.5)
        await self.parts.engine.close()
        await self.parts.transport.close()


async def _main(role: Role, build: Callable[[Parts], LegHandler], settings: WorkerSettings) -> int:
    secret = read_secret(settings.secret_file)
    parts = load_parts(settings, secret, lambda done, total: say(progress="loading weights", done=done, total=total))
    worker = Worker(role, parts, build(parts), derive_key(secret, "worker-http").hex())
    loop = asyncio.get_running_loop()
    try:
        await worker.start()
    except OSError as error:
        raise SettingError("host and ports", settings.host, f"cannot be listened on ({error})", "free them") from error
    drains: list[asyncio.Task[int]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: drains.append(loop.create_task(worker.drain(settings.drain_s))))
    assert worker.http is not None and worker.grpc is not None
    say(ready=True, port=worker.http.port, control_port=worker.grpc.port, epoch=parts.epoch, role=role.value)
    await worker.stopped.wait()
    try:
        async with asyncio.timeout(CLOSE_S):
            await worker.close()
    except TimeoutError:
        log.error("not closed in %g s, a step may be stuck; ending all the same", CLOSE_S)
        os._exit(1)
    ignore_stops(loop)
    return worker.exit_code


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
