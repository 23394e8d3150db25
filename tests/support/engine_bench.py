"""A scheduler and a toy runner stepped by hand: commands and events without threads, invariants after every step."""

from __future__ import annotations

from collections import defaultdict

from baton_api.blocks import tenant_salt
from baton_api.errors import InternalError
from baton_api.sampling import SamplingParams
from baton_engine.block_pool import BlockPool
from baton_engine.limits import Limits
from baton_engine.nouns import (
    Computed,
    EngineEvent,
    Failed,
    Finished,
    GenerateRequest,
    KvEvent,
    Leg,
    PrefillDone,
    Reserved,
    Sampled,
)
from baton_engine.scheduler import Scheduler
from support.toy_runner import ToyRunner

SALT = tenant_salt(b"secret", "tenant")
GREEDY = SamplingParams(temperature=0.0, seed=0, max_tokens=8, ignore_eos=True)


class Bench:
    """One engine's integer half over a toy runner. `events` of each request, in order."""

    def __init__(self, runner: ToyRunner | None = None, *, max_batched_tokens: int = 16, max_running: int = 8) -> None:
        self.runner = runner or ToyRunner()
        self.pool = BlockPool(self.runner.store.num_blocks)
        block_tokens = self.runner.layout.block_tokens
        self.limits = Limits(
            min(self.runner.max_model_len, self.runner.store.num_blocks * block_tokens),
            max_running,
            self.runner.vocab_size,
            self.runner.eos_token_ids,
        )
        self.scheduler = Scheduler(self.pool, block_tokens, self.limits, max_batched_tokens)
        self.max_batched_tokens = max_batched_tokens
        self.events: dict[str, list[EngineEvent]] = defaultdict(list)
        self.kv_events: list[KvEvent] = []
        self.now_s = 0.0

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        sampling: SamplingParams = GREEDY,
        leg: Leg = Leg.AGGREGATED,
        salt: bytes = SALT,
        emitted: tuple[tuple[int, ...] | None, ...] = (),
    ) -> None:
        request = GenerateRequest(request_id, prompt, sampling, salt, leg, emitted)
        self.limits.check(request)
        self.scheduler.submit(request, self.now_s)

    def settle(self) -> None:
        """Copies asked for, events out, invariants."""
        copies = self.scheduler.take_copies()
        self.runner.copy_blocks([(copy.source, copy.destination) for copy in copies])
        for request_id, event in self.scheduler.take_events():
            self.events[request_id].append(event)
        self.kv_events += self.pool.take_events()
        self.scheduler.check_invariants()

    def step(self) -> bool:
        """False when nothing could be computed."""
        self.settle()
        self.now_s += 1.0
        step = self.scheduler.schedule(self.now_s)
        self.settle()
        if not step.work:
            return False
        assert sum(work.count for work in step.work) <= self.max_batched_tokens
        assert sum(len(part.draws) for part in step.slices()) <= self.limits.max_running
        try:
            results = self.runner.run(step.slices())
        except RuntimeError as error:
            self.scheduler.fail(step.request_ids, InternalError(str(error)))
        else:
            self.scheduler.commit(step, results, self.now_s)
        self.settle()
        return True

    def drain(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError(f"no end after {limit} steps")

    def output(self, request_id: str, choice: int = 0) -> list[int]:
        return [
            token.token_id
            for event in self.events[request_id]
            if isinstance(event, Sampled) and event.choice == choice
            for token in event.tokens
        ]

    def finish(self, request_id: str, choice: int = 0) -> str | None:
        reasons = [e.finish for e in self.events[request_id] if isinstance(e, Sampled) and e.choice == choice]
        return reasons[-1] if reasons else None

    def reserved(self, request_id: str) -> Reserved:
        return next(event for event in self.events[request_id] if isinstance(event, Reserved))

    def prefill_done(self, request_id: str) -> PrefillDone:
        return next(event for event in self.events[request_id] if isinstance(event, PrefillDone))

    def computed(self, request_id: str) -> list[int]:
        """How many whole blocks each Computed named."""
        return [len(event.block_ids) for event in self.events[request_id] if isinstance(event, Computed)]

    def ended(self, request_id: str) -> bool:
        return any(isinstance(event, Finished | Failed) for event in self.events[request_id])

    def expect_whole(self) -> None:
        """Every block is free again (I3)."""
        self.scheduler.check_invariants()
        assert self.pool.free_blocks == self.pool.num_blocks


def pull(source: Bench, source_id: str, destination: Bench, destination_id: str) -> None:
    """Moves block bytes from a finished prefill into a reservation and lands it."""
    done, reserved = source.prefill_done(source_id), destination.reserved(destination_id)
    pairs = list(zip(done.block_ids, reserved.block_ids, strict=True))[reserved.held_blocks :]
    for block_from, block_to in pairs:
        destination.runner.store.view(block_to)[:] = source.runner.store.view(block_from)
    destination.scheduler.land(destination_id, done.first)
    destination.settle()
