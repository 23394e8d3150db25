"""Where one request's time to first token went: laps on the gateway's clock, then the worker's own spans. Pure."""

from __future__ import annotations

from baton_api.timing import Span, from_server_timing, to_server_timing


class Timeline:
    """Laps follow each other without gaps from `start_s` on; what the worker does not account for is `network`."""

    __slots__ = ("_last_s", "spans", "start_s")

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._last_s = start_s
        self.spans: list[Span] = []

    def lap(self, name: str, now_s: float) -> None:
        self.spans.append(Span(name, now_s - self._last_s))
        self._last_s = now_s

    def answered(self, worker_timing: str, now_s: float) -> None:
        """The decode leg's head arrived, with its Server-Timing header."""
        inside = from_server_timing(worker_timing)
        unaccounted_s = now_s - self._last_s - sum(span.duration_s for span in inside)
        self.spans += (*inside, Span("network", max(0.0, unaccounted_s)))
        self._last_s = now_s

    @property
    def total_s(self) -> float:
        return self._last_s - self.start_s

    def header(self) -> str:
        return to_server_timing(self.spans)
