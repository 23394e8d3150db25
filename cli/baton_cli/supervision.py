"""Which child processes to start, stop and restart, and when: decide(state, event, now) -> state, actions. Pure.

    WAITING --Spawn--> STARTING --BecameReady--> READY
       ^                  |                        |
       +-----back-off---- + ------ Exited ---------+        and, once stopping:  -> STOPPING -> ENDED
       +-----back-off---------Exited---- STOPPING -+ unhealthy

Stopping ends the front (the gateway, which drains) first and the workers after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

BAD_SETTING_EXIT = 2


class Phase(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


RUNNING = frozenset({Phase.STARTING, Phase.READY, Phase.STOPPING})


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds. A child that was ready for `stable_s` starts again with the first delay; one that never was ready is
    given up after `max_first_failures`. `jitter` is the share of a delay that is random."""

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    jitter: float = 0.25
    stable_s: float = 30.0
    start_timeout_s: float = 600.0
    front_grace_s: float = 65.0
    worker_grace_s: float = 65.0
    max_first_failures: int = 2
    health_interval_s: float = 5.0
    max_unhealthy: int = 3
    """Answers in a row that say so until a child is ended and started again; one that does not answer may be busy."""
    unhealthy_grace_s: float = 10.0

    def delay_s(self, failures: int, draw: float) -> float:
        """Before the restart after so many failures in a row (1 or more); `draw` is uniform in [0, 1)."""
        full_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 60))
        return full_s * (1.0 - self.jitter * draw)


@dataclass(frozen=True, slots=True)
class Child:
    """`due_s`: when WAITING ends, STARTING has taken too long, READY counts as stable, STOPPING ends by force.
    None: nothing is due. `failures` in a row; `restarts` and `was_ready` over its whole life."""

    name: str
    front: bool = False
    phase: Phase = Phase.WAITING
    due_s: float | None = 0.0
    failures: int = 0
    restarts: int = 0
    was_ready: bool = False
    unhealthy: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """`failure` says why everything is being stopped, when it was not asked for."""

    children: tuple[Child, ...]
    stopping: bool = False
    failure: str | None = None

    def child(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def with_child(self, child: Child) -> State:
        return replace(self, children=tuple(child if old.name == child.name else old for old in self.children))

    @property
    def over(self) -> bool:
        return self.stopping and all(child.phase is Phase.ENDED for child in self.children)

    @property
    def all_ready(self) -> bool:
        return all(child.phase is Phase.READY for child in self.children)

    @property
    def next_due_s(self) -> float | None:
        """When a Tick is wanted at the latest."""
        return min((child.due_s for child in self.children if child.due_s is not None), default=None)


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    name: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A sign of life while starting."""

    name: str


@dataclass(frozen=True, slots=True)
class HealthTold:
    """It answered whether it can serve or only a restart would help."""

    name: str
    healthy: bool


@dataclass(frozen=True, slots=True)
class Exited:
    """`code` as Popen has it (negative: the signal); `draw` uniform in [0, 1) for the back-off's jitter."""

    name: str
    code: int
    draw: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Stop in order; asked again, at once."""


Event = Tick | BecameReady | Progressed | HealthTold | Exited | StopAsked


@dataclass(frozen=True, slots=True)
class Spawn:
    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    name: str


@dataclass(frozen=True, slots=True)
class Publish:
    """The set of ready workers has changed."""


Action = Spawn | Terminate | Kill | Publish
Decision = tuple[State, tuple[Action, ...]]


def begin(fronts: Iterable[str], workers: Iterable[str]) -> State:
    """Nothing runs yet; the first Tick starts everything at once."""
    return State((*(Child(name) for name in workers), *(Child(name, front=True) for name in fronts)))


def decide(state: State, event: Event, now_s: float, policy: Policy) -> Decision:
    """The next state and what to do now. Events of one child come in the order in which they happened."""
    match event:
        case Tick():
            return _tick(state, now_s, policy)
        case BecameReady(name):
            return _ready(state, state.child(name), now_s, policy)
        case Progressed(name):
            return _progressed(state, state.child(name), now_s, policy), ()
        case HealthTold(name, healthy):
            return _health_told(state, state.child(name), healthy, now_s, policy)
        case Exited(name, code, draw):
            return _exited(state, state.child(name), (code, draw), now_s, policy)
        case StopAsked():
            return _stop_asked(state, now_s, policy)


def _tick(state: State, now_s: float, policy: Policy) -> Decision:
    actions: list[Action] = []
    for child in state.children:
        if child.due_s is None or child.due_s > now_s:
            continue
        match child.phase:
            case Phase.WAITING:
                state = state.with_child(replace(child, phase=Phase.STARTING, due_s=now_s + policy.start_timeout_s))
                actions.append(Spawn(child.name))
            case Phase.STARTING | Phase.STOPPING:
                state = state.with_child(replace(child, due_s=None))
                actions.append(Kill(child.name))
            case Phase.READY:
                state = state.with_child(replace(child, due_s=None, failures=0))
            case Phase.ENDED:
                raise AssertionError(f"{child.name} has ended and something is due")
    return state, tuple(actions)


def _ready(state: State, child: Child, now_s: float, policy: Policy) -> Decision:
    if child.phase is not Phase.STARTING:
        return state, ()
    ready = replace(child, phase=Phase.READY, due_s=now_s + policy.stable_s, was_ready=True, unhealthy=0)
    return state.with_child(ready), (() if child.front else (Publish(),))


def _progressed(state: State, child: Child, now_s: float, policy: Policy) -> State:
    if child.phase is not Phase.STARTING or child.due_s is None:
        return state
    return state.with_child(replace(child, due_s=now_s + policy.start_timeout_s))


def _health_told(state: State, child: Child, healthy: bool, now_s: float, policy: Policy) -> Decision:
    if child.phase is not Phase.READY:
        return state, ()
    unhealthy = 0 if healthy else child.unhealthy + 1
    if unhealthy < policy.max_unhealthy:
        return state.with_child(replace(child, unhealthy=unhealthy)), ()
    going = replace(child, phase=Phase.STOPPING, due_s=now_s + policy.unhealthy_grace_s, unhealthy=unhealthy)
    return state.with_child(going), (Terminate(child.name), *(() if child.front else (Publish(),)))


def _exited(state: State, child: Child, end: tuple[int, float], now_s: float, policy: Policy) -> Decision:
    code, draw = end
    published: tuple[Action, ...] = (Publish(),) if child.phase is Phase.READY and not child.front else ()
    if state.stopping:
        state, actions = _stop_next(state.with_child(_ended(child)), now_s, policy)
        return state, published + actions
    failures = child.failures + 1
    if why := _hopeless(child, code, failures, policy):
        state, actions = _stop(replace(state.with_child(_ended(child)), failure=why), now_s, policy)
        return state, published + actions
    due_s = now_s + policy.delay_s(failures, draw)
    waiting = replace(child, phase=Phase.WAITING, due_s=due_s, failures=failures, restarts=child.restarts + 1)
    return state.with_child(waiting), published


def _hopeless(child: Child, code: int, failures: int, policy: Policy) -> str | None:
    """Why starting it again would not help. What ran before is always tried again."""
    if child.was_ready:
        return None
    if code == BAD_SETTING_EXIT:
        return f"{child.name} refused its settings"
    if failures >= policy.max_first_failures:
        return f"{child.name} ended {failures} times before it was ready, the last time with {describe_exit(code)}"
    return None


def describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _stop_asked(state: State, now_s: float, policy: Policy) -> Decision:
    if not state.stopping:
        return _stop(state, now_s, policy)
    return state, tuple(Kill(child.name) for child in state.children if child.phase in RUNNING)


def _stop(state: State, now_s: float, policy: Policy) -> Decision:
    idle = (_ended(child) if child.phase is Phase.WAITING else child for child in state.children)
    return _stop_next(replace(state, children=tuple(idle), stopping=True), now_s, policy)


def _stop_next(state: State, now_s: float, policy: Policy) -> Decision:
    """Terminates the fronts; once they are gone, the workers."""
    fronts = tuple(child for child in state.children if child.front and child.phase in RUNNING)
    grace_s = policy.front_grace_s if fronts else policy.worker_grace_s
    asked = tuple(child for child in fronts or state.children if child.phase in (Phase.STARTING, Phase.READY))
    for child in asked:
        state = state.with_child(replace(child, phase=Phase.STOPPING, due_s=now_s + grace_s))
    leaving = any(child.phase is Phase.READY and not child.front for child in asked)
    return state, (*(Terminate(child.name) for child in asked), *((Publish(),) if leaving else ()))


def _ended(child: Child) -> Child:
    return replace(child, phase=Phase.ENDED, due_s=None)
