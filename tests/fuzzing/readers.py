"""One byte stream, two readers of requests: our server's connection and h11.

Smuggling lives where two readers disagree. Ours may refuse more than h11, never less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import h11

from baton_wire.http_server import Exchange, HttpServer, ServerLimits
from support.wire import Line

REFUSALS = frozenset({400, 413, 415, 417, 431})


@dataclass(frozen=True, slots=True)
class Read:
    """One request as a reader understood it; header names in lower case, repeated ones joined."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class OurReader:
    """Many connections of one server that does not listen. Make it inside a running event loop."""

    def __init__(self) -> None:
        self._seen: list[Read] = []
        self._server = HttpServer(self._keep, ServerLimits())

    def _keep(self, exchange: Exchange) -> None:
        headers = _comparable(exchange.headers.items())
        self._seen.append(Read(exchange.method, exchange.target, headers, exchange.body))
        exchange.respond(200, b"")

    def read(self, pieces: Iterable[bytes]) -> list[Read]:
        """The requests that reached the handler, in order. AssertionError for an answer that must not be."""
        self._seen = []
        line = Line(self._keep, server=self._server)
        line.feed(*pieces)
        refused = [status for status in line.statuses if status != 200 and status != 100]
        assert len(refused) <= 1 and REFUSALS.issuperset(refused), line.statuses
        assert not refused or line.ended, "a refusal that leaves the connection open"
        line.connection.connection_lost(None)
        assert self._server.connections == 0 and self._server.bodies.held_bytes == 0
        return self._seen


def read_by_us(pieces: list[bytes]) -> list[Read]:
    async def read() -> list[Read]:
        return OurReader().read(pieces)

    return asyncio.run(read())


def read_by_h11(raw: bytes) -> Iterator[Read]:
    """The requests that h11 accepts, until it refuses or needs more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    while True:
        try:
            request = _complete_request(connection)
            if request is None:
                return
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            yield request
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            return


def _complete_request(connection: h11.Connection) -> Read | None:
    request, body = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            headers = _comparable((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers)
            return Read(request.method.decode(), request.target.decode("latin-1"), headers, body)
        else:
            return None


def _comparable(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        value = value.lower() if name in ("transfer-encoding", "expect", "connection") else value
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
