"""What one step computes, and the copies and counts around it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from .batch import Draw, Slice
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's part of a step: its next `count` tokens."""

    sequence: Sequence
    count: int

    def to_slice(self) -> Slice:
        sequence = self.sequence
        start, stop = sequence.computed, sequence.computed + self.count
        draws = self._draws() if stop == sequence.length else ()
        return Slice(sequence.tokens(start, stop), start, sequence.blocks, draws)

    def _draws(self) -> tuple[Draw, ...]:
        sequence, job, request = self.sequence, self.sequence.job, self.sequence.job.request
        choices = (sequence.choice,) if job.forked else range(request.sampling.n)
        tokens = (request.token_ids, sequence.output, job.prompt_memory, sequence.output_memory)
        return tuple(Draw(request.sampling, choice, *tokens) for choice in choices)


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute now. Between schedule() and commit() or fail() no command may reach the scheduler."""

    work: tuple[Work, ...]

    @property
    def request_ids(self) -> set[str]:
        return {work.sequence.job.request.request_id for work in self.work}

    def halves(self) -> tuple[Step, ...]:
        """The requests of this step in two steps, to find out which of them breaks it; none when it has only one."""
        order = list(dict.fromkeys(work.sequence.job.request.request_id for work in self.work))
        if len(order) < 2:
            return ()
        first = frozenset(order[: len(order) // 2])
        sides: tuple[list[Work], list[Work]] = ([], [])
        for work in self.work:
            sides[work.sequence.job.request.request_id not in first].append(work)
        return Step(tuple(sides[0])), Step(tuple(sides[1]))

    def slices(self) -> list[Slice]:
        return [work.to_slice() for work in self.work]


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy `source` to `destination` before the next step: the partial last prompt block of one more choice."""

    request_id: str
    source: int
    destination: int


@dataclass(slots=True)
class Draft:
    """A step in the making: tokens and choices that still fit into it."""

    budget_tokens: int
    slots: int
    work: list[Work] = field(default_factory=list)
    scheduled: set[Sequence] = field(default_factory=set)
    preempted: bool = False

    def has_room_for(self, sequence: Sequence) -> bool:
        return self.budget_tokens > 0 and self.slots >= sequence.job.width

    def count_for(self, sequence: Sequence) -> int:
        return min(sequence.remaining, self.budget_tokens)

    def take(self, sequence: Sequence, count: int) -> None:
        self.work.append(Work(sequence, count))
        self.scheduled.add(sequence)
        self.budget_tokens -= count
        self.slots -= sequence.job.width


@dataclass(slots=True)
class Counters:
    """Cumulative since the start."""

    preemptions: int = 0
    steps: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_transferred: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
