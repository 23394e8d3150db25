"""Which tokens of which sequences the next step computes, and what the step's tokens mean. Pure.

Continuous batching with a token budget per step: decodes first, then prompts in chunks, oldest first, then admission,
first come, first served; answers that another worker began count as the oldest. A sequence is admitted when blocks for
all its tokens so far are there; when a decode finds no block, the newest sequence that no other worker reads is
preempted and computes its tokens again later; one that is paused goes first. The oldest sequence that is not paused
therefore always advances, and every request ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict

from baton_api.blocks import blocks_for
from baton_api.errors import BatonError, WorkerProtocolError
from baton_api.sampling import FinishReason, SampledToken

from .block_pool import BlockPool
from .limits import Limits
from .nouns import (
    Computed,
    EngineEvent,
    EngineStats,
    Failed,
    Finished,
    GenerateRequest,
    Leg,
    PrefillDone,
    Reserved,
    Sampled,
)
from .sequence import Job, Sequence, State
from .step import BlockCopy, Counters, Draft, Step
from .table import SequenceTable


class Scheduler:
    """Commands (submit, land, ...), then schedule() and commit() or fail(), from one thread. Commands for unknown
    requests are ignored: the request may have ended meanwhile."""

    def __init__(self, pool: BlockPool, block_tokens: int, limits: Limits, max_batched_tokens: int) -> None:
        self._table = SequenceTable(pool, block_tokens)
        self._pool = pool
        self._block_tokens = block_tokens
        self._limits = limits
        self._max_batched_tokens = max_batched_tokens
        self._arrivals = 0
        self.counters = Counters()

    # Commands

    def submit(self, request: GenerateRequest, now_s: float) -> None:
        """Queues a request that passed Limits.check()."""
        self._arrivals += 1
        self._table.add(Job(request, self._arrivals, now_s, awaits_pull=request.leg is Leg.DECODE))

    def land(self, request_id: str, first: Seq[SampledToken]) -> None:
        """DECODE: the reserved blocks hold the prompt's KV, and `first` are the choices' first tokens."""
        job = self._table.jobs.get(request_id)
        if job is None:
            return
        stem = job.sequences.get(0)
        if stem is None or stem.state is not State.PULLING or len(first) != job.request.sampling.n:
            why = f"land() with {len(first)} tokens does not fit request {request_id}"
            self.fail([request_id], WorkerProtocolError(why))
            return
        held = stem.computed
        self.counters.prompt_tokens_transferred += job.prompt_tokens - held
        job.cached_tokens, job.awaits_pull = job.prompt_tokens, False
        stem.computed, stem.state = job.prompt_tokens, State.RUNNING
        self._table.register(stem)
        self._fork(stem, first)

    def recompute(self, request_id: str) -> None:
        """DECODE: compute the prompt here, from the blocks held in the prefix cache."""
        job = self._table.jobs.get(request_id)
        if job is None or not job.awaits_pull:
            return
        job.awaits_pull = False
        stem = job.sequences[0]
        if stem.state is not State.PULLING:
            return
        stem.state = State.RUNNING
        if not stem.remaining:
            # The last token must be computed for its logits, but not in a block that others may be reading.
            self._pool.release([stem.blocks.pop()])
            stem.computed -= self._block_tokens
            stem.registered -= 1
            self.counters.prompt_tokens_cached -= self._block_tokens
        job.cached_tokens = stem.computed

    def release(self, request_id: str) -> None:
        """PREFILL: nobody will read the blocks any more."""
        job = self._table.jobs.get(request_id)
        if job is not None and job.request.leg is Leg.PREFILL:
            self._table.end(job, Finished())

    def stop_choice(self, request_id: str, choice: int) -> None:
        """The choice is over; the request, with its last choice. Before the first tokens there is nothing to stop."""
        job = self._table.jobs.get(request_id)
        if job is not None and job.forked and choice in job.sequences:
            self._over(job.sequences[choice])

    def pause(self, request_id: str) -> None:
        """Nobody reads what is there already: no step computes more of it, and its blocks are the first to go."""
        if (job := self._table.jobs.get(request_id)) is not None:
            job.paused = True

    def resume(self, request_id: str) -> None:
        if (job := self._table.jobs.get(request_id)) is not None:
            job.paused = False

    def abort(self, request_id: str) -> None:
        job = self._table.jobs.get(request_id)
        if job is not None:
            self._table.end(job, Finished())

    def fail(self, request_ids: Iterable[str], error: BatonError) -> None:
        """Ends these requests. The content of their blocks is not trusted any more: none stays findable."""
        for request_id in request_ids:
            job = self._table.jobs.get(request_id)
            if job is not None:
                for sequence in job.sequences.values():
                    self._pool.forget(sequence.blocks)
                self._table.end(job, Failed(error))

    def fail_all(self, error: BatonError) -> None:
        """Ends every request and forgets the prefix cache."""
        self._pool.clear()
        self.fail(list(self._table.jobs), error)

    # A step

    def schedule(self, now_s: float) -> Step:
        """The next step; one without work means that nothing can advance before the next command."""
        draft = Draft(self._max_batched_tokens, self._limits.max_running)
        for sequence in sorted(self._table.admitted, key=lambda each: each.remaining > 1):
            able = sequence.state is State.RUNNING and not sequence.job.paused
            if able and draft.has_room_for(sequence):
                self._continue(sequence, draft)
        if not (draft.preempted and draft.work):
            self._admit(draft, now_s)
        self.counters.steps += bool(draft.work)
        for work in draft.work:
            if work.sequence.job.computing_s is None:
                work.sequence.job.computing_s = now_s
        return Step(tuple(draft.work))

    def commit(self, step: Step, results: Seq[Seq[SampledToken]], now_s: float) -> None:
        """Takes in the tokens that the runner drew for `step`."""
        for work, drawn in zip(step.work, results, strict=True):
            sequence, job = work.sequence, work.sequence.job
            sequence.computed += work.count
            job.chunks += not job.forked
            grown = self._table.register(sequence)
            if job.request.leg is Leg.PREFILL:
                if grown:
                    self._table.emit(job, Computed(tuple(sequence.blocks[: sequence.registered])))
                if drawn:
                    self._prefilled(sequence, drawn, now_s)
            elif drawn and not job.forked:
                self.counters.prompt_tokens_computed += job.prompt_tokens - job.cached_tokens
                job.compute_s = now_s - (job.computing_s or 0.0)
                self._fork(sequence, drawn)
            elif drawn:
                self._append(sequence, drawn[0])

    def take_events(self) -> list[tuple[str, EngineEvent]]:
        """(request id, event) since the last call, in order."""
        return self._table.take_events()

    def take_copies(self) -> list[BlockCopy]:
        """Copies to make before anything else touches the blocks: after each command and each commit()."""
        return self._table.take_copies()

    # What is known

    def check_invariants(self) -> None:
        """Raises AssertionError when blocks do not add up (I3) or a block being pulled into is not its own (I5)."""
        self._table.check_invariants()

    def stats(self) -> EngineStats:
        running = {sequence.job for sequence in self._table.admitted if sequence.state is State.RUNNING}
        return EngineStats(
            running=len(running),
            waiting=len(self._table.jobs) - len(running) - len(self._table.pinned),
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.free_blocks,
            cached_blocks=self._pool.cached_blocks,
            **asdict(self.counters),
        )

    # Deciding

    def _continue(self, sequence: Sequence, draft: Draft) -> None:
        count = draft.count_for(sequence)
        needed = blocks_for(sequence.computed + count, self._block_tokens) - len(sequence.blocks)
        if needed > 0:
            if not self._make_room(sequence, needed, draft):
                return
            sequence.blocks += self._pool.allocate(needed)
        draft.take(sequence, count)

    def _make_room(self, sequence: Sequence, needed: int, draft: Draft) -> bool:
        """Preempts until `needed` blocks are free; False when that took `sequence` itself."""
        while not self._pool.can_allocate(needed):
            victim = self._victim(draft)
            self._table.preempt(victim)
            self.counters.preemptions += 1
            draft.preempted = True
            if victim is sequence:
                return False
        return True

    def _victim(self, draft: Draft) -> Sequence:
        able = self._preemptable(draft)
        return next((sequence for sequence in able if sequence.job.paused), able[0])

    def _preemptable(self, draft: Draft) -> list[Sequence]:
        """The newest first."""
        return [
            sequence
            for sequence in reversed(self._table.admitted)
            if sequence.state is State.RUNNING and not sequence.job.pinned and sequence not in draft.scheduled
        ]

    def _admit(self, draft: Draft, now_s: float) -> None:
        taken = sum(sequence.job.width for sequence in self._table.admitted if not sequence.job.paused)
        slots = self._limits.max_running - taken
        for sequence in [sequence for sequence in self._table.waiting if not sequence.job.paused]:
            job = sequence.job
            slots -= job.width
            out_of_budget = not draft.budget_tokens and not job.awaits_pull
            if slots < 0 or out_of_budget or not self._admitted(sequence, draft):
                return
            if job.started_s is None:
                self._started(sequence, now_s)
            if sequence.state is State.RUNNING:
                draft.take(sequence, draft.count_for(sequence))

    def _admitted(self, sequence: Sequence, draft: Draft) -> bool:
        """False when it finds no blocks, although every paused sequence has given up its own as far as needed."""
        paused = (each for each in self._preemptable(draft) if each.job.paused)
        while not self._table.admit(sequence):
            victim = next(paused, None)
            if victim is None:
                return False
            self._table.preempt(victim)
            self.counters.preemptions += 1
        return True

    def _started(self, sequence: Sequence, now_s: float) -> None:
        job = sequence.job
        job.started_s, job.cached_tokens = now_s, sequence.computed
        self.counters.prefix_queries += job.prompt_tokens
        self.counters.prefix_hits += sequence.computed
        self.counters.prompt_tokens_cached += sequence.computed
        if job.awaits_pull:
            self._table.emit(job, Reserved(tuple(sequence.blocks), sequence.registered))
        elif job.request.leg is Leg.PREFILL and sequence.registered:
            self._table.emit(job, Computed(tuple(sequence.blocks[: sequence.registered])))

    # Taking in

    def _prefilled(self, sequence: Sequence, drawn: Seq[SampledToken], now_s: float) -> None:
        job = sequence.job
        self._table.pin(sequence)
        self.counters.prompt_tokens_computed += job.prompt_tokens - job.cached_tokens
        started_s = job.started_s if job.started_s is not None else now_s
        self._table.emit(
            job,
            PrefillDone(
                tuple(sequence.blocks),
                tuple(drawn),
                queue_s=started_s - job.submitted_s,
                compute_s=now_s - started_s,
                chunks=job.chunks,
                cached_tokens=job.cached_tokens,
            ),
        )

    def _fork(self, stem: Sequence, first: Seq[SampledToken]) -> None:
        """The prompt is there: from one sequence to one per choice that goes on after its first token, or after those
        that it has already: it then computes them as a preempted sequence does."""
        job = stem.job
        self._table.retire_stem(job)
        begun = [job.emitted(choice) for choice in range(len(first))]
        reasons = [self._finish_reason(job, [token.token_id]) for token in first]
        going = [
            choice for choice, tokens in enumerate(begun) if tokens or (tokens is not None and reasons[choice] is None)
        ]
        for choice in going:
            job.sequences[choice] = self._table.branch(stem, choice, last=choice == going[-1])
            job.sequences[choice].output += begun[choice] or (first[choice].token_id,)
        for choice, token in enumerate(first):
            if begun[choice] == ():
                self._sampled(job, choice, token, reasons[choice])
        if not going:
            self._pool.release(stem.blocks)
            self._table.end(job, Finished())

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        sequence.output.append(token.token_id)
        reason = self._finish_reason(sequence.job, sequence.output)
        self._sampled(sequence.job, sequence.choice, token, reason)
        if reason is not None:
            self._over(sequence)

    def _finish_reason(self, job: Job, output: Seq[int]) -> FinishReason | None:
        return self._limits.finish_reason(job.prompt_tokens, output, job.request.sampling)

    def _sampled(self, job: Job, choice: int, token: SampledToken, finish: FinishReason | None) -> None:
        self.counters.generation_tokens += 1
        if job.reported:
            self._table.emit(job, Sampled(choice, (token,), finish))
        else:
            job.reported = True
            computed = job.prompt_tokens - job.cached_tokens
            told = Sampled(choice, (token,), finish, job.cached_tokens, computed, job.queue_s, job.compute_s)
            self._table.emit(job, told)

    def _over(self, sequence: Sequence) -> None:
        self._table.drop(sequence)
        if not sequence.job.sequences:
            self._table.end(sequence.job, Finished())
