"""One request's engine events, as something to await."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from baton_engine.nouns import Engine, EngineEvent, Failed, Finished

FULL_EVENTS, ROOM_EVENTS = 16, 4
"""Of each choice: with so many events unread the engine pauses, and with so few it goes on."""


class EventStream:
    """The engine calls `put` on the loop's thread; one task awaits `next`. `pause` and `resume` tell the engine that
    the reader does not keep up, and that it does again."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None], choices: int = 1) -> None:
        self._pause, self._resume = pause, resume
        self._full_events, self._room_events = FULL_EVENTS * choices, ROOM_EVENTS * choices
        self._paused = False
        self._events: deque[EngineEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    @classmethod
    def of(cls, engine: Engine, key: str, choices: int = 1) -> EventStream:
        """For the engine's request `key`, which has so many choices."""
        return cls(partial(engine.pause, key), partial(engine.resume, key), choices)

    def put(self, event: EngineEvent) -> None:
        self._events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended = True
        elif len(self._events) >= self._full_events and not self._paused:
            self._paused = True
            self._pause()
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
        if self._paused and len(self._events) <= self._room_events:
            self._paused = False
            self._resume()
        if isinstance(event, Failed):
            raise event.error
        return event
