"""A gateway process from its settings file to its exit: wiring, readiness, drain.

stdout is for whoever started it: JSON lines, {"api_key": ...} when one had to be made up, then one
{"ready": true, "port": ...}; logs go to stderr. With several `processes` this one only keeps them running (many).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import prometheus_client
import uvloop

from baton_api.errors import BatonError, SettingError
from baton_api.settings import parse
from baton_engine.text.prompt import ModelReader
from baton_wire.http_client import HttpClient
from baton_wire.http_server import HttpServer, serve
from baton_wire.stops import ignore_stops

from .access import KeyRing
from .admission import Admission, RetryBudget
from .app import App
from .board import Board
from .bounds import client_limits, ensure_descriptors, server_limits
from .discovery import Discovery, FleetChanges
from .index import PrefixIndex
from .job import Parts
from .many import BAD_SETTING_EXIT, KILL_AFTER_S, Family, reserve_port, share_of
from .registry import Registry
from .ring import Rings
from .seat import Seat
from .settings import GatewaySettings
from .source import source_of
from .strand import Alarms
from .telemetry import Telemetry, label
from .tokenising import Reader, Tokeniser
from .vitals import Vitals

log = logging.getLogger("baton.gateway")
MIN_SECRET_BYTES = 32


def run(argv: Sequence[str]) -> int:
    """The process's main. Exit code 2 for a bad setting, which is named on stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = read_settings(argv, os.environ)
        secret = read_secret(settings.secret_file, os.environ)
        keys = read_keys(settings, os.environ)
        if settings.auth and not keys:
            keys = [f"sk-{secrets.token_urlsafe(24)}"]
            say(api_key=keys[0])
        ring, reader = (
            KeyRing(keys if settings.auth else ()),
            ModelReader.load(Path(settings.model_path), settings.text_cache_bytes),
        )
        if settings.processes > 1:
            return _run_many(settings, secret, ring, reader)
        return _run_one(Gateway.of(settings, secret, ring, reader), lambda port: say(ready=True, port=port))
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return BAD_SETTING_EXIT


def _run_one(make: Callable[[], Gateway], on_ready: Callable[[int], None], lifeline: int | None = None) -> int:
    """Until a signal or, when `lifeline` is given, the end of the process that holds its other side."""
    try:
        uvloop.run(_main(make, on_ready, lifeline))
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return BAD_SETTING_EXIT
    return 0


def _run_many(settings: GatewaySettings, secret: bytes, ring: KeyRing, reader: Reader) -> int:
    held = reserve_port(settings.host, settings.port)
    port, board, rings = held.getsockname()[1], Board(settings.processes), Rings(settings.processes)

    def serve_one(index: int, tell: Callable[[], None], lifeline: int) -> int:
        mine = share_of(settings, index, port)
        return _run_one(Gateway.of(mine, secret, ring, reader, Seat(board, rings, index)), lambda _: tell(), lifeline)

    gc.collect()
    gc.freeze()
    stop_s = settings.drain_delay_s + settings.drain_s + KILL_AFTER_S
    return Family(board, serve_one, lambda: say(ready=True, port=port, processes=settings.processes), stop_s).run()


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def read_settings(argv: Sequence[str], environment: Mapping[str, str]) -> GatewaySettings:
    """From the file named by --settings or, without arguments, by BATON_GATEWAY_SETTINGS. Raises SettingError."""
    path = environment.get("BATON_GATEWAY_SETTINGS", "")
    if argv or not path:
        if len(argv) != 2 or argv[0] != "--settings":
            raise SettingError("arguments", list(argv), "are not understood", "use --settings FILE.json")
        path = argv[1]
    try:
        raw = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError("--settings", path, f"cannot be read ({error})", "give a JSON file") from error
    return parse(GatewaySettings, raw)


def read_secret(path: str, environment: Mapping[str, str]) -> bytes:
    """From the file if one is named, else BATON_SECRET. Raises SettingError."""
    secret = _read(path, "secret_file").strip() if path else environment.get("BATON_SECRET", "").encode().strip()
    if len(secret) < MIN_SECRET_BYTES:
        # The secret itself must not end up in a log: only its length is told.
        raise SettingError(
            "secret_file" if path else "BATON_SECRET",
            f"{len(secret)} bytes",
            "is too short",
            f"give at least {MIN_SECRET_BYTES}",
        )
    return secret


def read_keys(settings: GatewaySettings, environment: Mapping[str, str]) -> list[str]:
    """The API keys of settings, file and BATON_API_KEY together."""
    lines = _read(settings.api_key_file, "api_key_file").decode().splitlines() if settings.api_key_file else []
    given = [*settings.api_keys, *lines, environment.get("BATON_API_KEY", "")]
    return [key.strip() for key in given if key.strip()]


def _read(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingError(field, path, f"cannot be read ({error})", "give a readable file") from error


class Dice:
    """Random bytes of the operating system, fetched by the page: a system call per request is a tenth of its cost."""

    def __init__(self) -> None:
        self._bytes = b""

    def draw(self, count: int) -> bytes:
        """At most 4096 at a time."""
        if len(self._bytes) < count:
            self._bytes = os.urandom(4096)
        drawn, self._bytes = self._bytes[:count], self._bytes[count:]
        return drawn


class Gateway:
    """The composed process; also started inside tests."""

    def __init__(
        self, settings: GatewaySettings, secret: bytes, keys: KeyRing, reader: Reader, seat: Seat | None = None
    ) -> None:
        self.settings = settings
        self._seat = seat
        changes = FleetChanges()
        self.parts = Parts(
            settings,
            secret,
            Registry(settings.heartbeat_misses),
            changes,
            PrefixIndex(settings.index_keys),
            HttpClient(client_limits(settings)),
            Tokeniser(reader, settings.tokeniser_threads, settings.max_tokenising),
            Admission(settings.max_in_flight, settings.max_queued, settings.queue_ttl_s),
            Alarms(settings.request_timeout_s),
            Alarms(settings.first_byte_timeout_s),
            RetryBudget(settings.retry_ratio, settings.retry_burst),
            RetryBudget(1.0, settings.resume_burst),
            Telemetry(),
            Dice().draw,
        )
        if seat is not None:
            seat.take(self.parts)
        self.app = App(self.parts, keys, int(time.time()), seat.neighbours if seat is not None else list)
        self.discovery = Discovery(
            settings, self.parts.registry, self.parts.client, self.parts.worker_key, changes, self.worker_gone
        )
        self.source = source_of(settings, os.environ, self.discovery_failed)
        self.server: HttpServer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._sharing: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls, settings: GatewaySettings, secret: bytes, keys: KeyRing, reader: Reader, seat: Seat | None = None
    ) -> Callable[[], Gateway]:
        """To be made where its event loop runs."""
        return lambda: cls(settings, secret, keys, reader, seat)

    async def start(self) -> int:
        """Listens; returns the port. Raises SettingError when the address cannot be had."""
        ensure_descriptors(self.settings)
        try:
            self.server = await serve(
                self.app.handle,
                self.settings.host,
                self.settings.port,
                limits=server_limits(self.settings),
                reuse_port=self.settings.reuse_port,
                screen=self.app.screen,
            )
        except OSError as error:
            where = f"{self.settings.host}:{self.settings.port}"
            raise SettingError("host, port", where, f"cannot be had ({error})", "give a free one") from error
        self.app.vitals = Vitals(self.parts.telemetry, self.server)
        self._watch = asyncio.create_task(self.discovery.run(self.source))
        if self._seat is not None:
            self._sharing = asyncio.create_task(self._seat.share())
        return self.server.port

    def worker_gone(self, url: str) -> None:
        """What it held is forgotten, who waits for it is told."""
        self.parts.index.forget(url)
        self.parts.pairs.forget(url)
        for attempt in tuple(self.parts.attempts):
            attempt.worker_lost(url)

    def discovery_failed(self, reason: str) -> None:
        self.parts.telemetry.count("baton_gateway_discovery_errors_total", label(reason.lower()))

    async def stop(self) -> None:
        """Not ready, and every answer the last of its connection; then no new connections; then, at the latest after
        `drain_s`, the rest is cut off. What arrived is served."""
        self.app.draining = True
        if self.server is not None:
            self.server.wind_down()
            await asyncio.sleep(self.settings.drain_delay_s)
            await self.server.close(self.settings.drain_s)
        for task in (self._watch, self._sharing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.parts.client.close()
        self.parts.tokeniser.close()
        self.parts.deadlines.close()
        self.parts.first_bytes.close()


def tune_collector() -> None:
    """What lives as long as the process is never looked at again; the rest seldom: a request leaves no cycles behind.

    With Python's defaults every few requests the collector walks all that is young, the requests in flight among it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _main(make: Callable[[], Gateway], on_ready: Callable[[int], None], lifeline: int | None) -> None:
    gateway = make()
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stopping.set)  # its other end closes when the parent is gone, however it went
    port = await gateway.start()
    tune_collector()
    on_ready(port)
    await stopping.wait()
    if lifeline is not None:
        loop.remove_reader(lifeline)
    log.info("draining")
    await gateway.stop()
    ignore_stops(loop)
