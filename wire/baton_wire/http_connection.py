"""One server connection: cuts requests out of the byte stream, runs them in order, watches clock and buffers."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import logging
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from baton_api.errors import BatonError, ClientTooSlow, HeadersTooLarge, TooLarge
from baton_wire.http_answer import CONTINUE, error_body, error_headers, render_head
from baton_wire.http_body import ChunkedBody, LengthBody
from baton_wire.http_exchange import Exchange
from baton_wire.http_head import RequestHead, check_partial_head, parse_request_head

if TYPE_CHECKING:
    from baton_wire.http_server import HttpServer

_log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """What the connection waits for."""

    IDLE = enum.auto()  # the first byte of a request
    HEAD = enum.auto()  # the rest of a head
    BODY = enum.auto()  # the rest of a body
    BUSY = enum.auto()  # the handler
    LINGER = enum.auto()  # the client to read the refusal; what it sends is discarded
    CLOSED = enum.auto()  # the last bytes to leave


_REQUESTS_A_TURN = 8  # of the event loop, of one connection
_ESTABLISHED = 1  # tcpi_state of tcp(7), from the kernel's tcp_states.h
_UNCOUNTED_BYTES = 16 * 1024  # a smaller body that came with its head: 64 MiB for 4096 connections
# Looked up on every request: a module global is a third of the cost of an enum attribute.
IDLE, HEAD, BODY, BUSY, LINGER, CLOSED = Phase


class Connection(asyncio.Protocol):
    """See the module. `paused_since`: the write buffer is above its mark, and the loop time when the client last took
    something of it, as far as was looked."""

    __slots__ = (
        "_advancing", "_body", "_buffer", "_checked_bytes", "_discarded_bytes", "_exchange", "_first", "_head",
        "_held_bytes", "_host", "_left_bytes", "_limits", "_loop", "_phase", "_reading_paused", "_server", "_since",
        "_waiters", "paused_since", "peer", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = server.loop
        self._phase = IDLE
        self._first = True
        self._since = self._loop.time()  # start of the phase; of a body's, plus what came at the least rate
        self._buffer = b""  # unread bytes: a partial head, or what came ahead of its turn
        self._advancing = False
        self._reading_paused = False
        self._checked_bytes = 0  # of a partial head
        self._head: RequestHead | None = None  # whose body is awaited
        self._body: LengthBody | ChunkedBody | None = None
        self._held_bytes = 0  # of the server's budget for bodies
        self._discarded_bytes = 0
        self._left_bytes = 0  # of answers, here and in the kernel, when it was looked at last
        self._exchange: Exchange | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.paused_since: float | None = None
        self.peer = self._host = ""

    @property
    def winding_down(self) -> bool:
        return self._server.winding_down

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    @property
    def date_line(self) -> str:
        return self._server.date_line

    @property
    def idle(self) -> bool:
        return self._phase is IDLE

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.transport.set_write_buffer_limits(high=self._limits.write_high_water_bytes)
        address = transport.get_extra_info("peername")
        self._host, port = address[:2] if isinstance(address, tuple) else ("", 0)
        self.peer = f"{self._host}:{port}" if self._host else ""
        refusal = self._server.admit(self, self._host)
        if refusal is not None and not self.transport.is_closing():
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = CLOSED
        self._buffer = b""
        self.paused_since = None
        self._let_go_of_body()
        self._server.forget(self, self._host)
        self._client_gone()
        self._wake()

    def eof_received(self) -> bool:
        self._client_gone()
        return False

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is IDLE or phase is HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            if self.paused_since is None and not self._advancing:
                self._advance()
            else:
                self._bound_read_ahead()
        elif phase is BODY:
            self._take_body(data)
            self._advance()
        elif phase is BUSY:
            self._buffer += data
            self._bound_read_ahead()
        elif phase is LINGER:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > 4 * self._limits.max_body_bytes:
                self.transport.abort()

    def pause_writing(self) -> None:
        self.paused_since = self._loop.time()
        if self._exchange is not None:
            self._exchange.writing_paused()

    def resume_writing(self) -> None:
        self.paused_since = None
        self._wake()
        if self._exchange is not None:
            self._exchange.writing_resumed()
        else:
            self._let_go_of_body()
            self._resume_reading()
            self._advance()

    # Requests

    def _advance(self) -> None:
        """Takes requests off the buffer while they are answered at once; a loop, lest a pipeline become a recursion,
        and a short one, lest thousands of them hold everybody else up."""
        if self._advancing:
            return
        self._advancing, more = True, False
        try:
            for _ in range(_REQUESTS_A_TURN):
                may = self._buffer and (self._phase is IDLE or self._phase is HEAD) and self.paused_since is None
                if not (may and self._take_head()):
                    break
            else:
                more = True
        finally:
            self._advancing = more
        if more:
            self._loop.call_soon(self._go_on)
            self._bound_read_ahead()

    def _go_on(self) -> None:
        self._advancing = False
        self._advance()

    def _take_head(self) -> bool:
        """True when a head was taken; the request may then be running, or its body awaited."""
        buffer = self._buffer
        limit = self._limits.max_header_bytes
        end = buffer.find(b"\r\n\r\n", 0, limit)
        if end < 0:
            self._await_head(buffer, limit)
            return False
        end += 4
        try:
            head = parse_request_head(buffer[:end], self._limits)
            if head.content_length > self._limits.max_body_bytes:
                raise TooLarge(f"the body exceeds {self._limits.max_body_bytes} bytes")
        except BatonError as error:
            self._refuse(error)
            return False
        self._checked_bytes = 0
        length = head.content_length
        if head.chunked or length > len(buffer) - end:
            self._await_body(head, buffer[end:])
        else:
            if length > _UNCOUNTED_BYTES and not self._hold(length):
                return False
            self._buffer = buffer[end + length :]
            self._dispatch(head, buffer[end : end + length])
        return True

    def _await_head(self, partial: bytes, limit: int) -> None:
        try:
            check_partial_head(partial[:limit], self._checked_bytes)
            if len(partial) >= limit:
                raise HeadersTooLarge(f"the request head exceeds {limit} bytes")
        except BatonError as error:
            self._refuse(error)
            return
        self._checked_bytes = len(partial)
        if self._phase is IDLE:
            if not self._first:
                self._since = self._loop.time()
            self._phase = HEAD

    def _await_body(self, head: RequestHead, available: bytes) -> None:
        if self._server.screen is not None:
            try:
                self._server.screen(head)
            except BatonError as error:
                self._refuse(error)
                return
        self._buffer = b""
        self._phase = BODY
        self._since = self._loop.time()
        self._resume_reading()
        self._head = head
        self._body = ChunkedBody(self._limits.max_body_bytes) if head.chunked else LengthBody(head.content_length)
        if head.expect_continue and not available:
            self.transport.write(CONTINUE)
        if available:
            self._take_body(available)

    def _take_body(self, data: bytes) -> None:
        head, body = self._head, self._body
        assert head is not None and body is not None
        try:
            body.feed(data)
            new_bytes = body.received_bytes - self._held_bytes
            self._server.bodies.take(new_bytes)
            self._held_bytes += new_bytes
        except BatonError as error:
            self._refuse(error)
            return
        self._since = min(self._loop.time(), self._since + new_bytes / self._limits.body_min_bytes_per_s)
        if body.done:
            self._buffer = body.rest
            self._head = self._body = None
            self._dispatch(head, body.body())

    def _hold(self, size_bytes: int) -> bool:
        """Whether the server's budget has room for a body that is here already; else it is refused."""
        try:
            self._server.bodies.take(size_bytes)
        except BatonError as error:
            self._refuse(error)
            return False
        self._held_bytes = size_bytes
        return True

    def _hold_answer(self) -> bool:
        """Whether the server's budget has room for what is not sent yet of a whole answer; else the client is cut."""
        size_bytes = self.transport.get_write_buffer_size()
        try:
            self._server.bodies.take(size_bytes)
        except BatonError:
            self._cut_reader("answers_full", f"{size_bytes} bytes of its answer have no room")
            return False
        self._held_bytes = size_bytes
        return True

    def _let_go_of_body(self) -> None:
        self._server.bodies.give(self._held_bytes)
        self._held_bytes = 0
        self._head = self._body = None

    def _dispatch(self, head: RequestHead, body: bytes | bytearray) -> None:
        self._phase = BUSY
        self._first = False
        exchange = self._exchange = Exchange(self, head, body)
        try:
            running = self._server.handler(exchange)
        except Exception as error:
            exchange.fail(error)
            return
        if running is not None:
            self._server.run(self._supervise(exchange, running))

    async def _supervise(self, exchange: Exchange, running: Awaitable[None]) -> None:
        try:
            await running
            if not exchange.ended and not exchange.gone:
                raise RuntimeError("the handler returned without an answer")
        except asyncio.CancelledError:
            exchange.abort()
            raise
        except Exception as error:
            exchange.fail(error)

    def exchange_ended(self, keep_alive: bool) -> None:
        """The answer is in the write buffer; on to the next request, or the close."""
        self._exchange = None
        if self._held_bytes:
            self._let_go_of_body()
        if self.paused_since is not None and not self._hold_answer():
            return
        if not keep_alive or self._server.winding_down:
            self._close()
            return
        self._phase = IDLE
        self._since = self._loop.time()
        if self._reading_paused and len(self._buffer) <= self._limits.max_pipelined_bytes:
            self._resume_reading()
        if self._buffer:
            self._advance()

    # Ends

    def _refuse(self, error: BatonError) -> None:
        """Answers what never became a request, then lingers: closing on unread bytes resets and loses the answer."""
        self._server.refused[error.code or error.reason] += 1
        body = error_body(error)
        framing = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{self.date_line}connection: close\r\n"
        )
        self.transport.write(render_head(error.http_status, error_headers(error), framing) + body)
        self._buffer = b""
        self._let_go_of_body()
        self._phase = LINGER
        self._since = self._loop.time()
        self.transport.write_eof()

    def cut(self, reset: bool) -> None:
        """Ends the connection in the middle of an answer."""
        self._exchange = None
        self._let_go_of_body()
        if reset:
            self.transport.abort()
        self._close()

    def close_if_idle(self) -> None:
        if self._phase is IDLE:
            self._close()

    def _close(self) -> None:
        self._phase = CLOSED
        self._since = self._loop.time()
        self._buffer = b""
        self.transport.close()

    def _client_gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection_gone()

    # Clock and buffers

    def check_clock(self, now: float) -> None:
        """Called by the server's sweep with the loop's time."""
        limits = self._limits
        if (self.paused_since is not None or self._phase is CLOSED) and self._client_took_some():
            if self.paused_since is not None:
                self.paused_since = now
            if self._phase is CLOSED:
                self._since = now
        waited_s = now - self._since
        if self.paused_since is not None and now - self.paused_since > limits.write_stall_s:
            self._cut_reader("reader_stalled", f"it took nothing of its answer for {limits.write_stall_s:g} s")
        elif self._phase is IDLE and waited_s > (limits.header_timeout_s if self._first else limits.idle_timeout_s):
            self._close()
        elif self._phase is HEAD and waited_s > limits.header_timeout_s:
            self._refuse(ClientTooSlow(f"no complete request head in {limits.header_timeout_s:g} s"))
        elif self._phase is BODY and waited_s > limits.body_grace_s:
            self._refuse(ClientTooSlow(f"the body comes slower than {limits.body_min_bytes_per_s:g} bytes/s"))
        elif (
            (self._phase is LINGER and waited_s > limits.linger_s)
            or (self._phase is CLOSED and waited_s > limits.write_stall_s)
            or (self._phase is BUSY and self._reading_paused and self._client_closed())
        ):
            self.transport.abort()

    def _client_closed(self) -> bool:
        """Its end lies behind what it sent ahead, which is not read."""
        connected = self.transport.get_extra_info("socket")
        if connected is None or not hasattr(socket, "TCP_INFO"):
            return False
        with contextlib.suppress(OSError, ValueError):
            return bool(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)
        return False

    def _client_took_some(self) -> bool:
        """Since the last look: less is left of what was written, here and unacknowledged in the kernel."""
        left = self.transport.get_write_buffer_size()
        connected = self.transport.get_extra_info("socket")
        if connected is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, and `connection_lost` is still to come
                left += int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
        before, self._left_bytes = self._left_bytes, left
        return left < before

    def _cut_reader(self, reason: str, told: str) -> None:
        _log.warning("cut %s: %s", self.peer, told)
        self._server.refused[reason] += 1
        self.transport.abort()

    def _bound_read_ahead(self) -> None:
        if len(self._buffer) > self._limits.max_pipelined_bytes and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def check_write_buffer(self) -> None:
        """Cuts a client whose writer ignores back-pressure."""
        if self.transport.get_write_buffer_size() > self._limits.max_write_buffer_bytes:
            _log.warning("cut %s: its write buffer passed %d bytes", self.peer, self._limits.max_write_buffer_bytes)
            self.transport.abort()

    async def writable(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
