"""What the routing brain sees and says: view in, route or refusal out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .worker import Role, WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One routable worker as this gateway sees it. `in_flight` counts this gateway's own requests on it,
    `in_flight_tokens` their prompt tokens still to be prefilled (prefill) or their context (decode)."""

    url: str
    info: WorkerInfo
    in_flight: int = 0
    in_flight_tokens: int = 0
    suspended_until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot; `held_blocks[url]` is how many leading blocks of this prompt that worker is thought to hold;
    `apart` are the (prefill, decode) urls between which no KV seems to get through."""

    workers: tuple[WorkerView, ...]
    held_blocks: Mapping[str, int]
    apart: frozenset[tuple[str, str]] = frozenset()

    def of(self, role: Role) -> tuple[WorkerView, ...]:
        return tuple(worker for worker in self.workers if worker.info.role is role)


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """`excluded` are worker urls already tried for this request. `revision`: the only one that can go on with an answer
    that another worker began; None: any."""

    num_tokens: int
    model: str
    excluded: frozenset[str] = frozenset()
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    url: str
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
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
