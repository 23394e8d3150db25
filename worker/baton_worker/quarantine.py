"""When a worker is not to be trusted any more: too many failed steps in too short a time. Pure."""

from __future__ import annotations

from collections import deque


class Quarantine:
    """`max_failures` within `window_s` seconds are too many; 0 allows any number."""

    def __init__(self, max_failures: int, window_s: float) -> None:
        self._max_failures = max_failures
        self._window_s = window_s
        self._failed_at_s: deque[float] = deque(maxlen=max(1, max_failures))

    def failed(self, now_s: float) -> bool:
        """A step failed. Whether that was one too many."""
        if not self._max_failures:
            return False
        self._failed_at_s.append(now_s)
        return len(self._failed_at_s) == self._max_failures and now_s - self._failed_at_s[0] <= self._window_s
