"""One gateway process's place among its neighbours on the same port: tells them its load, its counters and where it
sent prompts, hears theirs."""

from __future__ import annotations

import asyncio
import logging

from .board import Board, Load, Page
from .job import Parts
from .ring import Rings
from .telemetry import Numbers

log = logging.getLogger("baton.gateway")
SHARE_INTERVAL_S = 0.05
"""How old a neighbour's load may be when a worker is picked; a worker's own report comes once a second."""


class Seat:
    """`take` once; then `share` until cancelled."""

    def __init__(self, board: Board, rings: Rings, index: int) -> None:
        self._board = board
        self._rings = rings
        self._index = index
        self._parts: Parts | None = None

    def take(self, parts: Parts) -> None:
        """The counters of the process that sat here before go on."""
        self._parts = parts
        parts.index.news = []
        parts.telemetry.go_on_from(self._board.read(self._index).numbers)

    def neighbours(self) -> list[Numbers]:
        return [page.numbers for page in self._board.others(self._index)]

    async def share(self) -> None:
        while True:
            try:
                self._tell()
                self._hear()
            except Exception:
                log.exception("sharing with the other gateway processes")
            await asyncio.sleep(SHARE_INTERVAL_S)

    def _tell(self) -> None:
        assert self._parts is not None
        self._board.write(self._index, Page.of(self._parts.registry.booked(), self._parts.telemetry.numbers))
        prefixes = self._parts.index
        if prefixes.news:
            routed, prefixes.news = prefixes.news, []
            self._rings.tell(self._index, routed)

    def _hear(self) -> None:
        assert self._parts is not None
        total: Load = {}
        for page in self._board.others(self._index):
            for url, (requests, tokens) in page.load.items():
                before = total.get(url, (0, 0))
                total[url] = before[0] + requests, before[1] + tokens
        self._parts.registry.hear_elsewhere(total)
        for url, keys in self._rings.hear(self._index):
            self._parts.index.record(keys, url, heard=True)
