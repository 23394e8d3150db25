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
        self._told: dict[str, int] = {}

    def take(self) -> None:
        self._telemetry.set("baton_gateway_tasks", len(asyncio.all_tasks()))
        self._telemetry.set("baton_gateway_connections", self._server.connections)
        for reason, count in self._server.refused.items():
            self._telemetry.count("baton_gateway_unread_total", reason, amount=count - self._told.get(reason, 0))
            self._told[reason] = count
