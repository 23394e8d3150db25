"""Listens, runs a handler for each request, and stops in order.

async def hello(exchange: Exchange) -> None:
    exchange.respond(200, b'{"hello": "world"}')

server = await serve(hello, "127.0.0.1", 8000)
...
await server.close(grace_s=10)
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import formatdate

from baton_api.errors import BatonError, NoCapacity
from baton_wire.http_body import BodyBudget
from baton_wire.http_connection import Connection
from baton_wire.http_doors import Doors
from baton_wire.http_exchange import ClientGone, Exchange
from baton_wire.http_head import RequestHead
from baton_wire.http_limits import ServerLimits

__all__ = ["ClientGone", "Exchange", "Handler", "HttpServer", "ServerLimits", "serve"]

Handler = Callable[[Exchange], Awaitable[None] | None]
"""A coroutine function, run as a task that must complete the answer; or, for the hot path, a plain function that
returns None and has the answer completed by callbacks. A BatonError becomes its answer, any other exception a logged
500; once the answer has started both break it off."""

Screen = Callable[[RequestHead], None]
"""Asked before a body is read that did not come with its head; raises the BatonError that refuses it unread."""

SWEPT_AT_ONCE = 64
TURNS_TO_ACCEPT = 2
"""Of the event loop: closing the listener resets connections that the kernel has made and nobody has accepted yet."""


class HttpServer:
    """A listening server. `connections` counts the open ones, `refused` by code what never became a request.
    `winding_down`: every answer closes its connection; `closing`: no new connections either."""

    def __init__(self, handler: Handler, limits: ServerLimits, screen: Screen | None = None) -> None:
        self.handler = handler
        self.screen = screen
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.bodies = BodyBudget(self.limits.max_bodies_bytes)
        self._doors = Doors(limits)
        self.winding_down = self.closing = False
        self.port = 0
        self.date_line = ""
        self.refused: Counter[str] = Counter()  # what never became a request, by code
        self._listener: asyncio.Server | None = None
        self._open: set[Connection] = set()
        self._turned_away: set[Connection] = set()  # of these; they take nobody's place
        self._running: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()
        self._sweep_timer: asyncio.Handle | None = None

    @property
    def connections(self) -> int:
        return len(self._open)

    async def listen(self, host: str, port: int, reuse_port: bool) -> None:
        """Raises OSError when the address cannot be bound."""
        self._sweep()
        self._listener = await self.loop.create_server(
            lambda: Connection(self), host, port, reuse_port=reuse_port or None, backlog=1024
        )
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            for listening in self._listener.sockets:  # what it accepts inherits it
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.limits.max_unsent_bytes)
        self.port = self._listener.sockets[0].getsockname()[1]

    def wind_down(self) -> None:
        """From now on every answer says `connection: close` and does so."""
        self.winding_down = True

    async def close(self, grace_s: float = 0.0) -> None:
        """Winds down, stops accepting, waits up to `grace_s` for running requests, then cuts them off."""
        self.winding_down = True
        for _ in range(TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._open):
            connection.close_if_idle()
        if self._open and grace_s > 0:
            await self._wait_emptied(grace_s)
        for connection in tuple(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)
        await self._cancel_running()
        while self._open:
            await self._wait_emptied(1.0)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    async def _wait_emptied(self, timeout_s: float) -> None:
        self._emptied.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            pass

    async def _cancel_running(self) -> None:
        running = [task for task in self._running if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # Called by connections.

    def admit(self, connection: Connection, host: str) -> BatonError | None:
        """Keeps the connection; the refusal if it is one too many (it is kept all the same until that is read)."""
        self._open.add(connection)
        refusal = self._doors.enter(host, len(self._open) - len(self._turned_away))
        if self.closing:
            refusal = NoCapacity("this server is closing", code="too_many_connections", retry_after_s=1.0)
        if refusal is not None:
            self._turned_away.add(connection)
            if len(self._turned_away) > self.limits.max_refused_connections:
                self.refused["too_many_connections"] += 1
                connection.transport.abort()
        return refusal

    def forget(self, connection: Connection, host: str) -> None:
        self._open.discard(connection)
        self._turned_away.discard(connection)
        self._doors.leave(host)
        if not self._open:
            self._emptied.set()

    def run(self, supervised: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(supervised)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _sweep(self) -> None:
        self.date_line = f"date: {formatdate(time.time(), usegmt=True)}\r\n"
        self._check_clocks(list(self._open))

    def _check_clocks(self, left: list[Connection]) -> None:
        """A few in each turn of the loop: to cut hundreds of slow clients at once would hold the others up."""
        now = self.loop.time()
        for connection in left[-SWEPT_AT_ONCE:]:
            if connection in self._open:
                connection.check_clock(now)
        del left[-SWEPT_AT_ONCE:]
        if left:
            self._sweep_timer = self.loop.call_soon(self._check_clocks, left)
        else:
            self._sweep_timer = self.loop.call_later(self.limits.sweep_interval_s, self._sweep)


async def serve(
    handler: Handler,
    host: str,
    port: int,
    *,
    limits: ServerLimits | None = None,
    reuse_port: bool = False,
    screen: Screen | None = None,
) -> HttpServer:
    """Starts to listen; port 0 takes a free one (`HttpServer.port`). Raises OSError if the address cannot be bound."""
    server = HttpServer(handler, limits if limits is not None else ServerLimits(), screen)
    await server.listen(host, port, reuse_port)
    return server
