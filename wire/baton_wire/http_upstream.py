"""One client connection: writes a request, feeds the answer to its call, and says whether it may be used again."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

import httptools

from baton_api.errors import BatonError, WorkerProtocolError
from baton_wire.http_limits import ClientLimits


def connection_lost_error(detail: str) -> WorkerProtocolError:
    return WorkerProtocolError(f"the connection was lost {detail}", code="connection_lost")


class Call(Protocol):
    """Who waits for the answer. After `on_end` or `on_error` nothing more is called."""

    head_only: bool

    def on_head(self, status: int, headers: dict[str, str]) -> None: ...
    def on_data(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_error(self, error: BatonError) -> None: ...


class Owner(Protocol):
    """The pool, as a connection sees it."""

    reads: int

    def connection_free(self, upstream: Upstream) -> None: ...
    def connection_closed(self, upstream: Upstream) -> None: ...


class Upstream(asyncio.Protocol):
    """One call at a time. `fresh` until the first has ended; `silent` while no byte of the current answer has come."""

    __slots__ = (
        "_call", "_coding_bytes", "_collecting", "_head_bytes", "_head_told", "_headers", "_informational",
        "_keep_alive",
        "_limits", "_message_done",
        "_owner", "_parser", "_parts", "_reading_paused", "_status", "_until_close", "fresh",
        "idle_since", "on_body", "silent", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, owner: Owner, limits: ClientLimits) -> None:
        self._owner = owner
        self._limits = limits
        self._call: Call | None = None
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # called by the parser: no Python frame per chunk
        self._headers: dict[str, str] | None = None  # of the answer whose head is complete
        self._collecting: dict[str, str] = {}
        self._parser = httptools.HttpResponseParser(self)
        self._head_told = False
        self._status = 0
        self._message_done = False
        self._keep_alive = False
        self._informational = False
        self._until_close = False
        self._head_bytes = 0
        self._coding_bytes = 0
        self.fresh = True
        self.silent = True
        self._reading_paused = False
        self.idle_since = 0.0

    def send(self, call: Call, request: bytes) -> None:
        """Begins a call on an idle connection."""
        self._call = call
        self._headers = None
        self._head_told = False
        self._message_done = False
        self._until_close = False
        self._head_bytes = self._coding_bytes = 0
        self.silent = True
        self.transport.write(request)

    def abandon(self) -> None:
        """For a connection whose maker was cancelled: it may be open all the same."""
        if hasattr(self, "transport"):
            self.transport.abort()

    def detach(self) -> None:
        """Forgets the call and breaks the connection: the server sees that nobody waits."""
        self._call = None
        self.transport.abort()

    def pause(self) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        connected, size_bytes = transport.get_extra_info("socket"), self._limits.receive_buffer_bytes
        if connected is not None and size_bytes is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        call, self._call = self._call, None
        self._owner.connection_closed(self)
        if call is None:
            return
        if self._until_close and exc is None:
            call.on_end()
        else:
            call.on_error(connection_lost_error("before the answer" if self.silent else "in the middle of the answer"))

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        self._owner.reads += 1
        call = self._call
        if call is None:
            self.transport.abort()  # nobody asked: an answer without a request
            return
        self.silent = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(call, f"the answer is not HTTP/1.1: {error}")
            return
        if not self._head_told and not self._tell_head(call, data):
            return
        parts = self._parts
        if parts:
            payload = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._coding_bytes = 0
            call.on_data(payload)
        elif not self._message_done:
            self._check_coding_size(call, data)
        if self._message_done and self._call is call:
            self._complete(call)

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headers is not None:
            return  # a trailer
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        collecting = self._collecting
        collecting[key] = f"{collecting[key]}, {text}" if key in collecting else text

    def on_headers_complete(self) -> None:
        headers, self._collecting = self._collecting, {}
        status = self._parser.get_status_code()
        self._informational = 100 <= status < 200
        if self._informational:
            return
        if self._headers is not None:
            raise ValueError("a second answer to one request")
        if not 200 <= status <= 599:
            raise ValueError(f"status {status}")
        coding = headers.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise ValueError("a transfer coding other than chunked")
        self._headers, self._status = headers, status
        self._until_close = coding is None and "content-length" not in headers and status not in (204, 304)

    def on_message_complete(self) -> None:
        if self._informational:
            self._informational = False
        else:
            self._message_done = True
            self._keep_alive = self._parser.should_keep_alive()  # only known until the parser looks further

    # Ends

    def _tell_head(self, call: Call, data: bytes) -> bool:
        """True when the head is complete and the call still wants the rest."""
        if self._headers is None:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self._fail(call, f"the head of the answer exceeds {self._limits.max_head_bytes} bytes")
            return False
        self._head_told = True
        if call.head_only:
            self._message_done = True
        call.on_head(self._status, self._headers)
        return self._call is call

    def _check_coding_size(self, call: Call, data: bytes) -> None:
        self._coding_bytes += len(data)
        if self._coding_bytes > self._limits.max_coding_bytes:
            self._fail(call, f"more than {self._limits.max_coding_bytes} bytes of chunk coding without payload")

    def _complete(self, call: Call) -> None:
        self._call = None
        self.fresh = False
        if self._keep_alive and not call.head_only and not self.transport.is_closing():
            self.resume()
            self._owner.connection_free(self)
        else:
            self.transport.abort()  # not close: the rest of a request nobody reads would be flushed for ever
        call.on_end()

    def _fail(self, call: Call, message: str) -> None:
        if self._call is not call:
            return
        self._call = None
        self.transport.abort()
        call.on_error(WorkerProtocolError(message, code="bad_answer"))
