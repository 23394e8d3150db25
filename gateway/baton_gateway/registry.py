"""The fleet as this gateway knows it: fleet file, heartbeats and own load in, routable workers out. Pure.

A worker is routable while its last heartbeats were answered, it says it is ready and it is not draining, and it is
what whoever started it says it should be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from baton_api.fleet import Fleet, FleetWorker
from baton_api.json_body import max_values_for
from baton_api.routing import WorkerView
from baton_api.worker import WorkerInfo

State = Literal["unknown", "lost", "mismatched", "starting", "draining", "ready"]
Change = Literal["none", "changed", "new_epoch", "stuck", "lost"]


@dataclass(slots=True)
class _Member:
    """`view` is what routing sees of it, None until it was heard; its load is the member's and what other gateway
    processes have on it, `elsewhere`: requests, tokens."""

    wanted: FleetWorker
    info: WorkerInfo | None = None
    misses: int = 0
    suspended_until_s: float = 0.0
    in_flight: int = 0
    in_flight_tokens: int = 0
    elsewhere: tuple[int, int] = (0, 0)
    view: WorkerView | None = None

    def book(self, requests: int, tokens: int) -> None:
        self.in_flight += requests
        self.in_flight_tokens += tokens
        view = self.view
        if view is not None:
            view.in_flight += requests
            view.in_flight_tokens += tokens

    def look(self, url: str, info: WorkerInfo) -> WorkerView:
        requests, tokens = self.elsewhere
        return WorkerView(url, info, self.in_flight + requests, self.in_flight_tokens + tokens, self.suspended_until_s)


class Booking:
    """One request of ours with so many tokens is on a worker, until `close`; also if that worker leaves meanwhile."""

    __slots__ = ("_member", "_tokens")

    def __init__(self, member: _Member, tokens: int) -> None:
        self._member: _Member | None = member
        self._tokens = tokens
        member.book(1, tokens)

    def close(self) -> None:
        """A second call does nothing."""
        member, self._member = self._member, None
        if member is not None:
            member.book(-1, -self._tokens)


class Registry:
    """`max_misses` heartbeats unanswered in a row, without another sign of life, make a worker lost."""

    def __init__(self, max_misses: int) -> None:
        self._max_misses = max_misses
        self._members: dict[str, _Member] = {}
        self._routable: tuple[WorkerView, ...] = ()
        self.model = ""
        self.block_sizes: frozenset[int] = frozenset()
        """Every block size in the fleet, in tokens."""
        self.longest_context: int | None = None
        """Of the workers that are routable, in tokens."""
        self.max_values = max_values_for(None)
        """JSON values that a request's body may have."""

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self._members)

    def set_fleet(self, fleet: Fleet) -> tuple[str, ...]:
        """Takes over what a source says; returns the urls that left."""
        self.model = fleet.model
        wanted = {worker.url: worker for worker in fleet.workers}
        left = tuple(url for url in self._members if url not in wanted)
        self._members = {url: self._members.get(url) or _Member(worker) for url, worker in wanted.items()}
        for url, worker in wanted.items():
            self._members[url].wanted = worker
        self._look()
        return left

    def heard(self, url: str, info: WorkerInfo) -> Change:
        """A heartbeat was answered. "stuck": it served, does not any more and is not going: its engine stands in one
        step or has ended. Its HTTP face lives, so what it was serving would wait until the request's deadline."""
        member = self._members.get(url)
        if member is None:
            return "none"
        before, was = member.info, self._state(member)
        restarted = before is not None and before.epoch != info.epoch
        member.info, member.misses = info, 0
        if restarted:
            member.suspended_until_s = 0.0
        if before != info:
            member.view = member.look(url, info)
        self._look()
        if restarted:
            return "new_epoch"
        if was == "ready" and self._state(member) == "starting":
            return "stuck"
        return "changed" if was != self._state(member) else "none"

    def missed(self, url: str, misses: int = 1) -> Change:
        """That many more heartbeats went unanswered. "lost" exactly when it became so."""
        member = self._members.get(url)
        if member is None:
            return "none"
        was = self._state(member)
        member.misses += misses
        self._look()
        return "lost" if self._state(member) == "lost" != was else "none"

    def sent_something(self, url: str) -> None:
        """No answer to a heartbeat, yet a sign of life: misses are counted anew."""
        member = self._members.get(url)
        if member is not None and self._state(member) != "lost":
            member.misses = 0

    def refused_connection(self, url: str) -> Change:
        """Nobody listens there: lost at once, until the next heartbeat is answered."""
        return self.missed(url, self._max_misses)

    def said_draining(self, url: str) -> None:
        """It refused a request because it is going; the next heartbeat says so too, or that it has changed its mind."""
        member = self._members.get(url)
        if member is not None and member.info is not None:
            member.info = replace(member.info, ready=False, draining=True)
            self._look()

    def suspend(self, url: str, until_s: float) -> None:
        """It failed a request: others first, until then (monotonic clock)."""
        member = self._members.get(url)
        if member is not None:
            member.suspended_until_s = until_s
            if member.view is not None:
                member.view.suspended_until_s = until_s

    def load(self, url: str, tokens: int) -> Booking:
        """One request of ours with so many tokens is on `url` from now on."""
        return Booking(self._members.get(url) or _Member(FleetWorker(url)), tokens)

    def booked(self) -> dict[str, tuple[int, int]]:
        """Our own load, for other gateway processes: requests and tokens of every worker that has some."""
        return {
            url: (member.in_flight, member.in_flight_tokens)
            for url, member in self._members.items()
            if member.in_flight
        }

    def hear_elsewhere(self, load: Mapping[str, tuple[int, int]]) -> None:
        """What the other gateway processes have in flight, all together."""
        for url, member in self._members.items():
            now = load.get(url, (0, 0))
            if now != member.elsewhere:
                member.elsewhere = now
                if member.view is not None:
                    member.view.in_flight = member.in_flight + now[0]
                    member.view.in_flight_tokens = member.in_flight_tokens + now[1]

    def routable(self) -> tuple[WorkerView, ...]:
        return self._routable

    def _look(self) -> None:
        """Something changed: who is routable now. Requests come far more often than news of workers."""
        members = self._members.values()
        self._routable = tuple(
            member.view for member in members if member.view is not None and self._state(member) == "ready"
        )
        self.longest_context = max([view.info.max_model_len for view in self._routable], default=None)
        self.max_values = max_values_for(self.longest_context)
        self.block_sizes = frozenset(member.info.block_tokens for member in members if member.info is not None)

    def is_routable(self, url: str) -> bool:
        member = self._members.get(url)
        return member is not None and self._state(member) == "ready"

    def contradiction(self, url: str) -> str | None:
        """Why a worker that answers is not routable: it is not what it should be."""
        member = self._members.get(url)
        return member.wanted.contradiction(member.info) if member is not None and member.info is not None else None

    def states(self) -> Counter[tuple[str, State]]:
        """How many workers by (role, state); the role is "unknown" until a worker was heard."""
        return Counter(
            (member.info.role.value if member.info else "unknown", self._state(member))
            for member in self._members.values()
        )

    def _state(self, member: _Member) -> State:
        if member.misses >= self._max_misses:
            return "lost"
        if member.info is None:
            return "unknown"
        if member.wanted.contradiction(member.info) is not None:
            return "mismatched"
        if member.info.draining:
            return "draining"
        return "ready" if member.info.ready else "starting"

    def check_quiescent(self) -> None:
        """Without requests no load is booked (fault table, X4)."""
        for url, member in self._members.items():
            assert (member.in_flight, member.in_flight_tokens) == (0, 0), url
