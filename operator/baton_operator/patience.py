"""When a status is written: rest and trouble at once, mere progress together with what follows soon. Pure.

A rollout of many Pods is news with every Pod. Written each time, it would be most of what an operator asks of the API
server; held back for a moment, one write tells of many. When many Models move at once, the time between two tellings
grows with their number: what is told keeps what Pods wait for from being written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton_api.crd_status import Reason

from .kinds import Kind
from .snapshot import Key, condition_of, name_of

Json = dict[str, Any]
ALARMS = ("Ready", "Degraded", "Stalled")


PROGRESS = (Reason.SCALING.value, Reason.ROLLING_OUT.value)
"""Why a Pool is not ready without anything being wrong. Whoever waits for its new size compares generations."""


def is_urgent(raw: Json, status: Json) -> bool:
    """`raw` has the status before. Come to rest, or a condition that people wait for or are woken by has turned. Mere
    numbers are not: the last old Pods still go when all is as wanted."""
    after = {"status": status}
    if not condition_of(after, "Reconciling"):
        return status.get("conditions") != (raw.get("status") or {}).get("conditions")
    ready = condition_of(after, "Ready")
    alarms = [kind for kind in ALARMS if kind != "Ready" or ready.get("reason") not in PROGRESS]
    return any(_is_true(raw, kind) != _is_true(after, kind) for kind in alarms)


def _is_true(raw: Json, kind: str) -> bool:
    return condition_of(raw, kind).get("status") == "True"


class Patience:
    """`wait_s` is how long progress waits for more of it; `per_s` how often progress of all Models together is told:
    with many of them moving it waits longer. `now_s` is a monotonic clock."""

    def __init__(self, wait_s: float, per_s: float, now_s: Callable[[], float]) -> None:
        self._wait_s = wait_s
        self._apart_s = 1 / per_s
        self._now_s = now_s
        self._since: dict[tuple[Key, str, str], float] = {}
        self._free_s = now_s()

    def left(self, key: Key, kind: Kind, raw: Json, status: Json) -> float | None:
        """Seconds that this status is still to be held back, 0: to be written now; None: it is as it was. `key` is the
        Model whose object it is."""
        place = (key, kind.kind, name_of(raw))
        if (raw.get("status") or {}) == status:
            self._since.pop(place, None)
            return None
        self._since.setdefault(place, self._now_s())
        left_s = 0.0 if is_urgent(raw, status) else self._until(place)
        if not left_s:
            del self._since[place]
        return left_s

    def _until(self, place: tuple[Key, str, str]) -> float:
        """First come, first served: `_since` has the longest waiting first."""
        now_s, due_s = self._now_s(), self._since[place] + self._wait_s
        if now_s >= max(due_s, self._free_s):
            self._free_s = now_s + self._apart_s
            return 0.0
        before = list(self._since).index(place)
        return max(due_s, max(now_s, self._free_s) + before * self._apart_s) - now_s

    def forget(self, key: Key) -> None:
        """The Model is gone."""
        for place in [place for place in self._since if place[0] == key]:
            del self._since[place]
