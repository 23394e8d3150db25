"""Every live sequence and the blocks it holds: the transitions of `sequence`, with their bookkeeping. Pure."""

from __future__ import annotations

from bisect import insort

from baton_api.blocks import ROOT, blocks_for

from .block_pool import BlockPool
from .nouns import EngineEvent
from .sequence import Job, Sequence, State
from .step import BlockCopy


class SequenceTable:
    """`jobs` by request id; `waiting` and `admitted` (running or pulling) sequences, oldest first; `pinned`
    ones, whose prefill is done."""

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self.pool = pool
        self.block_tokens = block_tokens
        self.jobs: dict[str, Job] = {}
        self.waiting: list[Sequence] = []
        self.admitted: list[Sequence] = []
        self.pinned: set[Sequence] = set()
        self._events: list[tuple[str, EngineEvent]] = []
        self._copies: list[BlockCopy] = []

    def add(self, job: Job) -> None:
        """A new request: its stem waits."""
        job.sequences[0] = Sequence(job, 0)
        self.jobs[job.request.request_id] = job
        self.enqueue(job.sequences[0])

    def enqueue(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        insort(self.waiting, sequence, key=lambda each: each.order)

    def admit(self, sequence: Sequence) -> bool:
        """A waiting sequence gets blocks for all its tokens, from the prefix cache as far as possible, or
        none and False."""
        length, block_tokens = sequence.length, self.block_tokens
        # At least one token is computed, for its logits; a pull brings the drawn token along, so it needs none.
        whole = (length if sequence.job.awaits_pull else length - 1) // block_tokens
        found = self.pool.match(sequence.keys_until(whole, block_tokens))
        needed = blocks_for(length, block_tokens) - len(found)
        if not self.pool.can_allocate(needed, found):
            return False
        self.pool.share(found)
        sequence.blocks = found + self.pool.allocate(needed)
        sequence.registered = len(found)
        sequence.computed = len(found) * block_tokens
        self.waiting.remove(sequence)
        sequence.state = State.PULLING if sequence.job.awaits_pull else State.RUNNING
        insort(self.admitted, sequence, key=lambda each: each.order)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks; it waits and computes its tokens again."""
        self.admitted.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.registered = 0
        self.enqueue(sequence)

    def register(self, sequence: Sequence) -> bool:
        """Makes the whole blocks computed so far findable; False when there is no new one."""
        done, whole = sequence.registered, sequence.computed // self.block_tokens
        if whole > done:
            keys = sequence.keys_until(whole, self.block_tokens)
            self.pool.register(sequence.blocks[done:whole], keys[done:], keys[done - 1] if done else ROOT)
            sequence.registered = whole
        return whole > done

    def branch(self, stem: Sequence, choice: int, *, last: bool) -> Sequence:
        """A choice of its own. The last one takes over the stem's blocks; each other one shares the whole blocks and
        copies the partial one, or, when there is no block for that, waits and computes its tail again."""
        branch = Sequence(stem.job, choice, keys=list(stem.keys))
        whole = stem.computed // self.block_tokens
        partial = stem.blocks[whole:]
        if not last and not self.pool.can_allocate(len(partial)):
            self.enqueue(branch)
            return branch
        if last:
            branch.blocks = stem.blocks
        else:
            self.pool.share(stem.blocks[:whole])
            branch.blocks = stem.blocks[:whole] + self.pool.allocate(len(partial))
            self._copies += [BlockCopy(stem.job.request.request_id, source, branch.blocks[-1]) for source in partial]
        branch.computed, branch.registered, branch.state = stem.computed, stem.registered, State.RUNNING
        insort(self.admitted, branch, key=lambda each: each.order)
        return branch

    def drop(self, sequence: Sequence) -> None:
        """Takes one sequence out of everything and gives its blocks back."""
        del sequence.job.sequences[sequence.choice]
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.PINNED:
            self.pinned.remove(sequence)
        else:
            self.admitted.remove(sequence)
        self.pool.release(sequence.blocks)

    def pin(self, sequence: Sequence) -> None:
        """A finished prefill: out of the batch, blocks kept."""
        self.admitted.remove(sequence)
        self.pinned.add(sequence)
        sequence.state = State.PINNED

    def retire_stem(self, job: Job) -> None:
        """Takes the stem out, its blocks still referenced, for branch() to divide."""
        self.admitted.remove(job.sequences.pop(0))
        job.forked = True

    def end(self, job: Job, event: EngineEvent) -> None:
        """Takes the request out and gives its blocks back; `event` is its last."""
        for sequence in list(job.sequences.values()):
            self.drop(sequence)
        del self.jobs[job.request.request_id]
        self.emit(job, event)

    def emit(self, job: Job, event: EngineEvent) -> None:
        self._events.append((job.request.request_id, event))

    def take_events(self) -> list[tuple[str, EngineEvent]]:
        """(request id, event) since the last call, in order."""
        events, self._events = self._events, []
        return events

    def take_copies(self) -> list[BlockCopy]:
        """Copies to make before anything else touches the blocks."""
        copies, self._copies = self._copies, []
        return copies

    def check_invariants(self) -> None:
        """Raises AssertionError when blocks do not add up (I3) or a block being pulled into is not its own (I5)."""
        live = [sequence for job in self.jobs.values() for sequence in job.sequences.values()]
        self.pool.check_invariants(sequence.blocks for sequence in live)
        for sequence in live:
            waiting, admitted = self.waiting.count(sequence), self.admitted.count(sequence)
            assert waiting == (sequence.state is State.WAITING), "a sequence is queued wrongly"
            assert admitted == (sequence.state in (State.RUNNING, State.PULLING)), "a sequence is admitted wrongly"
            assert not (sequence.state is State.WAITING and sequence.blocks), "a waiting sequence holds blocks"
            if sequence.state is State.PULLING:
                for block_id in sequence.blocks[sequence.registered :]:
                    assert self.pool.references(block_id) == 1, f"block {block_id} is pulled into and shared"
                    assert not self.pool.is_cached(block_id), f"block {block_id} is pulled into and findable"
        assert len(self.waiting) + len(self.admitted) <= len(live), "a sequence outlived its request"
