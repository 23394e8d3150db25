"""When each object's Pods are as a phase wants them: one watch, one clock."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from baton_wire.kube_api import Event, Listing

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """`ready` Pods that are ready and not going (`but` these, by name), or, with `ready` 0, no Pod at all."""

    ready: int
    but: frozenset[str] = frozenset()


class Pods:
    """What a Reflector fills. The object that a Pod belongs to is named by one of the Pod's labels."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._ready: dict[str, dict[str, bool]] = defaultdict(dict)
        self._goal = Goal(0)
        self._open: set[str] = set()
        self._met_s: dict[str, float] = {}
        self._all_met = asyncio.Event()

    def names(self) -> frozenset[str]:
        return frozenset(name for pods in self._ready.values() for name in pods)

    def aim(self, objects: Collection[str], goal: Goal) -> None:
        """From now on it is noted when each of `objects` first meets the goal."""
        self._goal, self._open, self._met_s = goal, set(objects), {}
        self._all_met.clear()

    async def until_met(self, timeout_s: float) -> Mapping[str, float]:
        """By object, monotonic seconds. Raises TimeoutError naming an object that is not there yet."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_met.wait()
        except TimeoutError:
            late = min(self._open)
            said = f"{len(self._open)} objects have not met {self._goal}; {late}: {self._ready[late]}"
            raise TimeoutError(said) from None
        return self._met_s

    def replace(self, listing: Listing) -> None:
        self._ready.clear()
        for item in listing.items:
            self.apply(Event("ADDED", item))

    def apply(self, event: Event) -> None:
        if event.kind == "BOOKMARK":
            return
        metadata = event.object["metadata"]
        owner, name = metadata["labels"][self._label], metadata["name"]
        if event.kind == "DELETED":
            self._ready[owner].pop(name, None)
        else:
            self._ready[owner][name] = _is_ready(event.object)
        self._look(owner)

    def _look(self, owner: str) -> None:
        if owner not in self._open:
            return
        goal, pods = self._goal, self._ready[owner]
        met = sum(pods[name] for name in pods if name not in goal.but) >= goal.ready if goal.ready else not pods
        if met:
            self._open.remove(owner)
            self._met_s[owner] = time.monotonic()
            if not self._open:
                self._all_met.set()


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
