"""One request's engine events, as something to await."""

from __future__ import annotations

import asyncio
from collections import deque

from baton_engine.nouns import EngineEvent, Failed, Finished


class EventStream:
    """The engine calls `put` on the loop's thread; one task awaits `next`."""

    def __init__(self) -> None:
        self._events: deque[EngineEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    def put(self, event: EngineEvent) -> None:
        self._events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> EngineEvent:
        """The next event; a Failed is raised as its error."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if isinstance(event, Failed):
            raise event.error
        return event
