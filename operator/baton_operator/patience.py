"""When a status is written: rest and trouble at once, mere progress together with what follows soon. Pure.

A rollout of many Pods is news with every Pod. Written each time, it would be most of what an operator asks of the API
server; held back for a moment, one write tells of many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .kinds import Kind
from .snapshot import Key, condition_of, name_of

Json = dict[str, Any]
ALARMS = ("Ready", "Degraded", "Stalled")


def is_urgent(raw: Json, status: Json) -> bool:
    """`raw` has the status before. At rest, or a condition that people wait for or are woken by has turned."""
    after = {"status": status}
    if not condition_of(after, "Reconciling"):
        return True
    turned = [kind for kind in ALARMS if _is_true(raw, kind) != _is_true(after, kind)]
    return bool(turned)


def _is_true(raw: Json, kind: str) -> bool:
    return condition_of(raw, kind).get("status") == "True"


class Patience:
    """`wait_s` is how long progress waits for more of it; `now_s` a monotonic clock."""

    def __init__(self, wait_s: float, now_s: Callable[[], float]) -> None:
        self._wait_s = wait_s
        self._now_s = now_s
        self._since: dict[Key, dict[tuple[str, str], float]] = {}

    def left(self, key: Key, kind: Kind, raw: Json, status: Json) -> float | None:
        """Seconds that this status is still to be held back, 0: to be written now; None: it is as it was. `key` is the
        Model whose object it is."""
        since, place = self._since.setdefault(key, {}), (kind.kind, name_of(raw))
        if (raw.get("status") or {}) == status:
            since.pop(place, None)
            return None
        due_s = since.setdefault(place, self._now_s()) + self._wait_s
        left_s = 0.0 if is_urgent(raw, status) else max(0.0, due_s - self._now_s())
        if not left_s:
            del since[place]
        return left_s

    def forget(self, key: Key) -> None:
        """The Model is gone."""
        self._since.pop(key, None)
