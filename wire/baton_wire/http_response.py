"""Sinks of a relay for those who await: the whole answer, or the answer as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from baton_api.errors import BatonError, WorkerProtocolError
from baton_wire.http_relay import RelayHandle


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Header names are lower case, repeated ones joined by ", "."""

    status: int
    headers: dict[str, str]
    body: bytes


class WholeAnswer:
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
