"""Whatever the arrivals, aborts, pool sizes and legs: outputs equal the lone request's, and every block comes back."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baton_api.blocks import tenant_salt
from baton_api.errors import ContextLengthExceeded
from baton_api.sampling import SamplingParams
from baton_engine.nouns import Failed, KvBlockRemoved, KvBlockStored, Leg, PrefillDone, Reserved
from support.engine_bench import Bench, pull
from support.toy_runner import ToyRunner, toy_answer

POISON = 50
EOS = frozenset({0, 1, 2})
SALTS = [tenant_salt(b"secret", tenant) for tenant in ("a", "b")]
STEMS = [[5] * 13, [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 1, 2]]
PROMPTS = st.builds(
    lambda stem, cut, tail: (stem[:cut] + tail) or [1],
    st.sampled_from(STEMS),
    st.integers(0, 13),
    st.lists(st.integers(1, 4), max_size=6),
)
SAMPLINGS = st.builds(
    lambda max_tokens, min_tokens, **others: SamplingParams(
        max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), **others
    ),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 3),
    n=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (3, 4, 5, 6, 7, 8)]),
)


@dataclass
class Asked:
    """One request as the test remembers it. `stopped`: choices that stop_choice() ended early."""

    answers: list[tuple[list[int], str | None]]
    sampling: SamplingParams
    legs: tuple[Bench, ...]
    may_end_early: bool = False
    stopped: set[int] = field(default_factory=set)


class Engines(RuleBasedStateMachine):
    """A prefill and a decode engine; transfers copy block bytes between their stores."""

    @initialize(
        prefill_blocks=st.integers(7, 20),
        decode_blocks=st.integers(7, 20),
        budget=st.integers(3, 24),
        running=st.integers(3, 5),
    )
    def start(self, prefill_blocks: int, decode_blocks: int, budget: int, running: int) -> None:
        def bench(blocks: int) -> Bench:
            runner = ToyRunner(num_blocks=blocks, max_model_len=40, vocab_size=51, eos=EOS, poison=POISON)
            return Bench(runner, max_batched_tokens=max(budget, running), max_running=running)

        self.prefill, self.decode = bench(prefill_blocks), bench(decode_blocks)
        self.limit = self.decode.limits.max_model_tokens
        self.asked: dict[str, Asked] = {}
        self.numbers = itertools.count()  # a refused request's id is not used again

    def _submit(self, prompt: list[int], sampling: SamplingParams, tenant: int, legs: list[tuple[Bench, Leg]]) -> None:
        request_id = f"r{next(self.numbers)}"
        try:
            for bench, leg in legs:
                bench.submit(request_id, prompt, sampling, leg, SALTS[tenant])
        except ContextLengthExceeded:
            for bench, _ in legs:
                bench.scheduler.abort(request_id)
            return
        answers: list[tuple[list[int], str | None]] = [
            toy_answer(prompt, sampling, choice, self.limit, EOS) for choice in range(sampling.n)
        ]
        self.asked[request_id] = Asked(answers, sampling, tuple(bench for bench, _ in legs))

    @rule(prompt=PROMPTS, sampling=SAMPLINGS, tenant=st.integers(0, 1))
    def submit_to_one(self, prompt: list[int], sampling: SamplingParams, tenant: int) -> None:
        self._submit(prompt, sampling, tenant, [(self.decode, Leg.AGGREGATED)])

    @rule(prompt=PROMPTS, sampling=SAMPLINGS, tenant=st.integers(0, 1))
    def submit_to_both(self, prompt: list[int], sampling: SamplingParams, tenant: int) -> None:
        legs = [(self.decode, Leg.DECODE), (self.prefill, Leg.PREFILL)]
        self._submit(prompt, sampling, tenant, legs)

    @rule(prompt=PROMPTS, sampling=SAMPLINGS, tenant=st.integers(0, 1), remote=st.booleans(), data=st.data())
    def resume(
        self, prompt: list[int], sampling: SamplingParams, tenant: int, remote: bool, data: st.DataObject
    ) -> None:
        """Choices cut anywhere go on as if nothing had been: with the prompt's KV from the other engine, or without."""
        if len(prompt) >= self.limit:
            return
        whole = [toy_answer(prompt, sampling, choice, self.limit, EOS) for choice in range(sampling.n)]
        over = [data.draw(st.booleans()) if choice else False for choice in range(sampling.n)]
        cuts = [data.draw(st.integers(0, len(tokens) - 1)) for tokens, _ in whole]
        emitted = tuple(
            None if ended else tuple(tokens[:cut]) for ended, (tokens, _), cut in zip(over, whole, cuts, strict=True)
        )
        request_id = f"r{next(self.numbers)}"
        try:
            self.decode.submit(
                request_id, prompt, sampling, Leg.DECODE if remote else Leg.AGGREGATED, SALTS[tenant], emitted
            )
            if remote:
                self.prefill.submit(request_id, prompt, sampling, Leg.PREFILL, SALTS[tenant])
        except ContextLengthExceeded:
            self.decode.scheduler.abort(request_id)
            return
        answers = [
            ([], None) if ended else (tokens[cut:], reason)
            for ended, (tokens, reason), cut in zip(over, whole, cuts, strict=True)
        ]
        self.asked[request_id] = Asked(answers, sampling, (self.decode, self.prefill)[: 1 + remote])

    def _submit_poison(self, position: int) -> None:
        sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=2)
        self._submit([5] * position + [POISON], sampling, 0, [(self.decode, Leg.AGGREGATED)])

    @rule(steps=st.integers(1, 4), prefill=st.booleans())
    def step(self, steps: int, prefill: bool) -> None:
        for _ in range(steps):
            (self.prefill if prefill else self.decode).step()

    def _transfers(self) -> list[str]:
        """Requests whose decode leg is reserved and still waits."""
        jobs = self.decode.scheduler._table.jobs
        return [
            request_id
            for request_id in self.asked
            if request_id in jobs
            and jobs[request_id].awaits_pull
            and any(isinstance(event, Reserved) for event in self.decode.events[request_id])
        ]

    def _land(self) -> bool:
        landed = False
        for request_id in self._transfers():
            if any(isinstance(event, PrefillDone) for event in self.prefill.events[request_id]):
                pull(self.prefill, request_id, self.decode, request_id)
                self.prefill.scheduler.release(request_id)
                landed = True
        return landed

    @rule()
    def land(self) -> None:
        self._land()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), what=st.sampled_from(["abort", "recompute", "stop", "stop", "poison"]))
    def interfere(self, data: st.DataObject, what: str) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        asked = self.asked[request_id]
        if what == "poison":
            self._submit_poison(data.draw(st.integers(0, 8)))
        elif what == "abort":
            asked.may_end_early = True
            for bench in asked.legs:
                bench.scheduler.abort(request_id)
        elif what == "recompute":
            self.decode.scheduler.recompute(request_id)
            self.prefill.scheduler.release(request_id)
        else:
            choice = data.draw(st.integers(0, asked.sampling.n - 1))
            asked.stopped.add(choice)
            self.decode.scheduler.stop_choice(request_id, choice)

    @invariant()
    def outputs_are_prefixes_of_the_reference(self) -> None:
        for bench in (self.prefill, self.decode) if hasattr(self, "asked") else ():
            bench.settle()
        self._compare(lambda asked, choice: True)

    def _compare(self, early: Callable[[Asked, int], bool]) -> None:
        for request_id, asked in getattr(self, "asked", {}).items():
            for choice in range(asked.sampling.n):
                tokens, reason = asked.answers[choice]
                output, finish = self.decode.output(request_id, choice), self.decode.finish(request_id, choice)
                assert output == tokens[: len(output)]
                assert (output, finish) == (tokens, reason) or (finish is None and early(asked, choice))

    def teardown(self) -> None:
        if not hasattr(self, "asked"):
            return
        self._quiesce()
        for request_id, asked in self.asked.items():
            assert self.decode.ended(request_id)
            last = self.decode.events[request_id][-1]
            if isinstance(last, Failed):
                assert "broke the step" in last.error.message
                asked.may_end_early = True
        self._compare(lambda asked, choice: asked.may_end_early or choice in asked.stopped)
        for bench in (self.prefill, self.decode):
            bench.expect_whole()
            assert set(replayed(bench)) == {key for key, _ in bench.pool.cached_keys()}

    def _quiesce(self) -> None:
        for _ in range(500):
            busy = [self.prefill.step(), self.decode.step(), self._land()]
            for request_id in self.asked:
                if self.decode.ended(request_id) and self.prefill.events[request_id]:
                    self.prefill.scheduler.release(request_id)
            if not any(busy) and all(map(self.decode.ended, self.asked)):
                break
            if not any(busy):
                # Pinned prefills wait for reservations that wait for prefills: leases end such knots in production.
                for request_id in self.asked:
                    self.decode.scheduler.recompute(request_id)
        for request_id in self.asked:
            self.prefill.scheduler.abort(request_id)
        self.prefill.settle()


def replayed(bench: Bench) -> set[bytes]:
    """The prefix cache as a listener to its events knows it."""
    keys: set[bytes] = set()
    for event in bench.kv_events:
        if isinstance(event, KvBlockStored):
            assert not keys & set(event.keys)
            keys |= set(event.keys)
        else:
            assert isinstance(event, KvBlockRemoved) and set(event.keys) <= keys
            keys -= set(event.keys)
    return keys


Engines.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestEngines = Engines.TestCase
