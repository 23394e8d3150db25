"""An outside worker for gateway tests: the worker's real HTTP face on a real port, behaving as a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from baton_api.handoff import HandOff
from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    chat_chunk,
    chat_final,
    chat_role_chunk,
    completion_chunk,
    completion_final,
    usage,
    usage_chunk,
)
from baton_api.worker import Role, WorkerInfo, WorkerLoad
from baton_wire.http_server import Exchange, HttpServer, serve
from baton_wire.sse import DONE, format_event
from baton_worker.face import draining

SERVER_TIMING = 'reserve;dur=1.000, prefill;dur=2.000;desc="1 chunks", transfer;dur=0.500;desc="64 B tcp"'


@dataclass
class Leg:
    """One leg as it arrived. `gone` is set when the gateway broke it off."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def hand_off(self) -> HandOff:
        return HandOff.from_params(self.body["kv_transfer_params"])


Behaviour = Callable[[Exchange, Leg], Awaitable[None]]


class FakeWorker:
    """`behave` answers a leg; assign another one at any time."""

    def __init__(self, role: str, worker_key: str, worker_id: str, **changes: Any) -> None:
        self.info = WorkerInfo(
            worker_id, Role(role), "e1", "tiny", "r1", "f1", "127.0.0.1:1", "tcp", 16, 512, True, False, WorkerLoad()
        )
        self.info = replace(self.info, **changes)
        self.behave: Behaviour = answer("Hello", " world")
        self.legs: list[Leg] = []
        self.heartbeats = 0
        self.heartbeats_hang = False
        self.heartbeat_delay_s = 0.0
        self.host = "127.0.0.1"
        self.port = 0
        self._bearer = f"Bearer {worker_key}"
        self._server: HttpServer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> FakeWorker:
        self._server = await serve(self._handle, self.host, self.port)
        self.port = self._server.port
        return self

    async def kill(self) -> None:
        """As SIGKILL: listening and established sockets are gone at once."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.close()

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.headers.get("authorization") != self._bearer:
            exchange.respond(401, b'{"error":{"message":"no","type":"x","param":null,"code":"invalid_api_key"}}')
        elif exchange.path == "/baton/v1/worker":
            self.heartbeats += 1
            await asyncio.sleep(60 if self.heartbeats_hang else self.heartbeat_delay_s)
            exchange.respond(200, self.info.to_json())
        else:
            leg = Leg(exchange.path, dict(exchange.headers), json.loads(exchange.body))
            exchange.on_gone(leg.gone.set)
            self.legs.append(leg)
            await self.behave(exchange, leg)


def answer(*texts: str, delay_s: float = 0.0) -> Behaviour:
    """Answers whole or streams one event per text, as the leg asks."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        await asyncio.sleep(delay_s)
        chat = leg.path == "/v1/chat/completions"
        meta = AnswerMeta("cmpl-1", 1_700_000_000, leg.body["model"])
        used = usage(len(leg.body["prompt_token_ids"]), len(texts), 3)
        if not leg.body.get("stream"):
            whole = (chat_final if chat else completion_final)(meta, [FinalChoice(0, "".join(texts), "stop")], used)
            exchange.respond(200, dump(whole), [("server-timing", SERVER_TIMING)])
            return
        begin_stream(exchange)
        if chat:
            exchange.write(format_event(dump(chat_role_chunk(meta, 0))))
        for text in texts:
            exchange.write(format_event(dump((chat_chunk if chat else completion_chunk)(meta, 0, text))))
            await asyncio.sleep(delay_s)
        exchange.write(format_event(dump((chat_chunk if chat else completion_chunk)(meta, 0, "", "stop"))))
        exchange.write(format_event(dump(usage_chunk(meta, used, chat=chat))) + format_event(DONE))
        exchange.end()

    return behave


def dies_midstream(*texts: str) -> Behaviour:
    """Streams the texts, half an event more, and breaks off."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        meta = AnswerMeta("cmpl-1", 1_700_000_000, leg.body["model"])
        begin_stream(exchange)
        for text in texts:
            exchange.write(format_event(dump(chat_chunk(meta, 0, text))))
        exchange.write(b'data: {"id":"cmpl-1","cho')
        await asyncio.sleep(0.02)
        exchange.abort()

    return behave


def dies_at_once() -> Behaviour:
    async def behave(exchange: Exchange, leg: Leg) -> None:
        exchange.abort()

    return behave


def fails(status: int, code: str = "broken", retry_after: str | None = None) -> Behaviour:
    """Answers with an error."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        body = {"error": {"message": "it broke", "type": "server_error", "param": None, "code": code}}
        exchange.respond(status, dump(body), [("retry-after", retry_after)] if retry_after else [])

    return behave


def says_draining() -> Behaviour:
    """Refuses as a worker does that is going."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        raise draining()

    return behave


def hangs() -> Behaviour:
    """Says nothing until the gateway goes away."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        await leg.gone.wait()

    return behave


def streams_then_hangs(*texts: str) -> Behaviour:
    async def behave(exchange: Exchange, leg: Leg) -> None:
        meta = AnswerMeta("cmpl-1", 1_700_000_000, leg.body["model"])
        begin_stream(exchange)
        for text in texts:
            exchange.write(format_event(dump(chat_chunk(meta, 0, text))))
        await leg.gone.wait()

    return behave


def says(*events: bytes) -> Behaviour:
    """Streams exactly these bytes and ends in order."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        begin_stream(exchange)
        for event in events:
            exchange.write(event)
            await asyncio.sleep(0)
        exchange.end()

    return behave


def begin_stream(exchange: Exchange) -> None:
    exchange.start(200, [("content-type", "text/event-stream"), ("server-timing", SERVER_TIMING)])


def dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
