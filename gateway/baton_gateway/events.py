"""Watches a worker's event stream go by: whole events out, usage noted, the usage event dropped if not asked for. Pure.

Per read it looks for three byte strings and parses nothing; only the usage event is decoded. They cannot stand inside
generated text: there the quotes are escaped. A partial event is held back, so that when a worker dies the client never
gets half of one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from baton_api.errors import WorkerProtocolError

END = b"\n\n"
DONE = b"data: [DONE]"
_USAGE = b'"choices":[]'
_ERROR = b'data: {"error"'
MAX_PARTIAL_BYTES = 16 * 1024 * 1024


class _Counted(msgspec.Struct):
    """Of an answer only its usage is read; the rest is skipped, not built."""

    usage: dict[str, Any] | None = None


class StreamTail:
    """`done`: "[DONE]" has passed. `failed`: an error event has. `usage`: what the usage event said."""

    __slots__ = ("_keep_usage", "_partial", "done", "failed", "usage")

    def __init__(self, keep_usage: bool) -> None:
        self._keep_usage = keep_usage
        self._partial = b""
        self.done = False
        self.failed = False
        self.usage: dict[str, Any] | None = None

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
        if _USAGE in data or DONE in data or _ERROR in data:
            return self._look(data)
        return data

    def _look(self, data: bytes) -> bytes:
        return b"".join(event + END for event in data[: -len(END)].split(END) if self._keeps(event))

    def _keeps(self, event: bytes) -> bool:
        if event == DONE:
            self.done = True
        elif event.startswith(_ERROR):
            self.failed = True
        elif _USAGE in event:
            self.usage = usage_of(event.removeprefix(b"data: "))
            return self._keep_usage
        return True


def usage_of(answer: bytes) -> dict[str, Any] | None:
    """The `usage` of an answer object, None when it has none or is not JSON (a foreign worker's)."""
    try:
        return msgspec.json.decode(answer, type=_Counted).usage
    except (msgspec.MsgspecError, RecursionError):
        return None
