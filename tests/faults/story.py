"""The nouns of a fault story: what a client saw, what a worker holds, events, one round, a figure and its bar. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["complete", "error", "abort", "silent", "open"]


@dataclass(frozen=True, slots=True)
class Case:
    """One known request; its answer without faults is the reference. `seed` None is greedy. `extras`: more fields of
    the request's body, such as n, stop, logprobs."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Said:
    """What came of one choice."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish: str | None = None


@dataclass(slots=True)
class Seen:
    """One request as its client saw it. Times are monotonic seconds; `times_s` has one entry per arrived token."""

    number: int
    case: int
    began_s: float
    deadline_s: float
    streamed: bool = True
    status: int = 0
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    said: dict[int, Said] = field(default_factory=dict)  # by choice; `tokens` are the first one's
    dones: int = 0
    retry_after: str | None = None
    errors: list[str] = field(default_factory=list)
    after_end: int = 0  # events after [DONE] or after an error
    left: bool = False  # the client went away on purpose
    ended_s: float | None = None

    @property
    def ending(self) -> Ending:
        if self.ended_s is None:
            return "open"
        if self.errors:
            return "error"
        if self.dones:
            return "complete"
        return "abort" if self.left else "silent"

    @property
    def received(self) -> int:
        """Tokens of all choices."""
        return len(self.tokens) + sum(len(said.tokens) for choice, said in self.said.items() if choice)

    @property
    def first_s(self) -> float | None:
        return self.times_s[0] if self.times_s else None

    def flying(self, at_s: float) -> bool:
        """Whether it was under way at that moment."""
        return self.began_s <= at_s < (self.ended_s if self.ended_s is not None else float("inf"))


@dataclass(frozen=True, slots=True)
class Held:
    """What one live process holds when nothing should be going on."""

    free_blocks: int = 0
    total_blocks: int = 0
    running: int = 0
    waiting: int = 0
    leases: int = 0
    sockets: int = 0
    fds: int = 0
    threads: int = 0
    epoch: str = ""

    @property
    def files(self) -> int:
        """Descriptors that are no sockets."""
        return self.fds - self.sockets


# Events


@dataclass(frozen=True, slots=True)
class Wait:
    """A moment drawn evenly between the two."""

    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL one worker of the role."""

    role: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM one worker of the role, and wait for its exit."""

    role: str


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP one worker of the role ("gateway" too) for so long, then SIGCONT."""

    role: str
    for_s: float


@dataclass(frozen=True, slots=True)
class Starve:
    """One worker of the role gets the processor for `running_s`, then none for `stopped_s`, and so on `times` times:
    as on a machine that has far too much to do."""

    role: str
    stopped_s: float
    running_s: float
    times: int


@dataclass(frozen=True, slots=True)
class Break:
    """The next `steps` steps of one decode worker's engine fail (support.faulty_worker); `exits`: waits until it has
    ended itself."""

    kind: Literal["oom", "cuda", "nan"]
    steps: int = 1
    exits: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """No packet gets through for so long: between one prefill and one decode worker in the directions named ("pair"),
    or between the gateway and all workers ("gateway")."""

    what: Literal["pair", "gateway"]
    for_s: float
    towards_decode: bool = True
    towards_prefill: bool = True


@dataclass(frozen=True, slots=True)
class Shim:
    """UCX fails at random for so long (ucx_shim.c)."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """No new requests, and no further event before every stream has had a token: what is computed from now on is
    computed again. Counters are noted."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Starts what was killed or ended, on its old ports."""


@dataclass(frozen=True, slots=True)
class Serves:
    """Waits until the prefill worker that was restarted has sent KV, as its own metrics tell, but not for ever."""

    for_s: float = 10.0


@dataclass(frozen=True, slots=True)
class EndLoad:
    """No new requests; the ones under way run to their end."""


Event = Wait | Kill | Terminate | Freeze | Starve | Break | Cut | Shim | Hold | Restart | Serves | EndLoad


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` requests under way at any time, each of one of the cases, until the load is ended."""

    streams: int
    prompt_tokens: tuple[int, int]
    max_tokens: tuple[int, int]
    cases: int = 24
    deadline_s: float = 120.0  # the gateway's request timeout, but for 2 s that the way takes
    seeded_share: float = 0.25
    whole_share: float = 0.1  # asked for without streaming
    hard: bool = False  # with log probabilities, several choices, stop strings


@dataclass(slots=True)
class Round:
    """One fault and everything seen around it. `marks` are the moments of events by name ("kill", "thaw"...)."""

    seed: int
    seen: list[Seen] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    before: dict[str, Held] = field(default_factory=dict)  # when each process was new to the theatre, warmed up
    after: dict[str, Held] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)  # growth of metrics, summed over processes
    after_hold: dict[str, float] = field(default_factory=dict)  # the same, from Hold on
    notices_s: list[float] = field(default_factory=list)  # when decode workers wrote that a transfer failed
    apart_s: list[float] = field(default_factory=list)  # when it wrote that a pair does not get through
    again_s: list[float] = field(default_factory=list)  # when it wrote that it does again
    losses_s: list[float] = field(default_factory=list)  # when the gateway wrote that a worker was lost
    quiet_s: float | None = None  # when every pool was whole again; None: never
    exits: list[int] = field(default_factory=list)
    unfired: list[str] = field(default_factory=list)  # workers that were to fail and did not
    violations: list[str] = field(default_factory=list)

    def marked(self, *names: str) -> float:
        return next(self.marks[name] for name in names if name in self.marks)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and what it must keep to; `bar` None is information."""

    row: str
    name: str
    unit: str
    value: float
    bar: float | None = None
    better: Literal["lower", "higher"] = "lower"
    times: int = 1

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure to be taken over all rounds of a story."""

    name: str
    unit: str
    take: Callable[[Sequence[Round]], float]
    bar: float | None = None
    better: Literal["lower", "higher"] = "lower"

    def figure(self, row: str, rounds: Sequence[Round]) -> Figure:
        return Figure(row, self.name, self.unit, self.take(rounds), self.bar, self.better, len(rounds))


@dataclass(frozen=True, slots=True)
class Story:
    """One row of the fault table. `may_break`: streams may end with an explicit error (no resume, or none possible)."""

    row: str
    title: str
    events: tuple[Event, ...]
    measures: tuple[Measure, ...]
    load: Load
    prefill: int = 2
    decode: int = 2
    worker: Mapping[str, object] = field(default_factory=dict)
    gateway: Mapping[str, object] = field(default_factory=dict)
    may_break: bool = False
    breakable: bool = False  # decode workers are started so that Break can reach them
    network: bool = False  # every process in a network namespace of its own
    transport: str = "tcp"
    shimmed: bool = False  # workers are started so that Shim can reach them
    wire: tuple[str, ...] = ()  # support.bad_wire between prefill-0 and decode-0, with these options
