"""Bounded concurrency with a bounded queue in front: in order of arrival, each waiting at most its time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baton_api.errors import NoCapacity, Overloaded

RETRY_AFTER_S = 1.0


class Admission:
    """`slot()` holds one of `max_in_flight` slots. The codes of its refusals are llm-d's drop reasons."""

    def __init__(self, max_in_flight: int, max_queued: int, ttl_s: float) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._ttl_s = ttl_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises Overloaded (429) when the queue is full, NoCapacity (503) when its wait is over."""
        if self.in_flight < self._max_in_flight:
            self.in_flight += 1
        else:
            await self._wait()
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._max_queued:
            raise Overloaded(
                f"{self.in_flight} requests are running and {len(self._waiting)} wait",
                code="rejected-saturated",
                retry_after_s=RETRY_AFTER_S,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._ttl_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back()  # the slot came in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise NoCapacity(
                    f"no slot in {self._ttl_s:g} s", code="rejected-ttl-expired", retry_after_s=RETRY_AFTER_S
                ) from None
            raise

    def _give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1

    def check_quiescent(self) -> None:
        assert (self.in_flight, len(self._waiting)) == (0, 0)


class RetryBudget:
    """At most `ratio` retries per request in the long run, `burst` of them saved up (against retry storms)."""

    def __init__(self, ratio: float, burst: int) -> None:
        self._ratio = ratio
        self._burst = float(burst)
        self._saved = float(burst)

    def earn(self) -> None:
        """A request came."""
        self._saved = min(self._burst, self._saved + self._ratio)

    def spend(self) -> bool:
        """Whether one more retry is within the budget; it is then spent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
