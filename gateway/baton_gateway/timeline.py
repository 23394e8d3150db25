"""Where one request's time to first token went: laps on the gateway's clock, then the worker's own spans. Pure."""

from __future__ import annotations

from baton_api.timing import Span, from_server_timing, to_server_timing


class Timeline:
    """Laps follow each other without gaps from `start_s` on; what the worker does not account for is the last span."""

    __slots__ = ("_last_s", "first_token_s", "spans", "start_s")

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._last_s = start_s
        self.spans: list[Span] = []
        self.first_token_s = 0.0

    def lap(self, name: str, now_s: float) -> None:
        self.spans.append(Span(name, now_s - self._last_s))
        self._last_s = now_s

    def answered(self, worker_timing: str, now_s: float, *, streamed: bool) -> None:
        """The decode leg's head arrived, with its Server-Timing header.

        A stream's head comes with its first token, and the rest is `network`. A whole answer's comes with its last:
        the rest is `decode`, and the time to first token ends before it.
        """
        inside = from_server_timing(worker_timing)
        rest_s = max(0.0, now_s - self._last_s - sum([span.duration_s for span in inside]))
        self.spans += (*inside, Span("network" if streamed else "decode", rest_s))
        self._last_s = now_s
        self.first_token_s = now_s - self.start_s - (0.0 if streamed else rest_s)

    def header(self) -> str:
        return to_server_timing(self.spans)
