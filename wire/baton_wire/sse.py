"""Server-sent events as OpenAI streams use them: one `data:` field per event. Pure.

Source: WHATWG HTML, section 9.2.6 (parsing an event stream). Fields other than `data` are ignored.
"""

from __future__ import annotations

import re

from baton_api.errors import WorkerProtocolError

DONE = b"[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MAX_EVENT_BYTES = 16 * 1024 * 1024


def format_event(data: bytes) -> bytes:
    """One event; line ends inside `data` become further `data:` lines."""
    if b"\n" not in data and b"\r" not in data:
        return b"data: %b\n\n" % data
    return b"".join(b"data: %b\n" % line for line in _LINE_END.split(data)) + b"\n"


class SseParser:
    """Incremental: `feed` returns the data of the events completed by these bytes. Memory is bounded by one event."""

    __slots__ = ("_data", "_line", "_max_event_bytes", "_size_bytes", "_skip_lf", "_start")

    def __init__(self, max_event_bytes: int = _MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []  # pieces of the unfinished line
        self._data: list[bytes] = []  # the data lines of the unfinished event
        self._size_bytes = 0
        self._skip_lf = False  # the last feed ended with CR: an LF that follows belongs to it
        self._start = True  # a byte order mark may still come

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises WorkerProtocolError when one event outgrows its bound."""
        if self._skip_lf and chunk:
            chunk = chunk[1:] if chunk[:1] == b"\n" else chunk
            self._skip_lf = False
        self._skip_lf = chunk.endswith(b"\r")
        lines = _LINE_END.split(chunk)
        self._line.append(lines[0])
        self._size_bytes += len(chunk)
        if len(lines) == 1:
            self._check_size()
            return []
        lines[0], self._line = b"".join(self._line), [lines.pop()]
        events = [event for line in lines if (event := self._take(line)) is not None]
        self._size_bytes = sum(map(len, self._data)) + len(self._line[0])
        self._check_size()
        return events

    def _check_size(self) -> None:
        if self._size_bytes > self._max_event_bytes:
            raise WorkerProtocolError(f"an event exceeds {self._max_event_bytes} bytes", code="event_too_large")

    def _take(self, line: bytes) -> bytes | None:
        if self._start:
            line, self._start = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        return None

    def _dispatch(self) -> bytes | None:
        if not self._data:
            return None
        event = b"\n".join(self._data)
        self._data = []
        return event
