"""Writes queued messages to one gRPC stream, in order, so that whoever decides never waits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import grpc

M = TypeVar("M")
MAX_QUEUED = 65536


class Pump(Generic[M]):
    """`write` sends one message; `broken(why)` is called once when it fails or the queue is full (invariant I9)."""

    def __init__(self, write: Callable[[M], Awaitable[None]], broken: Callable[[str], None]) -> None:
        self._write, self._broken = write, broken
        self._queue: deque[M] = deque()
        self._pending = 0
        self._more = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run())

    def put(self, message: M) -> None:
        if len(self._queue) >= MAX_QUEUED:
            self._broken(f"peer does not read: {MAX_QUEUED} messages are queued")
            return
        self._queue.append(message)
        self._pending += 1
        self._more.set()

    async def flush(self, timeout_s: float) -> None:
        """Waits until everything is written, the stream broke or the time is over."""
        give_up_s = time.monotonic() + timeout_s
        while self._pending and not self.task.done() and time.monotonic() < give_up_s:
            await asyncio.sleep(0.005)

    async def _run(self) -> None:
        try:
            while True:
                while self._queue:
                    await self._write(self._queue.popleft())
                    self._pending -= 1
                self._more.clear()
                await self._more.wait()
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            self._broken(f"stream: {type(error).__name__}")
