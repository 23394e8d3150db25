"""One request and its answer, as a handler sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from baton_api.errors import BatonError

from baton_wire.http_answer import LAST_CHUNK, error_body, error_headers, has_no_body, render_head
from baton_wire.http_head import RequestHead

if TYPE_CHECKING:
    from baton_wire.http_connection import Connection


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
        "_connection", "_gone_callbacks", "_head", "_keep_alive", "_no_body", "_pause", "_resume",
        "body", "ended", "gone", "headers", "method", "path", "peer", "query", "started", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        self._connection = connection
        self._head = head
        self._keep_alive = head.keep_alive
        self._no_body = head.method == "HEAD"
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
        self._begin()
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
        """Opens an answer of unknown length: chunked, or ended by the close for an HTTP/1.0 client."""
        if self.gone:
            return
        self._begin()
        if has_no_body(status):
            self._no_body = True
            coding = ""
        else:
            coding = "transfer-encoding: chunked\r\n" if self._head.http11 else ""
        head = render_head(status, headers, coding + self._connection_lines())
        self.started = True
        self._connection.transport.write(head)

    def write(self, data: bytes) -> None:
        """One chunk. Dropped once the client is gone; raises RuntimeError before `start`."""
        if self.gone or self.ended or self._no_body or not data:
            return
        if not self.started:
            raise RuntimeError("write before start")
        connection = self._connection
        connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._head.http11 else data)
        if connection.paused_since is not None:
            connection.check_write_buffer()

    async def drain(self) -> None:
        """Returns when the write buffer is below its mark. Raises ClientGone."""
        if not self.gone and self._connection.paused_since is not None:
            await self._connection.writable()
        if self.gone:
            raise ClientGone("the client closed the connection")

    def end(self) -> None:
        """Completes a started answer; a second call does nothing. Raises RuntimeError before `start`."""
        if self.gone or self.ended:
            return
        if not self.started:
            raise RuntimeError("end before start")
        if self._head.http11 and not self._no_body:
            self._connection.transport.write(LAST_CHUNK)
        self._finish()

    def abort(self) -> None:
        """Breaks the answer off: what was written is sent, the end is not, so that the client sees a broken stream."""
        if self.gone or self.ended:
            return
        self.ended = True
        # Without a chunked coding an orderly close would read as the end: only a reset tells the client.
        self._connection.cut(reset=not self._head.http11 or not self.started)

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

    def connection_gone(self) -> None:
        self.gone = True
        self._pause = self._resume = None
        callbacks, self._gone_callbacks = self._gone_callbacks, []
        for callback in callbacks:
            callback()

    def writing_paused(self) -> None:
        if self._pause is not None:
            self._pause()

    def writing_resumed(self) -> None:
        if self._resume is not None:
            self._resume()

    def _begin(self) -> None:
        if self.started or self.ended:
            raise RuntimeError("the request is answered already")

    def _connection_lines(self) -> str:
        lines: str = self._connection.date_line
        if not self._keep_alive or self._connection.closing:
            self._keep_alive = False
            return lines + "connection: close\r\n"
        return lines

    def _finish(self) -> None:
        self.ended = True
        self._pause = self._resume = None
        self._connection.exchange_ended(self._keep_alive)
