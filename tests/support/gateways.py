"""A whole gateway inside the test's event loop, with fake workers around it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from baton_api.blocks import derive_key
from baton_api.fleet import Fleet, FleetWorker
from baton_api.settings import parse
from baton_engine.text.prompt import ModelReader
from baton_gateway.access import KeyRing
from baton_gateway.process import Gateway
from baton_gateway.settings import GatewaySettings
from baton_wire.http_client import HttpClient, Response, StreamingResponse
from support.fake_worker import FakeWorker
from support.tiny_tokenizer import write_tiny_tokenizer

SECRET = b"s" * 32
WORKER_KEY = derive_key(SECRET, "worker-http").hex()
API_KEY = "sk-test"
LONG = "x" * 100
FAST: dict[str, Any] = {
    "port": 0,
    "heartbeat_interval_s": 0.05,
    "heartbeat_timeout_s": 0.2,
    "fleet_poll_s": 0.02,
    "queue_ttl_s": 0.3,
    "request_timeout_s": 20.0,
    "first_byte_timeout_s": 10.0,
    "suspend_s": 0.2,
    "drain_s": 0.2,
}


class Stage:
    """The gateway under test, its fleet, and a client that speaks to it."""

    def __init__(self, folder: Path, workers: list[FakeWorker], settings: dict[str, Any], keys: list[str]) -> None:
        self.fleet_file = folder / "fleet.json"
        self.workers = workers
        model = write_tiny_tokenizer(folder / "model")
        raw = {"fleet_file": str(self.fleet_file), "model_path": str(model), **FAST, **settings}
        self.gateway = Gateway(parse(GatewaySettings, raw), SECRET, KeyRing(keys), ModelReader.load(model))
        self.client = HttpClient()
        self.url = ""

    def write_fleet(self, *workers: FakeWorker) -> None:
        self.fleet_file.write_bytes(Fleet("tiny", tuple(FleetWorker(worker.url) for worker in workers)).to_json())

    def worker(self, worker_id: str) -> FakeWorker:
        return next(worker for worker in self.workers if worker.info.worker_id == worker_id)

    async def get(self, path: str, key: str | None = API_KEY) -> Response:
        return await self.client.request("GET", self.url + path, headers=bearer(key), timeout_s=10)

    async def post(self, path: str, body: Any, key: str | None = API_KEY, headers: Any = ()) -> Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.request(
            "POST", self.url + path, body=data, headers=[*bearer(key), *headers], timeout_s=10
        )

    async def chat(self, text: str = LONG, **fields: Any) -> Response:
        return await self.post("/v1/chat/completions", chat_body(text, **fields))

    async def open_chat(self, text: str = LONG, **fields: Any) -> StreamingResponse:
        """A streamed chat whose head has arrived."""
        return await self.client.stream(
            "POST",
            self.url + "/v1/chat/completions",
            body=json.dumps(chat_body(text, stream=True, **fields)).encode(),
            headers=bearer(API_KEY),
            head_timeout_s=10,
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.parts.telemetry.registry.get_sample_value(name, labels) or 0.0

    async def routable(self, count: int) -> None:
        await until(lambda: len(self.gateway.parts.registry.routable()) == count)

    def booked(self) -> int:
        """Legs that count as load on some worker."""
        return sum(worker.in_flight for worker in self.gateway.parts.registry.routable())

    def check_quiescent(self) -> None:
        """Nothing is left of any request (fault table, X4)."""
        parts = self.gateway.parts
        assert not parts.attempts
        parts.registry.check_quiescent()
        parts.admission.check_quiescent()
        parts.index.check_invariants()
        assert self.metric("baton_gateway_in_flight") == 0


def bearer(key: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")] if key is not None else []


def chat_body(text: str = LONG, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        await asyncio.sleep(0.005)


def pair() -> list[FakeWorker]:
    return [FakeWorker("prefill", WORKER_KEY, "p0"), FakeWorker("decode", WORKER_KEY, "d0")]


@asynccontextmanager
async def stage(
    folder: Path, workers: list[FakeWorker] | None = None, *, keys: tuple[str, ...] = (API_KEY,), **settings: Any
) -> AsyncIterator[Stage]:
    """A gateway with its workers routable; on the way out nothing may be left of any request."""
    workers = pair() if workers is None else workers
    for worker in workers:
        await worker.start()
    staged = Stage(folder, workers, settings, list(keys))
    staged.write_fleet(*workers)
    staged.url = f"http://127.0.0.1:{await staged.gateway.start()}"
    try:
        await staged.routable(sum(worker.info.ready and not worker.info.draining for worker in workers))
        yield staged
        await until(lambda: not staged.gateway.parts.attempts and not staged.booked())
        await until(lambda: staged.metric("baton_gateway_in_flight") == 0)
        staged.check_quiescent()
    finally:
        await staged.client.close()
        await staged.gateway.stop()
        for worker in workers:
            await worker.kill()
