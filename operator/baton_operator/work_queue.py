"""Which Model is looked at next: each once at a time; changes in between are not lost, but looked at together."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from .snapshot import Key


class WorkQueue:
    """`now()` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._busy: dict[Key, float] = {}
        self._again: dict[Key, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._again)

    @property
    def busy(self) -> dict[Key, float]:
        """What is being looked at, and since when."""
        return dict(self._busy)

    def add(self, key: Key, delay_s: float = 0.0) -> None:
        """The sooner of two wishes counts."""
        due_s = self._now() + delay_s
        if key in self._busy:
            self._again[key] = min(due_s, self._again.get(key, due_s))
        elif due_s < self._due.get(key, float("inf")):
            self._due[key] = due_s
            heapq.heappush(self._heap, (due_s, key))
            self._changed.set()

    async def get(self) -> Key:
        """Waits for the next that is due; `done` has to follow."""
        while True:
            wait_s = self._drop_stale()
            if wait_s is not None and wait_s <= 0:
                _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._busy[key] = self._now()
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, key: Key) -> None:
        del self._busy[key]
        due_s = self._again.pop(key, None)
        if due_s is not None:
            self.add(key, due_s - self._now())

    def _drop_stale(self) -> float | None:
        """Seconds until the next is due; None: there is none."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] - self._now() if self._heap else None
