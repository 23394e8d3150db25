"""Bounded concurrency with a bounded queue in front: in order of arrival, each waiting at most its time."""

from __future__ import annotations

import asyncio
from collections import deque

from baton_api.errors import NoCapacity, Overloaded

RETRY_AFTER_S = 1.0


class Admission:
    """`try_enter` or `enter`, then `leave`. The codes of its refusals are llm-d's drop reasons."""

    def __init__(self, max_in_flight: int, max_queued: int, ttl_s: float) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._ttl_s = ttl_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    def try_enter(self) -> bool:
        """Takes one of `max_in_flight` slots if one is free."""
        if self.in_flight < self._max_in_flight:
            self.in_flight += 1
            return True
        return False

    async def enter(self) -> None:
        """Waits for a slot. Raises Overloaded (429) when the queue is full, NoCapacity (503) when its wait is over."""
        if self.try_enter():
            return
        if len(self._waiting) >= self._max_queued:
            raise Overloaded(
                f"{self.in_flight} requests are running and {len(self._waiting)} wait",
                code="rejected-saturated",
                retry_after_s=RETRY_AFTER_S,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=self._ttl_s)
        except BaseException:
            if turn.done():
                self.leave()  # the slot came in the same moment
            else:
                self._waiting.remove(turn)
            raise
        if not turn.done():
            self._waiting.remove(turn)
            raise NoCapacity(f"no slot in {self._ttl_s:g} s", code="rejected-ttl-expired", retry_after_s=RETRY_AFTER_S)

    def leave(self) -> None:
        """The slot is the next one's in the queue, else free."""
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
