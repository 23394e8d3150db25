"""How long an answer to a heartbeat is waited for: as long as the worker took of late. Pure."""

from __future__ import annotations

from collections import deque

REMEMBERED = 8
"""Answers; with one a second, what "of late" means."""


class Patience:
    """With one worker. Within `least_s` and `most_s`."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s = least_s
        self._most_s = max(least_s, most_s)
        self._recent_s: deque[float] = deque(maxlen=REMEMBERED)

    def took(self, answer_s: float) -> None:
        self._recent_s.append(answer_s)

    @property
    def timeout_s(self) -> float:
        return min(max(self._least_s, max(self._recent_s, default=0.0)), self._most_s)
