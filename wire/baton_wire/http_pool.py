"""Keep-alive connections to one peer: bounded in number, the last used first, waiting calls in order."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from baton_api.errors import BatonError, NoCapacity, WorkerProtocolError
from baton_wire.http_limits import ClientLimits
from baton_wire.http_upstream import Upstream


class Applicant(Protocol):
    """A call that wants a connection."""

    aborted: bool

    def connected(self, upstream: Upstream) -> None: ...
    def on_error(self, error: BatonError) -> None: ...


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How connections are encrypted. `server_name`: whom the certificate must name; None: the host."""

    context: ssl.SSLContext
    server_name: str | None = None


Spawn = Callable[[Coroutine[None, None, None]], None]


class Pool:
    """`acquire` calls `applicant.connected`, at once when an idle connection is there, or `on_error`."""

    def __init__(self, host: str, port: int, limits: ClientLimits, spawn: Spawn, tls: ClientTls | None = None) -> None:
        self._host = host
        self._port = port
        self._limits = limits
        self._spawn = spawn
        self._tls = None if tls is None else tls.context
        self._server_name = None if tls is None else tls.server_name or host
        self._loop = asyncio.get_running_loop()
        self._idle: list[Upstream] = []
        self._open: set[Upstream] = set()
        self._connecting: set[Applicant] = set()
        self._waiting: deque[Applicant] = deque()
        self.reads = 0

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def unused(self) -> bool:
        return not self._open and not self._connecting and not self._waiting

    def acquire(self, applicant: Applicant, *, fresh: bool = False) -> None:
        """`fresh` asks for a new connection, for the repetition of a request whose idle one was closed under it."""
        while self._idle and not fresh:
            upstream = self._idle.pop()
            if not upstream.transport.is_closing():
                applicant.connected(upstream)
                return
        if len(self._open) + len(self._connecting) < self._limits.max_connections_per_peer:
            self._connecting.add(applicant)
            self._spawn(self._connect(applicant))
        elif len(self._waiting) < self._limits.max_waiting_per_peer:
            self._waiting.append(applicant)
        else:
            applicant.on_error(NoCapacity(f"too many requests wait for {self._host}:{self._port}", code="pool_full"))

    async def _connect(self, applicant: Applicant) -> None:
        upstream = Upstream(self, self._limits)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await self._loop.create_connection(
                    lambda: upstream, self._host, self._port, ssl=self._tls, server_hostname=self._server_name
                )
        except asyncio.CancelledError:
            upstream.abandon()
            raise
        except OSError as error:  # TimeoutError is one
            upstream.abandon()
            self._connecting.discard(applicant)
            why = str(error) or f"no connection in {self._limits.connect_timeout_s:g} s"
            self._connect_failed(applicant, f"cannot connect to {self._host}:{self._port}: {why}")
            return
        self._connecting.discard(applicant)
        self._open.add(upstream)
        if applicant.aborted:
            self.connection_free(upstream)
        else:
            applicant.connected(upstream)

    def _connect_failed(self, applicant: Applicant, message: str) -> None:
        self._serve_waiting()
        if not applicant.aborted:
            applicant.on_error(WorkerProtocolError(message, code="connect_failed"))

    def _next_waiting(self) -> Applicant | None:
        while self._waiting:
            applicant = self._waiting.popleft()
            if not applicant.aborted:
                return applicant
        return None

    def _serve_waiting(self) -> None:
        """Room for one more connection."""
        applicant = self._next_waiting()
        if applicant is not None:
            self.acquire(applicant)

    # Owner of connections

    def connection_free(self, upstream: Upstream) -> None:
        applicant = self._next_waiting() if self._waiting else None
        if applicant is not None:
            applicant.connected(upstream)
        elif len(self._idle) < self._limits.max_idle_per_peer:
            upstream.idle_since = self._loop.time()
            self._idle.append(upstream)
        else:
            upstream.transport.close()

    def connection_closed(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        self._serve_waiting()

    def close_idle(self, before: float) -> None:
        """Closes what has been idle since before that loop time."""
        while self._idle and self._idle[0].idle_since < before:
            self._idle.pop(0).transport.close()

    def abort_all(self, error: BatonError) -> None:
        """Every waiting and running call ends with an error. The caller cancels the connecting tasks before."""
        applicants = [*self._waiting, *self._connecting]
        self._waiting.clear()
        self._connecting.clear()
        for applicant in applicants:
            if not applicant.aborted:
                applicant.on_error(error)
        self._idle.clear()
        for upstream in tuple(self._open):
            upstream.transport.abort()
