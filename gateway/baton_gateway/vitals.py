"""What is told of the process itself at scrape time: tasks, connections, what its HTTP server refused unread."""

from __future__ import annotations

import asyncio

from baton_wire.http_server import HttpServer

from .telemetry import Telemetry


class Vitals:
    """`take` before each exposition."""

    def __init__(self, telemetry: Telemetry, server: HttpServer) -> None:
        self._telemetry = telemetry
        self._server = server
        self._told: dict[tuple[str, ...], int] = {}

    def take(self) -> None:
        self._tell(len(asyncio.all_tasks()), "baton_gateway_tasks")
        self._tell(self._server.connections, "baton_gateway_connections")
        for reason, count in self._server.refused.items():
            self._tell(count, "baton_gateway_unread_total", reason)

    def _tell(self, value: int, *series: str) -> None:
        """As a difference: that is the same for counters and gauges."""
        self._telemetry.count(*series, amount=value - self._told.get(series, 0))
        self._told[series] = value
