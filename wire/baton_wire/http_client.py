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
import functools
import re
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from baton_api.errors import BatonError, DeadlineExceeded, WorkerProtocolError

from baton_wire.http_limits import ClientLimits
from baton_wire.http_pool import Pool
from baton_wire.http_upstream import Upstream, connection_lost_error

__all__ = ["ClientLimits", "HttpClient", "RelayHandle", "RelaySink", "Response", "StreamingResponse"]

_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::([0-9]{1,5}))?(/[\x21\x22\x24-\x7e]*)?")
_METHOD = re.compile(r"[A-Z]{1,20}")

RequestHeaders = Sequence[tuple[str, str]]


class RelaySink(Protocol):
    """Who an answer is relayed to. `on_data` gets payload without the chunked coding, joined per read."""

    def on_head(self, status: int, headers: dict[str, str]) -> None: ...
    def on_data(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_error(self, error: BatonError) -> None: ...


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Header names are lower case, repeated ones joined by ", "."""

    status: int
    headers: dict[str, str]
    body: bytes


@functools.lru_cache(maxsize=4096)
def split_url(url: str) -> tuple[str, int, str]:
    """Host, port and target of an http URL. Raises ValueError."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"not an http URL: {url!r}")
    host, port, target = match.groups()
    return host.strip("[]"), int(port or 80), target or "/"


def render_request(method: str, address: tuple[str, int, str], headers: RequestHeaders, body: bytes) -> bytes:
    """The bytes of a request to `split_url`'s address. Raises ValueError for a bad method and line breaks in headers."""
    host, port, target = address
    if _METHOD.fullmatch(method) is None:
        raise ValueError(f"not a method: {method!r}")
    section = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if section.count("\n") != len(headers) or section.count("\r") != len(headers) or "\0" in section:
        raise ValueError("a header holds a line break or NUL")
    length = f"content-length: {len(body)}\r\n" if body or method not in ("GET", "HEAD") else ""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{method} {target} HTTP/1.1\r\nhost: {authority}\r\n{section}{length}\r\n".encode("latin-1") + body


class RelayHandle:
    """One call under way. Repeats its request once when a reused connection closes before a byte of the answer came."""

    __slots__ = (
        "_fresh",
        "_pool",
        "_repeatable",
        "_request",
        "_sink",
        "_upstream",
        "aborted",
        "head_only",
        "on_data",
        "paused",
    )

    def __init__(self, pool: Pool, request: bytes, sink: RelaySink, *, head_only: bool, repeatable: bool) -> None:
        self._pool = pool
        self._request = request
        self._sink = sink
        self.on_data = sink.on_data  # one Python call less for each chunk
        self._upstream: Upstream | None = None
        self._repeatable = repeatable
        self._fresh = True
        self.head_only = head_only
        self.aborted = False
        self.paused = False

    def abort(self) -> None:
        """Forgets the sink and closes the upstream connection. After the end it does nothing."""
        self.aborted = True
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.detach()

    def pause(self) -> None:
        """Stops reading, so that the upstream's writer feels the back-pressure."""
        if not self.paused:
            self.paused = True
            if self._upstream is not None:
                self._upstream.pause()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self._upstream is not None:
                self._upstream.resume()

    # Called by the pool and the connection.

    def connected(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._fresh = upstream.fresh
        upstream.send(self, self._request)
        if self.paused:
            upstream.pause()

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self._sink.on_head(status, headers)

    def on_end(self) -> None:
        self._upstream = None
        self._sink.on_end()

    def on_error(self, error: BatonError) -> None:
        upstream, self._upstream = self._upstream, None
        raced = upstream is not None and upstream.silent and not self._fresh and error.code == "connection_lost"
        if raced and self._repeatable:
            self._repeatable = False
            self._pool.acquire(self, fresh=True)
        else:
            self._sink.on_error(error)


class _WholeAnswer:
    """Sink of `request`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._status = 0
        self._headers: dict[str, str] = {}
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._headers = status, headers

    def on_data(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max_bytes:
            self._parts.clear()
            self.on_error(WorkerProtocolError(f"the answer exceeds {self._max_bytes} bytes", code="answer_too_large"))

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Response(self._status, self._headers, b"".join(self._parts)))

    def on_error(self, error: BatonError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class StreamingResponse:
    """An answer read as it comes: `async with`, `async for data in it`. Leaving early closes the upstream connection.

    The iteration raises WorkerProtocolError when the answer breaks off.
    """

    def __init__(self, max_buffered_bytes: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.handle: RelayHandle | None = None
        self._max_buffered_bytes = max_buffered_bytes
        self._buffered: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._ended = False
        self._error: BatonError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Breaks the connection off unless the answer has ended."""
        if self.handle is not None and not self._ended:
            self.handle.abort()
            self._ended = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._buffered:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._buffered.popleft()
        self._buffered_bytes -= len(data)
        if self._buffered_bytes * 2 <= self._max_buffered_bytes and self.handle is not None:
            self.handle.resume()
        return data

    # RelaySink

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        if not self.head.done():
            self.head.set_result(None)

    def on_data(self, data: bytes) -> None:
        self._buffered.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > self._max_buffered_bytes and self.handle is not None:
            self.handle.pause()
        self._wake()

    def on_end(self) -> None:
        self._ended = True
        self._wake()

    def on_error(self, error: BatonError) -> None:
        self._error, self._ended = error, True
        if not self.head.done():
            self.head.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpClient:
    """Pools connections per (host, port); one client per event loop. Close it with `close`."""

    def __init__(self, limits: ClientLimits | None = None) -> None:
        self._limits = limits if limits is not None else ClientLimits()
        self._loop = asyncio.get_running_loop()
        self._pools: dict[tuple[str, int], Pool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open ones, idle or not."""
        return sum(pool.open_connections for pool in self._pools.values())

    async def request(
        self, method: str, url: str, *, body: bytes = b"", headers: RequestHeaders = (), timeout_s: float,
        repeatable: bool = True,
    ) -> Response:  # fmt: skip
        """The whole answer, whatever its status. Raises WorkerProtocolError, NoCapacity or DeadlineExceeded."""
        sink = _WholeAnswer(self._limits.max_answer_bytes)
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
        pool = self._pools[host, port] = Pool(host, port, self._limits, self._spawn)
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
