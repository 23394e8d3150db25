"""Asks peers over pooled HTTP/1.1 connections: whole answers, streams, and callbacks for the hot path.

client = HttpClient()
answer = await client.request("POST", "http://10.0.0.7:8000/v1/completions", body=b"{}", timeout_s=30)
async with await client.stream("POST", url, body=b"{}", headers=(), head_timeout_s=30) as answer:
    async for data in answer:
        ...
handle = client.relay("POST", url, body=b"{}", headers=(), sink=sink)
await client.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from baton_api.errors import DeadlineExceeded
from baton_wire.http_limits import ClientLimits
from baton_wire.http_pool import ClientTls, Pool
from baton_wire.http_relay import RelayHandle, RelaySink
from baton_wire.http_request import RequestHeaders, render_request, split_url
from baton_wire.http_response import Response, StreamingResponse, WholeAnswer
from baton_wire.http_upstream import connection_lost_error

__all__ = ["ClientLimits", "ClientTls", "HttpClient", "RelayHandle", "RelaySink", "Response", "StreamingResponse"]


class HttpClient:
    """Pools connections per (host, port); one client per event loop. Close it with `close`.

    With `tls` every connection is encrypted; urls say http all the same.
    """

    def __init__(self, limits: ClientLimits | None = None, tls: ClientTls | None = None) -> None:
        self._limits = limits if limits is not None else ClientLimits()
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._pools: dict[tuple[str, int], Pool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open ones, idle or not."""
        return sum(pool.open_connections for pool in self._pools.values())

    def reads(self, url: str) -> int:
        """How often the peer of `url` has sent something; whoever compares two of them learns whether it did since."""
        host, port, _ = split_url(url)
        pool = self._pools.get((host, port))
        return 0 if pool is None else pool.reads

    async def request(
        self, method: str, url: str, *, body: bytes = b"", headers: RequestHeaders = (), timeout_s: float,
        repeatable: bool = True,
    ) -> Response:  # fmt: skip
        """The whole answer, whatever its status. Raises WorkerProtocolError, NoCapacity or DeadlineExceeded."""
        sink = WholeAnswer(self._limits.max_answer_bytes)
        handle = self.relay(method, url, body=body, headers=headers, sink=sink, repeatable=repeatable)
        try:
            async with asyncio.timeout(timeout_s):
                return await sink.answer
        except TimeoutError:
            raise DeadlineExceeded(f"{method} {url}: no answer in {timeout_s:g} s") from None
        finally:
            handle.abort()

    async def stream(
        self, method: str, url: str, *, body: bytes = b"", headers: RequestHeaders = (), head_timeout_s: float,
        repeatable: bool = True,
    ) -> StreamingResponse:  # fmt: skip
        """Returns with the head of the answer. Raises as `request` does; the time limit is for the head alone."""
        answer = StreamingResponse(self._limits.max_buffered_bytes)
        answer.handle = handle = self.relay(method, url, body=body, headers=headers, sink=answer, repeatable=repeatable)
        try:
            async with asyncio.timeout(head_timeout_s):
                await answer.head
        except BaseException as error:
            handle.abort()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"{method} {url}: no answer in {head_timeout_s:g} s") from None
            raise
        return answer

    def relay(
        self, method: str, url: str, *, body: bytes = b"", headers: RequestHeaders = (), sink: RelaySink,
        repeatable: bool = True,
    ) -> RelayHandle:  # fmt: skip
        """Begins a call and returns at once; no task on a pooled connection. No time limit: the caller aborts.

        `repeatable=False` for a request that must not be sent twice, even if its reused connection closed in silence.
        Raises ValueError for a bad method, URL or header. The sink may be called before this returns (an error only).
        """
        address = split_url(url)
        host, port, _ = address
        request = render_request(method, address, headers, body)
        pool = self._pools.get((host, port)) or self._new_pool(host, port)
        handle = RelayHandle(pool, request, sink, head_only=method == "HEAD", repeatable=repeatable)
        if self._closed:
            handle.on_error(connection_lost_error("since the client is closed"))
        else:
            pool.acquire(handle)
        return handle

    async def close(self) -> None:
        """Ends every call with connection_lost and every connection."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in self._pools.values():
            pool.abort_all(connection_lost_error("since the client is closed"))
        while self.connections:
            await asyncio.sleep(0)

    def _new_pool(self, host: str, port: int) -> Pool:
        pool = self._pools[host, port] = Pool(host, port, self._limits, self._spawn, self._tls)
        if self._sweep_timer is None:
            self._schedule_sweep()
        return pool

    def _spawn(self, connect: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(connect)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _sweep(self) -> None:
        """Closes idle connections and forgets peers that are gone."""
        before = self._loop.time() - self._limits.idle_timeout_s
        for key, pool in tuple(self._pools.items()):
            pool.close_idle(before)
            if pool.unused:
                del self._pools[key]
        self._sweep_timer = None
        if self._pools:
            self._schedule_sweep()

    def _schedule_sweep(self) -> None:
        self._sweep_timer = self._loop.call_later(min(5.0, self._limits.idle_timeout_s / 4), self._sweep)
