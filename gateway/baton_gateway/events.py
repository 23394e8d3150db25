"""Watches a worker's event stream go by: whole events out, usage noted, the usage event dropped if not asked for. Pure.

Per read it looks for three byte strings and parses nothing; only the usage event is decoded. They cannot stand inside
generated text: there the quotes are escaped. A partial event is held back, so that when a worker dies the client never
gets half of one. What the worker tells before an event, for a worker that may have to go on (baton_api.emitted), is
taken out and kept unread: about 9 bytes a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from baton_api.errors import WorkerProtocolError

END = b"\n\n"
DONE = b"data: [DONE]"
_USAGE = b'"choices":[]'
_ERROR = b'data: {"error"'
_DATA = b"data:"
MAX_TOLD_BYTES = 16 * 1024 * 1024
MAX_PARTIAL_BYTES = 16 * 1024 * 1024


class _Counted(msgspec.Struct):
    """Of an answer only its usage is read; the rest is skipped, not built."""

    usage: dict[str, Any] | None = None


Write = Callable[[bytes], object]
Failed = Callable[[WorkerProtocolError], object]


def _unexpected(error: WorkerProtocolError) -> None:
    raise error


class StreamTail:
    """`done`: "[DONE]" has passed. `error`: an error event came; it is kept back, for another worker may go on.
    `usage`: what the usage event said. `write` gets what may be forwarded, `failed` hears of what cannot be."""

    __slots__ = ("_keep_usage", "_partial", "_told", "_untold", "_write", "done", "error", "failed", "usage")

    def __init__(self, keep_usage: bool, write: Write, failed: Failed = _unexpected) -> None:
        self._keep_usage = keep_usage
        self._write = write
        self.failed = failed
        self._partial = b""
        self._told = bytearray()
        self._untold = False
        self.done = False
        self.error: WorkerProtocolError | None = None
        self.usage: dict[str, Any] | None = None

    @property
    def emitted(self) -> str | None:
        """What the events that passed account for, in the workers' words (baton_api.emitted); None when they did not
        tell it of every event."""
        return None if self._untold else self._told.decode("ascii", "replace")

    def cut(self) -> None:
        """The stream broke off, and another worker's will go on: half an event is worth nothing, an error is over."""
        self._partial, self.error = b"", None

    def pour(self, data: bytes) -> None:
        """Forwards what of the stream may be forwarded now. The only Python between the upstream connection and the
        client's, for nearly every read: what follows first is `feed` for lines of ours and one event of one choice."""
        if (
            data[:1] == b":"
            and not self._partial
            and data.find(END) == len(data) - 2
            and len(self._told) < MAX_TOLD_BYTES
        ):
            start = data.find(_DATA)
            if start > 0 and data[1:2] != b" ":
                self._told += data[:start]
                self._write(data[start:])
                return
        try:
            data = self.feed(data)
        except WorkerProtocolError as error:
            self.failed(error)
            return
        self._write(data)

    def feed(self, data: bytes) -> bytes:
        """What of the stream may be forwarded now: whole events only. Raises WorkerProtocolError if one
        outgrows its bound."""
        if self._partial:
            data, self._partial = self._partial + data, b""
        if data[-2:] != END:
            cut = data.rfind(END) + len(END)
            if cut < len(END):
                cut = 0
            data, self._partial = data[:cut], data[cut:]
            if len(self._partial) > MAX_PARTIAL_BYTES:
                raise WorkerProtocolError(f"an event exceeds {MAX_PARTIAL_BYTES} bytes", code="event_too_large")
        if data[:1] == b":" and data.find(END) == len(data) - len(END) and data[1:2] != b" ":
            return self._note(data)  # nearly every read: lines of ours and one event of a choice
        special = _USAGE in data or DONE in data or _ERROR in data
        if self._untold and not special:
            return data
        return b"".join([self._take(event + END, special) for event in data.split(END)[:-1]])

    def _note(self, event: bytes) -> bytes:
        """Takes the lines before an event's data out and keeps them."""
        start = event.find(_DATA)
        if start < 0:  # a comment alone
            return event
        if start == 0 or len(self._told) > MAX_TOLD_BYTES:
            self._untold = True
            return event[start:]
        self._told += event[:start]
        return event[start:]

    def _take(self, event: bytes, special: bool) -> bytes:
        if special and self._is_last(event):
            return event if event.startswith(DONE) or self._keep_usage else b""
        if special and event.startswith(_ERROR):
            self.error = error_of(event)
            return b""
        return self._note(event)

    def _is_last(self, event: bytes) -> bool:
        """The usage event or "[DONE]"; noted."""
        if event == DONE + END:
            self.done = True
            return True
        if _USAGE in event:
            self.usage = usage_of(event.removeprefix(b"data: "))
            return True
        return False


def usage_of(answer: bytes) -> dict[str, Any] | None:
    """The `usage` of an answer object, None when it has none or is not JSON (a foreign worker's)."""
    try:
        return msgspec.json.decode(answer, type=_Counted).usage
    except (msgspec.MsgspecError, RecursionError):
        return None


def error_of(event: bytes) -> WorkerProtocolError:
    """An error event as an error of ours, with the worker's words."""
    try:
        said = json.loads(event.removeprefix(b"data: "))["error"]
        return WorkerProtocolError(str(said["message"])[:1024], code=str(said["code"])[:64])
    except (ValueError, TypeError, KeyError, RecursionError):
        return WorkerProtocolError("the worker failed", code="worker_failed")
