"""What a relayed chunk costs: the hot path's budget of Python calls, counted."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, cast

from baton_api.errors import BatonError
from baton_wire.http_limits import ClientLimits
from baton_wire.http_pool import Pool
from baton_wire.http_relay import RelayHandle
from baton_wire.http_server import Exchange
from baton_wire.http_upstream import Upstream
from support.wire import Line, MemoryTransport


class Released:
    """The owner of one connection: notes when it is free again."""

    def __init__(self) -> None:
        self.free = 0
        self.reads = 0

    def connection_free(self, upstream: Upstream) -> None:
        self.free += 1

    def connection_closed(self, upstream: Upstream) -> None:
        raise AssertionError("the connection should be kept")


class ToExchange:
    """The smallest relay sink."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self.exchange.start(status, list(headers.items()))

    def on_data(self, data: bytes) -> None:
        self.exchange.write(data)

    def on_end(self) -> None:
        self.exchange.end()

    def on_error(self, error: BatonError) -> None:
        raise error


def python_calls(upstream: Upstream, data: bytes) -> list[str]:
    """The Python functions of ours that run when `data` arrives."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and "support" not in frame.f_code.co_filename:  # the transport stands for uvloop's, in C
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        upstream.data_received(data)
    finally:
        sys.setprofile(None)
    return calls


async def test_a_relayed_chunk_costs_three_python_calls_however_many_chunks_one_read_brings() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append)
    line.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    owner = Released()
    upstream = Upstream(owner, ClientLimits())
    upstream.connection_made(MemoryTransport())
    RelayHandle(cast(Pool, owner), b"", ToExchange(seen[0]), head_only=False, repeatable=False).connected(upstream)
    upstream.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
    assert python_calls(upstream, b"5\r\ntoken\r\n") == ["data_received", "on_data", "write"]
    assert python_calls(upstream, b"5\r\ntoken\r\n" * 20) == ["data_received", "on_data", "write"]
    upstream.data_received(b"0\r\n\r\n")
    assert owner.free == 1
    assert line.answer.endswith(b"\r\n\r\n1\r\na\r\n5\r\ntoken\r\n64\r\n" + b"token" * 20 + b"\r\n0\r\n\r\n")
