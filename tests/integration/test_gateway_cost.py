"""What a request and a chunk of a stream cost the gateway: Python calls, counted. No sockets, no clock."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from baton_api.fleet import Fleet, FleetWorker
from baton_api.settings import parse
from baton_api.worker import Role, WorkerInfo
from baton_engine.text.prompt import ModelReader
from baton_gateway.access import KeyRing
from baton_gateway.process import Gateway
from baton_gateway.settings import GatewaySettings
from baton_wire.http_server import HttpServer, ServerLimits
from baton_wire.http_upstream import Upstream
from support.gateways import API_KEY, SECRET
from support.tiny_tokenizer import write_tiny_tokenizer
from support.wire import Line, MemoryTransport

MAX_CALLS_A_REQUEST = 200
ANSWER = json.dumps({"id": "x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def calls_of(work: Callable[[], None]) -> list[str]:
    """The Python functions that run in it, those of the test's own transport left out."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and "/tests/" not in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


class Wired:
    """A gateway between one client's connection and one idle connection to each of two workers."""

    def __init__(self, folder: Path) -> None:
        model = write_tiny_tokenizer(folder / "model")
        raw = {"fleet_file": "f", "model_path": str(model), "mode": "aggregated", "prefix_keys": "text"}
        gateway = Gateway(parse(GatewaySettings, raw), SECRET, KeyRing([API_KEY]), ModelReader.load(model))
        self.gateway, self.upstreams = gateway, []
        parts = gateway.parts
        urls = [f"http://127.0.0.1:{port}" for port in (9001, 9002)]
        parts.registry.set_fleet(Fleet("tiny", tuple(FleetWorker(url) for url in urls)))
        for number, url in enumerate(urls):
            info = WorkerInfo(f"d{number}", Role.DECODE, "e", "tiny", "r", "f", "h:1", "tcp", 16, 4096, True, False)
            parts.registry.heard(url, info)
            pool = parts.client._new_pool("127.0.0.1", 9001 + number)
            upstream = Upstream(pool, parts.client._limits)
            upstream.connection_made(MemoryTransport())
            pool._open.add(upstream)
            pool.connection_free(upstream)
            self.upstreams.append(upstream)
        self.client = Line(gateway.app.handle, server=HttpServer(gateway.app.handle, ServerLimits()))

    def request(self, **fields: Any) -> bytes:
        text = "four kilobytes of text " * 178
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {API_KEY}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    @property
    def asked(self) -> Upstream:
        """The worker's connection that has a request to answer."""
        return next(upstream for upstream in self.upstreams if upstream._call is not None)


@asynccontextmanager
async def wired(folder: Path) -> AsyncIterator[Wired]:
    made = Wired(folder)
    try:
        yield made
        made.gateway.parts.registry.check_quiescent()
        made.gateway.parts.admission.check_quiescent()
        assert not made.gateway.parts.attempts and not len(made.gateway.parts.deadlines)
    finally:
        for upstream in made.upstreams:
            upstream.connection_lost(None)
        await made.gateway.stop()


async def test_a_whole_answer_costs_at_most_200_python_calls(tmp_path: Path) -> None:
    async with wired(tmp_path) as made:
        request = made.request(max_tokens=16)

        def once() -> None:
            made.client.feed(request)
            made.asked.data_received(WHOLE)

        once()
        calls = calls_of(once)
        assert made.client.statuses == [200, 200]
        assert len(calls) <= MAX_CALLS_A_REQUEST, len(calls)


async def test_a_chunk_of_a_stream_costs_three_python_calls(tmp_path: Path) -> None:
    async with wired(tmp_path) as made:
        made.client.feed(made.request(stream=True, max_tokens=16))
        upstream = made.asked
        upstream.data_received(STREAM)
        event = b':0 7\ndata: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        upstream.data_received(chunk)
        calls = calls_of(lambda: upstream.data_received(chunk))
        assert calls == ["data_received", "pour", "write"]
        last = b"data: [DONE]\n\n"
        upstream.data_received(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        assert made.client.answer.count(b'"content":"x"') == 2 and b":0 7" not in made.client.answer
