"""Collects a request body: of a known length, or in the chunked transfer coding (RFC 9112 section 7.1). Pure.

Both collectors: `feed` until `done`; then `body()` is the body and `rest` what followed it.
Chunk extensions are ignored, trailers are checked and dropped. The number of chunks is bounded by the bytes they carry:
a body in one-byte chunks would cost a hundred times its size in CPU.
"""

from __future__ import annotations

import re

from baton_api.errors import BadRequest, NoCapacity, TooLarge

_MAX_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8 * 1024
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 64

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e]*+)?\r\n")
_TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
# RFC 9110 section 6.5.1: what frames, routes or authenticates has no place in trailers; h11 reads some of them.
_FORBIDDEN_TRAILER = re.compile(rb"(?:^|\n)(?i:content-length|transfer-encoding|host|authorization|expect):")


class BodyBudget:
    """The bytes that all bodies of a server may hold together."""

    __slots__ = ("_limit_bytes", "held_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises NoCapacity, and takes nothing, when the budget is spent."""
        if self.held_bytes + size_bytes > self._limit_bytes:
            raise NoCapacity("too many request bodies at once", code="bodies_full", retry_after_s=1.0)
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


class LengthBody:
    """A body of `length_bytes` bytes."""

    __slots__ = ("_data", "_length_bytes", "done", "rest")

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes
        self._data = bytearray()  # not a list of pieces: one-byte segments would weigh forty times their size
        self.done = False
        self.rest = b""

    @property
    def received_bytes(self) -> int:
        return len(self._data)

    def body(self) -> bytearray:
        """Not a copy: large ones cost as much as reading them."""
        return self._data

    def feed(self, data: bytes) -> None:
        missing = self._length_bytes - self.received_bytes
        taken = data[:missing]
        self._data += taken
        if len(data) >= missing:
            self.done = True
            self.rest = data[missing:]


class ChunkedBody:
    """A chunked body, decoded."""

    __slots__ = (
        "_announced_bytes",
        "_buffer",
        "_chunks",
        "_data",
        "_max_body_bytes",
        "_missing",
        "_trailers",
        "done",
        "rest",
    )

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._buffer = b""
        self._data = bytearray()
        self._missing = 0  # bytes of the current chunk with its CRLF still to come
        self._chunks = 0
        self._trailers = False
        self._announced_bytes = 0
        self.done = False
        self.rest = b""

    @property
    def received_bytes(self) -> int:
        return len(self._data)

    def body(self) -> bytearray:
        """Not a copy: large ones cost as much as reading them."""
        return self._data

    def feed(self, data: bytes) -> None:
        """Raises BadRequest when malformed, TooLarge when the body passes its limit."""
        data = self._buffer + data if self._buffer else data
        position = 0
        while not self.done:
            step = self._step(data, position)
            if step == position:
                break
            position = step
        if self.done:
            self.rest = data[position:]
        else:
            self._buffer = data[position:]

    def _step(self, data: bytes, position: int) -> int:
        """The position after one more element, or the same one when it needs more bytes."""
        if self._missing:
            return self._take_payload(data, position)
        if self._trailers:
            return self._take_trailers(data, position)
        return self._take_size(data, position)

    def _take_size(self, data: bytes, position: int) -> int:
        line = _SIZE_LINE.match(data, position, position + _MAX_LINE_BYTES)
        if line is None:
            if data.find(b"\n", position) >= 0 or len(data) - position >= _MAX_LINE_BYTES:
                raise BadRequest("malformed chunk header", code="bad_chunk")
            return position
        size = int(line[1], 16)
        if size == 0:
            self._trailers = True
        else:
            self._admit(size)
            self._missing = size + 2
        return line.end()

    def _admit(self, size: int) -> None:
        self._announced_bytes += size
        self._chunks += 1
        if self._announced_bytes > self._max_body_bytes:
            raise TooLarge(f"the body exceeds {self._max_body_bytes} bytes")
        if self._chunks > _FREE_CHUNKS + self._announced_bytes // _MIN_MEAN_CHUNK_BYTES:
            raise BadRequest("too many small chunks", code="bad_chunk")

    def _take_payload(self, data: bytes, position: int) -> int:
        available = len(data) - position
        if self._missing > 2:
            taken = min(available, self._missing - 2)
            if taken:
                self._data += data[position : position + taken]
                self._missing -= taken
            return position + taken
        if available < 2:
            return position
        if data[position : position + 2] != b"\r\n":
            raise BadRequest("a chunk does not end where its header says", code="bad_chunk")
        self._missing = 0
        return position + 2

    def _take_trailers(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        blank_line = data.find(b"\r\n\r\n", position)
        end = blank_line + 4 if blank_line >= 0 else len(data)
        if blank_line < 0 and end - position <= _MAX_TRAILER_BYTES:
            return position  # judged when complete: a dribbled section must not be read over and over
        if end - position > _MAX_TRAILER_BYTES or _TRAILERS.fullmatch(data, position, end) is None:
            raise BadRequest("malformed trailer section", code="bad_trailer")
        if _FORBIDDEN_TRAILER.search(data[position:end]) is not None:
            raise BadRequest("a trailer that frames, routes or authenticates", code="bad_trailer")
        self.done = True
        return end
