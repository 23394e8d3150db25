"""One call to a peer, as callbacks: the way of the hot path, and what the other ways are made of."""

from __future__ import annotations

from typing import Protocol

from baton_api.errors import BatonError
from baton_wire.http_pool import Pool
from baton_wire.http_upstream import Upstream


class RelaySink(Protocol):
    """Who an answer is relayed to. `on_data` gets payload without the chunked coding, joined per read."""

    def on_head(self, status: int, headers: dict[str, str]) -> None: ...
    def on_data(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_error(self, error: BatonError) -> None: ...


class RelayHandle:
    """One call under way. Repeats its request once when a reused connection closes before a byte of the answer came."""

    __slots__ = (
        "_fresh",
        "_pool",
        "_repeatable",
        "_request",
        "_sink",
        "_upstream",
        "aborted",
        "head_only",
        "on_data",
        "paused",
    )

    def __init__(self, pool: Pool, request: bytes, sink: RelaySink, *, head_only: bool, repeatable: bool) -> None:
        self._pool = pool
        self._request = request
        self._sink = sink
        self.on_data = sink.on_data  # one Python call less for each chunk
        self._upstream: Upstream | None = None
        self._repeatable = repeatable
        self._fresh = True
        self.head_only = head_only
        self.aborted = False
        self.paused = False

    def abort(self) -> None:
        """Forgets the request and closes the upstream connection. After the end it does nothing."""
        self.aborted = True
        self._request = b""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.detach()

    def pause(self) -> None:
        """Stops reading, so that the upstream's writer feels the back-pressure."""
        if not self.paused:
            self.paused = True
            if self._upstream is not None:
                self._upstream.pause()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self._upstream is not None:
                self._upstream.resume()

    # Called by the pool and the connection.

    def connected(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._fresh = upstream.fresh
        upstream.send(self, self._request)
        if self.paused:
            upstream.pause()

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self._request = b""  # it will not be repeated, and the answer may take minutes
        self._sink.on_head(status, headers)

    def on_end(self) -> None:
        self._upstream = None
        self._sink.on_end()

    def on_error(self, error: BatonError) -> None:
        upstream, self._upstream = self._upstream, None
        raced = upstream is not None and upstream.silent and not self._fresh and error.code == "connection_lost"
        if raced and self._repeatable:
            self._repeatable = False
            self._pool.acquire(self, fresh=True)
        else:
            self._request = b""
            self._sink.on_error(error)
