"""A fleet in memory: what a source says when a test says so."""

from __future__ import annotations

import asyncio

from baton_api.fleet import Fleet, FleetWorker
from baton_gateway.source import Take


class MemorySource:
    """The in-memory twin of the gateway's sources: `set` is the change."""

    def __init__(self, fleet: Fleet | None = None) -> None:
        self._changes: asyncio.Queue[Fleet] = asyncio.Queue()
        if fleet is not None:
            self.set(fleet)

    def set(self, fleet: Fleet) -> None:
        self._changes.put_nowait(fleet)

    async def run(self, take: Take) -> None:
        while True:
            take(await self._changes.get())


def fleet_of(*urls: str, model: str = "tiny") -> Fleet:
    return Fleet(model, tuple(FleetWorker(url) for url in urls))
