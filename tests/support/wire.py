"""For tests of baton_wire: an in-memory transport, both event loops, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from baton_wire.http_connection import Connection
from baton_wire.http_server import Exchange, Handler, HttpServer, ServerLimits

_DATE = re.compile(rb"date: [^\r]+\r\n")


class MemoryTransport(asyncio.Transport):
    """What a protocol does to its socket, kept for inspection."""

    def __init__(self, host: str = "192.0.2.1") -> None:
        super().__init__()
        self.host = host
        self.socket: socket.socket | None = None
        self.sent = b""
        self.closed = False
        self.aborted = False
        self.eof = False
        self.reading = True
        self.buffered_bytes = 0

    def write(self, data: Any) -> None:
        assert not self.eof, "a write after the end"
        if not self.closed:
            self.sent += bytes(data)

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.buffered_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": (self.host, 4711), "socket": self.socket}.get(name, default)


class Line:
    """One connection of a server that does not listen: `feed` bytes, look at `answer`."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        server: HttpServer | None = None,
        host: str = "192.0.2.1",
    ) -> None:
        self.server = server or HttpServer(handler, limits if limits is not None else ServerLimits())
        self.transport = MemoryTransport(host)
        self.connection = Connection(self.server)
        self.connection.connection_made(self.transport)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if piece and not self.transport.closed:
                self.connection.data_received(piece)

    @property
    def answer(self) -> bytes:
        """What was sent, less the date."""
        return _DATE.sub(b"", self.transport.sent)

    @property
    def ended(self) -> bool:
        """The server will send nothing more on this connection."""
        return self.transport.closed or self.transport.eof

    @property
    def statuses(self) -> list[int]:
        return [int(code) for code in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", self.transport.sent)]


def echo(exchange: Exchange) -> None:
    """Answers with what it understood."""
    text = f"{exchange.method} {exchange.target} ".encode() + exchange.body
    exchange.respond(200, text, content_type="text/plain")


def socket_count() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return count


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for what other tasks bring about. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


AsyncTest = Callable[[], Coroutine[Any, Any, None]]


def on_both_loops(test: AsyncTest, *, lasting_sockets: int = 0) -> Callable[[str], None]:
    """Runs an async test on asyncio's loop and on uvloop; afterwards no task and no socket may be left."""

    @pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
    def run(loop_name: str) -> None:
        factory = uvloop.new_event_loop if loop_name == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_leaving_nothing(test, lasting_sockets))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def on_both_loops_with_grpc(test: AsyncTest) -> Callable[[str], None]:
    """The same; grpc.aio's poller keeps a pair of sockets for as long as its loop lives."""
    return on_both_loops(test, lasting_sockets=2)


async def _leaving_nothing(test: AsyncTest, lasting_sockets: int) -> None:
    sockets = socket_count() + lasting_sockets
    await test()
    await until(lambda: socket_count() <= sockets and len(asyncio.all_tasks()) == 1)
