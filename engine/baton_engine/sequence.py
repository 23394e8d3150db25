"""One request's choices as the scheduler keeps them. Pure.

    WAITING  -> RUNNING             admitted: blocks for all its tokens so far
    WAITING  -> PULLING             DECODE: blocks reserved, another worker's KV is on its way into them
    PULLING  -> RUNNING             land() or recompute()
    RUNNING  -> WAITING             preempted: blocks given back, tokens kept
    RUNNING  -> PINNED              PREFILL done: blocks kept for the pull until release()
    any      -> gone                finished, stopped, aborted, failed: blocks given back

Until the prompt is computed (or landed) a request has one sequence, the stem; then one per choice that goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from baton_api.blocks import ROOT, BlockKey, chain

from .batch import Memory
from .nouns import GenerateRequest, Leg


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    PULLING = auto()
    PINNED = auto()


@dataclass(slots=True, eq=False)
class Job:
    """A request and what is known about it so far. Times in seconds.

    `started_s`: admitted, with blocks for the prompt. `computing_s`: its first step here. `compute_s`: what computing
    the prompt here took; None before, and for a prompt whose KV came from another worker."""

    request: GenerateRequest
    arrival: int
    submitted_s: float
    awaits_pull: bool
    sequences: dict[int, Sequence] = field(default_factory=dict)
    forked: bool = False
    started_s: float | None = None
    computing_s: float | None = None
    compute_s: float | None = None
    cached_tokens: int = 0
    chunks: int = 0
    reported: bool = False
    paused: bool = False
    prompt_memory: Memory = field(default_factory=Memory)
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.request.token_ids)

    @property
    def queue_s(self) -> float | None:
        """From submit() to admission; None before."""
        return None if self.started_s is None else self.started_s - self.submitted_s

    def emitted(self, choice: int) -> tuple[int, ...] | None:
        """What a resumed choice has already, () when it begins here, None when it is over."""
        return self.request.emitted[choice] if self.request.emitted else ()

    @property
    def pinned(self) -> bool:
        """Another worker reads this request's blocks, or will: they cannot be taken away."""
        return self.request.leg is Leg.PREFILL

    @property
    def width(self) -> int:
        """How many choices each sequence of this request stands for."""
        return 1 if self.forked else self.request.sampling.n


@dataclass(slots=True, eq=False)
class Sequence:
    """`computed` tokens, from the first on, have their KV in `blocks`; `keys` are those of whole blocks, as far as they
    were needed; the first `registered` blocks are findable in the prefix cache (or a twin of theirs is)."""

    job: Job
    choice: int
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    keys: list[BlockKey] = field(default_factory=list)
    computed: int = 0
    registered: int = 0
    state: State = State.WAITING
    output_memory: Memory = field(default_factory=Memory)

    @property
    def order(self) -> tuple[bool, int, int]:
        """Answers that a client has begun to read, on a worker that is gone, come first; then older ones. The last in
        this order is preempted first."""
        return (not self.job.request.emitted, self.job.arrival, self.choice)

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        return self.job.prompt_tokens + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens to compute until the next token can be drawn."""
        return self.length - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start .. stop - 1, prompt and output as one."""
        prompt = self.job.prompt_tokens
        if start >= prompt:
            return self.output[start - prompt : stop - prompt]
        return [*self.job.request.token_ids[start : min(stop, prompt)], *self.output[: max(stop - prompt, 0)]]

    def keys_until(self, count: int, block_tokens: int) -> list[BlockKey]:
        """Keys of the first `count` whole blocks."""
        while len(self.keys) < count:
            start = len(self.keys) * block_tokens
            parent = self.keys[-1] if self.keys else ROOT
            self.keys.append(chain(parent, self.tokens(start, start + block_tokens), self.job.request.salt))
        return self.keys[:count]
