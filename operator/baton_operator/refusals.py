"""What the API server has refused, and when it is asked again: quotas, rights and webhooks' moods pass. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton_api.errors import KubernetesError

Place = tuple[str, str, str]
"""Kind, namespace, name."""
MANY = 4096
"""Places that are remembered before those are forgotten of which nothing is known any more."""


@dataclass(frozen=True, slots=True)
class Refusal:
    wish: str
    error: KubernetesError
    wait_s: float
    due_s: float


class Refusals:
    """The same wish waits longer each time; another wish is tried at once. `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float], first_s: float = 30.0, longest_s: float = 300.0) -> None:
        self._now_s = now_s
        self._first_s = first_s
        self._longest_s = longest_s
        self._known: dict[Place, Refusal] = {}

    def __len__(self) -> int:
        return len(self._known)

    def standing(self, place: Place, wish: str) -> tuple[KubernetesError, float] | None:
        """What was said to this wish, and the seconds until it may be said again; None: it may be tried."""
        known = self._known.get(place)
        if known is None or known.wish != wish or known.due_s <= self._now_s():
            return None
        return known.error, known.due_s - self._now_s()

    def add(self, place: Place, wish: str, error: KubernetesError) -> float:
        """The seconds until it may be tried again."""
        known, now_s = self._known.get(place), self._now_s()
        again = known is not None and known.wish == wish
        wait_s = min(self._longest_s, 2 * known.wait_s) if known is not None and again else self._first_s
        for old in [old for old, refusal in self._known.items() if refusal.due_s + self._longest_s < now_s]:
            del self._known[old]  # nobody has asked since: its Model is gone
        self._known[place] = Refusal(wish, error, wait_s, now_s + wait_s)
        return wait_s

    def forget(self, place: Place) -> None:
        self._known.pop(place, None)


class Repeats:
    """Writes that had to be made again and again: somebody undoes them. `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float], most: int = 8, within_s: float = 60.0) -> None:
        self._now_s = now_s
        self._most = most
        self._within_s = within_s
        self._known: dict[Place, list[tuple[str, float]]] = {}

    def add(self, place: Place, wish: str) -> None:
        self._known[place] = [*self._recent(place), (wish, self._now_s())]
        if len(self._known) > MANY:
            self._known = {place: recent for place in self._known if (recent := self._recent(place))}

    def too_many(self, place: Place, wish: str) -> bool:
        return sum(known == wish for known, _ in self._recent(place)) >= self._most

    def _recent(self, place: Place) -> list[tuple[str, float]]:
        since_s = self._now_s() - self._within_s
        return [(wish, at_s) for wish, at_s in self._known.get(place, ()) if at_s > since_s]
