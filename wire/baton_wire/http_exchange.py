"""One request and its answer, as a handler sees them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from baton_api.errors import BatonError, InternalError
from baton_wire.http_answer import LAST_CHUNK, declared_length, error_body, error_headers, has_no_body, render_head
from baton_wire.http_head import RequestHead

if TYPE_CHECKING:
    from baton_wire.http_connection import Connection

_log = logging.getLogger(__name__)
_ANSWERED = "the request is answered already"


class ClientGone(BatonError):
    """The client closed the connection before the answer's end. Never sent; a handler may let it pass through."""

    http_status = 499
    reason = "client_gone"


class Exchange:
    """A complete request (`body` included) and the one answer to it: `respond`, or `start`, `write`..., `end`.

    After the client is gone nothing raises except `drain`: writes are dropped. `peer` is `host:port`. Header names are
    lower case, repeated ones joined by ", ".
    """

    __slots__ = (
        "_connection", "_gone_callbacks", "_head", "_keep_alive", "_no_body", "_opening", "_pause", "_remaining_bytes",
        "_resume", "body", "ended", "gone", "headers", "method", "path", "peer", "query", "started", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection, head: RequestHead, body: bytes | bytearray) -> None:
        self._connection = connection
        self._head = head
        self._keep_alive = head.keep_alive
        self._no_body = head.method == "HEAD"
        self._opening = b""  # the head of a started answer, held for its first chunk or the next turn of the loop
        self._remaining_bytes: int | None = None  # of a started answer with a declared length
        self._gone_callbacks: list[Callable[[], None]] = []
        self._pause: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None
        self.method = head.method
        self.target = head.target
        self.path, _, self.query = head.target.partition("?")
        self.headers = head.headers
        self.body = body
        self.peer = connection.peer
        self.started = False
        self.ended = False
        self.gone = False

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Sequence[tuple[str, str]] = (),
        content_type: str = "application/json",
    ) -> None:
        """The whole answer. Raises ValueError for a header with a line break, RuntimeError for a second answer."""
        if self.gone:
            return
        if self.started or self.ended:
            raise RuntimeError(_ANSWERED)
        if has_no_body(status):
            head = render_head(status, headers, self._connection_lines())
            body = b""
        else:
            framing = f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{self._connection_lines()}"
            head = render_head(status, headers, framing)
        self.started = True
        self._connection.transport.write(head if self._no_body else head + body)
        self._finish()

    def respond_error(self, error: BatonError) -> None:
        """OpenAI's error body with the error's own status, `Retry-After` and `x-should-retry`."""
        self.respond(error.http_status, error_body(error), error_headers(error))

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Opens an answer that comes in pieces: of the length that `headers` declare, else chunked.

        An HTTP/1.0 client gets no chunks; the close ends its answer. Raises as `respond` does.
        """
        if self.gone:
            return
        if self.started or self.ended:
            raise RuntimeError(_ANSWERED)
        self._no_body = self._no_body or has_no_body(status)
        length = declared_length(headers)
        if length is not None:
            framing = f"content-length: {length}\r\n"
        elif self._head.http11 and not has_no_body(status):
            framing = "transfer-encoding: chunked\r\n"
        else:
            framing = ""
            self._keep_alive = self._keep_alive and self._no_body
        self._opening = render_head(status, headers, framing + self._connection_lines())
        self._remaining_bytes = length
        self.started = True
        self._connection.call_soon(self._flush)

    def write(self, data: bytes) -> None:
        """One chunk. Dropped once the client is gone. RuntimeError before `start` or past a declared length."""
        if self.gone or self.ended or self._no_body or not data:
            return
        if not self.started:
            raise RuntimeError("write before start")
        if self._remaining_bytes is not None:
            self._spend(len(data))
        elif self._head.http11:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._opening:
            data, self._opening = self._opening + data, b""
        connection = self._connection
        connection.transport.write(data)
        if connection.paused_since is not None:
            connection.check_write_buffer()

    async def drain(self) -> None:
        """Returns when the write buffer is below its mark. Raises ClientGone."""
        if not self.gone and self._connection.paused_since is not None:
            await self._connection.writable()
        if self.gone:
            raise ClientGone("the client closed the connection")

    def end(self) -> None:
        """Completes a started answer, or breaks it off short of its declared length. A second call does nothing.

        Raises RuntimeError before `start`.
        """
        if self.gone or self.ended:
            return
        if not self.started:
            raise RuntimeError("end before start")
        if self._remaining_bytes and not self._no_body:
            self.abort()
            return
        last = LAST_CHUNK if self._remaining_bytes is None and self._head.http11 and not self._no_body else b""
        if self._opening or last:
            self._connection.transport.write(self._opening + last)
            self._opening = b""
        self._finish()

    def abort(self) -> None:
        """Breaks the answer off: what was written is sent, the end is not, so that the client sees a broken stream."""
        if self.gone or self.ended:
            return
        self._flush()
        self.ended = True
        self._forget_callbacks()
        # Without a length or chunks an orderly close would read as the end: only a reset tells the client.
        unframed = not self._head.http11 and self._remaining_bytes is None
        self._connection.cut(reset=unframed or not self.started)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Calls back once if the client leaves before the end (or closes its sending half); at once if it has left."""
        if self.gone:
            callback()
        else:
            self._gone_callbacks.append(callback)

    def on_writable(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Calls `pause` when the write buffer passes its mark and `resume` when it has drained; for relays."""
        self._pause, self._resume = pause, resume
        if self._connection.paused_since is not None and not self.gone:
            pause()

    # Called by the connection.

    def fail(self, error: Exception) -> None:
        """The handler raised: its answer is the error's, or a broken-off one if it has started."""
        if not isinstance(error, BatonError):
            request_id = self.headers.get("x-request-id", "")[:100] or os.urandom(8).hex()
            _log.error("request %s (%s %s) failed", request_id, self.method, self.path, exc_info=error)
            error = InternalError(f"internal error (request {request_id})")
        if self.started or self.ended or isinstance(error, ClientGone):
            self.abort()
        else:
            self.respond_error(error)

    def connection_gone(self) -> None:
        self.gone = True
        callbacks = self._gone_callbacks
        self._forget_callbacks()
        for callback in callbacks:
            callback()

    def writing_paused(self) -> None:
        if self._pause is not None:
            self._pause()

    def writing_resumed(self) -> None:
        if self._resume is not None:
            self._resume()

    def _flush(self) -> None:
        if self._opening and not self.gone:
            self._connection.transport.write(self._opening)
            self._opening = b""

    def _spend(self, size_bytes: int) -> None:
        assert self._remaining_bytes is not None
        if size_bytes > self._remaining_bytes:
            self.abort()
            raise RuntimeError("the answer is longer than its declared content-length")
        self._remaining_bytes -= size_bytes

    def _forget_callbacks(self) -> None:
        # They lead to the relay and back to here: a cycle on each request would keep the garbage collector busy.
        self._pause = self._resume = None
        self._gone_callbacks = []

    def _connection_lines(self) -> str:
        lines: str = self._connection.date_line
        if not self._keep_alive or self._connection.winding_down:
            self._keep_alive = False
            return lines + "connection: close\r\n"
        return lines

    def _finish(self) -> None:
        self.ended = True
        self._forget_callbacks()
        self._connection.exchange_ended(self._keep_alive)
