"""What the routing brain sees and says: view in, route or refusal out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .worker import Role, WorkerInfo


@dataclass(slots=True)
class WorkerView:
    """One routable worker as this gateway sees it. `in_flight` counts this gateway's own requests on it,
    `in_flight_tokens` their prompt tokens still to be prefilled (prefill) or their context (decode).

    The three numbers are live: who keeps the view (the registry) moves them, all others only read. `info` stays what it
    was; news of a worker make a new view.
    """

    url: str
    info: WorkerInfo
    in_flight: int = 0
    in_flight_tokens: int = 0
    suspended_until_s: float = 0.0


class View(NamedTuple):
    """A snapshot; `held_blocks[url]` is how many leading blocks of this prompt that worker is thought to hold;
    `apart` are the (prefill, decode) urls between which no KV seems to get through."""

    workers: tuple[WorkerView, ...]
    held_blocks: Mapping[str, int]
    apart: frozenset[tuple[str, str]] = frozenset()

    def of(self, role: Role) -> list[WorkerView]:
        return [worker for worker in self.workers if worker.info.role is role]


class RouteRequest(NamedTuple):
    """`excluded` are worker urls already tried for this request. `revision`: the only one that can go on with an answer
    that another worker began; None: any."""

    num_tokens: int
    model: str
    excluded: frozenset[str] = frozenset()
    revision: str | None = None


class Candidate(NamedTuple):
    """`facts` are what the score was made of, (name, value); `why_not` is set for a worker that may not serve."""

    url: str
    score: float
    facts: tuple[tuple[str, float], ...] = ()
    why_not: str | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """For people: put into words only when somebody asks."""
        said = [f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in self.facts]
        return (*said, self.why_not) if self.why_not is not None else tuple(said)


class Route(NamedTuple):
    """`prefill` None: the decode worker prefills for itself, and `reason` says why."""

    decode: WorkerView
    prefill: WorkerView | None
    reason: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was chosen; `reason` is machine-readable, `retry_after_s` what the client is told."""

    reason: str
    message: str
    retry_after_s: float
