"""The engine's thread: events arrive in order, failures stay where they belong, an idle engine sleeps."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from baton_api.errors import BadRequest, ContextLengthExceeded, NoCapacity, Overloaded
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.batch import Slice
from baton_engine.engine import NativeEngine
from baton_engine.limits import EngineSettings
from baton_engine.nouns import (
    Engine,
    EngineEvent,
    Failed,
    Finished,
    GenerateRequest,
    KvBlockStored,
    KvEvent,
    Leg,
    PrefillDone,
    Reserved,
    Sampled,
)
from support.engine_bench import GREEDY, SALT
from support.toy_runner import ToyRunner, toy_answer

PROMPT = [7, 3, 9, 4, 1, 8, 2, 6, 5, 3, 7]


class Heard:
    """The events of one request; wait_for() one of a kind."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.changed = asyncio.Event()

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        self.changed.set()

    async def wait_for(self, *kinds: type[EngineEvent]) -> EngineEvent:
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if isinstance(event, kinds):
                        return event
                self.changed.clear()
                await self.changed.wait()

    async def end(self) -> EngineEvent:
        return await self.wait_for(Finished, Failed)

    def of(self, choice: int) -> list[int]:
        sampled = [event for event in self.events if isinstance(event, Sampled) and event.choice == choice]
        return [token.token_id for event in sampled for token in event.tokens]

    @property
    def tokens(self) -> list[int]:
        return self.of(0)


@asynccontextmanager
async def engine_over(
    runner: ToyRunner, settings: EngineSettings | None = None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(runner, settings, clock=clock)
    try:
        yield engine
    finally:
        await engine.close()
        engine.check_invariants()
        assert engine.stats().free_blocks == engine.stats().total_blocks


def request(request_id: str, leg: Leg = Leg.AGGREGATED, sampling: SamplingParams = GREEDY) -> GenerateRequest:
    return GenerateRequest(request_id, PROMPT, sampling, SALT, leg)


class Gated(ToyRunner):
    """Runs `free_steps` steps, then waits at each for the gate to open."""

    def __init__(self, free_steps: int) -> None:
        super().__init__()
        self.free_steps = free_steps
        self.gate = threading.Event()

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        if len(self.steps) >= self.free_steps:
            assert self.gate.wait(10)
        return super().run(slices)


async def test_requests_get_the_reference_tokens_and_stats_add_up() -> None:
    async with engine_over(ToyRunner()) as engine:
        protocol: Engine = engine
        heard = [Heard() for _ in range(5)]
        for index, sink in enumerate(heard):
            protocol.submit(request(f"r{index}"), sink)
        for sink in heard:
            assert isinstance(await sink.end(), Finished)
            assert sink.tokens == toy_answer(PROMPT, GREEDY)[0]
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.generation_tokens) == (0, 0, 40)
        assert engine.layout is engine.store.layout
        assert engine.max_model_len == 256


async def test_a_request_hears_one_end_and_its_name_is_free_again() -> None:
    heard = [Heard(), Heard()]
    async with engine_over(ToyRunner()) as engine:
        for sink in heard:
            engine.submit(request("same"), sink)
            await sink.end()
    assert [sum(isinstance(event, Finished | Failed) for event in sink.events) for sink in heard] == [1, 1]


@pytest.mark.parametrize("n", [1, 3])
async def test_two_engines_pass_the_baton(n: int) -> None:
    params = SamplingParams(temperature=1.0, seed=4, n=n, max_tokens=9)
    async with engine_over(ToyRunner()) as prefill, engine_over(ToyRunner()) as decode:
        first, second = Heard(), Heard()
        decode.submit(request("t", Leg.DECODE, params), second)
        prefill.submit(request("t", Leg.PREFILL, replace(params, max_tokens=1)), first)
        done, reserved = await first.wait_for(PrefillDone), await second.wait_for(Reserved)
        assert isinstance(done, PrefillDone) and isinstance(reserved, Reserved)
        for source, destination in zip(done.block_ids, reserved.block_ids, strict=True):
            decode.store.view(destination)[:] = prefill.store.view(source)
        decode.land("t", done.first)
        prefill.release("t")
        assert isinstance(await first.end(), Finished) and isinstance(await second.end(), Finished)
        assert [second.of(choice) for choice in range(n)] == [toy_answer(PROMPT, params, c)[0] for c in range(n)]


async def test_a_decode_leg_without_its_prefill_recomputes() -> None:
    async with engine_over(ToyRunner()) as engine:
        heard = Heard()
        engine.submit(request("d", Leg.DECODE), heard)
        await heard.wait_for(Reserved)
        engine.recompute("d")
        await heard.end()
        assert heard.tokens == toy_answer(PROMPT, GREEDY)[0]


async def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on() -> None:
    async with engine_over(ToyRunner(poison=50, vocab_size=51)) as engine:
        victim, later = Heard(), Heard()
        engine.submit(GenerateRequest("v", [1, 2, 50], GREEDY, SALT), victim)
        failed = await victim.end()
        assert isinstance(failed, Failed) and failed.error.reason == "internal"
        assert "token 50" not in failed.error.message, "what went wrong inside is for the log, not for a client"
        engine.submit(request("l"), later)
        await later.end()
        assert later.tokens == toy_answer(PROMPT, GREEDY)[0]


class SmallMemory(ToyRunner):
    """Runs out of memory with more than `most` tokens in a step."""

    most = 12

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        if sum(len(part.token_ids) for part in slices) > self.most:
            raise RuntimeError("out of memory")
        return super().run(slices)


async def test_a_step_too_large_for_the_memory_is_computed_in_parts_and_costs_no_request() -> None:
    async with engine_over(SmallMemory()) as engine:
        failures: list[str] = []
        engine.on_failure(failures.append)
        heard = [Heard() for _ in range(5)]
        for number, each in enumerate(heard):
            engine.submit(GenerateRequest(f"r{number}", PROMPT, replace(GREEDY, n=2), SALT), each)
        for each in heard:
            assert isinstance(await each.end(), Finished)
            assert [each.of(choice) for choice in (0, 1)] == [toy_answer(PROMPT, GREEDY)[0]] * 2
        assert "step" in failures


async def test_one_request_that_breaks_the_step_fails_alone() -> None:
    async with engine_over(ToyRunner(poison=50, vocab_size=51)) as engine:
        failures: list[str] = []
        engine.on_failure(failures.append)
        victim, others = Heard(), [Heard() for _ in range(6)]
        for number, each in enumerate(others):
            engine.submit(request(f"r{number}"), each)
            if number == 3:
                engine.submit(GenerateRequest("v", [1, 2, 50], GREEDY, SALT), victim)
        assert isinstance(await victim.end(), Failed)
        for each in others:
            assert isinstance(await each.end(), Finished) and each.tokens == toy_answer(PROMPT, GREEDY)[0]
        assert failures == ["step"]


class Dead(ToyRunner):
    runs = 0

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        self.runs += 1
        raise RuntimeError("the device fell off the bus")


async def test_a_dead_device_fails_all_after_a_few_tries() -> None:
    runner = Dead()
    async with engine_over(runner) as engine:
        heard = [Heard() for _ in range(16)]
        for number, each in enumerate(heard):
            engine.submit(request(f"r{number}"), each)
        failures = [await each.end() for each in heard]
    assert runner.runs < 32
    last = failures[-1]  # the first may have been alone in its step: then it may be the request's own fault
    assert isinstance(last, Failed) and (last.error.code, last.error.http_status) == ("engine_failing", 503)


class BrokenCopies(ToyRunner):
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        raise RuntimeError(f"cannot copy {len(pairs)} blocks")


class ForgetsDraws(ToyRunner):
    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        return super().run(slices)[:-1]


@pytest.mark.parametrize("runner", [BrokenCopies(), ForgetsDraws()])
async def test_a_runner_that_misbehaves_costs_requests_not_the_engine(runner: ToyRunner) -> None:
    async with engine_over(runner) as engine:
        for request_id in ("a", "b"):
            heard = Heard()
            engine.submit(request(request_id, sampling=replace(GREEDY, n=2)), heard)
            assert isinstance(await heard.end(), Failed)


async def test_closing_ends_every_request_with_draining() -> None:
    runner = Gated(2)
    engine = NativeEngine(runner)
    heard = [Heard() for _ in Leg]
    for leg, sink in zip(Leg, heard, strict=True):
        engine.submit(request(leg, leg, replace(GREEDY, max_tokens=200)), sink)
    closing = [asyncio.create_task(engine.close()) for _ in range(2)]
    await asyncio.sleep(0)
    runner.gate.set()
    await asyncio.gather(*closing)
    for sink in heard:
        last = sink.events[-1]
        assert isinstance(last, Failed) and isinstance(last.error, NoCapacity) and last.error.code == "draining"
    with pytest.raises(NoCapacity):
        engine.submit(request("late"), Heard())
    assert engine.cached_keys() == []


async def test_aborts_and_stops_end_requests_early() -> None:
    runner = Gated(2)
    async with engine_over(runner) as engine:
        long = replace(GREEDY, max_tokens=240, n=2, temperature=1.0)
        stopped, aborted = Heard(), Heard()
        engine.submit(request("s", sampling=long), stopped)
        engine.submit(request("a", sampling=long), aborted)
        await stopped.wait_for(Sampled)
        engine.stop_choice("s", 0)
        engine.stop_choice("s", 1)
        engine.abort("a")
        engine.abort("unknown")
        runner.gate.set()
        assert isinstance(await stopped.end(), Finished) and isinstance(await aborted.end(), Finished)
        assert all(len(sink.of(choice)) <= 3 for sink in (stopped, aborted) for choice in range(2))


async def test_refusals_come_from_submit_itself() -> None:
    async with engine_over(ToyRunner(num_blocks=8), EngineSettings(max_requests=2)) as engine:
        with pytest.raises(ContextLengthExceeded, match="maximum context length is 32 tokens"):
            engine.submit(request("x", sampling=replace(GREEDY, max_tokens=30)), Heard())
        engine.submit(request("a", Leg.PREFILL), Heard())
        with pytest.raises(BadRequest, match="'a' is in use"):
            engine.submit(request("a"), Heard())
        engine.submit(request("b", Leg.DECODE), Heard())
        with pytest.raises(Overloaded) as caught:
            engine.submit(request("c"), Heard())
        assert caught.value.retry_after_s == 1.0


async def test_kv_events_and_the_snapshot_tell_the_same_story() -> None:
    async with engine_over(ToyRunner()) as engine:
        told: list[KvEvent] = []
        engine.on_kv_events(told.extend)
        heard = Heard()
        engine.submit(request("a"), heard)
        await heard.end()
        stored = [key for event in told if isinstance(event, KvBlockStored) for key in event.keys]
        assert stored == [key for key, _ in engine.cached_keys()] and len(stored) == 4


async def test_a_sink_that_raises_costs_its_own_request_only() -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with engine_over(ToyRunner()) as engine:

        def broken(event: EngineEvent) -> None:
            raise RuntimeError("broken sink")

        healthy = Heard()
        engine.submit(request("b", sampling=replace(GREEDY, max_tokens=200)), broken)
        engine.submit(request("h"), healthy)
        await healthy.end()
        assert healthy.tokens == toy_answer(PROMPT, GREEDY)[0]
    assert reported and "an engine sink raised" in str(reported[0]["message"])


async def test_durations_are_on_the_clock_that_was_given() -> None:
    ticks = iter(range(0, 1000, 10))
    async with engine_over(ToyRunner(), clock=lambda: float(next(ticks))) as engine:
        heard = Heard()
        engine.submit(request("p", Leg.PREFILL), heard)
        done = await heard.wait_for(PrefillDone)
        assert isinstance(done, PrefillDone)
        assert done.queue_s > 0 and done.queue_s % 10 == 0 and done.compute_s == 10


def test_the_integer_half_and_the_text_side_import_without_torch() -> None:
    names = ["engine", "scheduler", "block_pool", "limits", "text.tokenizer", "text.template"]
    program = "import sys, " + ", ".join(f"baton_engine.{name}" for name in names)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"], check=True, env=environment)


async def test_an_idle_engine_sleeps() -> None:
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return time.monotonic()

    async with engine_over(ToyRunner(), clock=clock) as engine:
        heard = Heard()
        engine.submit(request("d", Leg.DECODE), heard)
        await heard.wait_for(Reserved)
        await asyncio.sleep(0.05)
        before = asked
        await asyncio.sleep(0.1)
        assert asked == before


async def test_a_scheduler_that_breaks_ends_every_request_instead_of_hanging() -> None:
    ticks = iter([0.0, 1.0])
    engine = NativeEngine(ToyRunner(), clock=lambda: next(ticks))
    failures: list[str] = []
    engine.on_failure(failures.append)
    heard = Heard()
    engine.submit(request("a"), heard)
    failed = await heard.end()
    assert isinstance(failed, Failed) and "the engine stopped" in failed.error.message
    assert failures == ["stopped"]
    with pytest.raises(NoCapacity):
        engine.submit(request("b"), Heard())
    await engine.close()


def test_an_engine_whose_loop_is_gone_ends_its_thread() -> None:
    threads, runner = set(threading.enumerate()), Gated(0)

    async def leave() -> None:
        NativeEngine(runner).submit(request("a"), Heard())

    asyncio.run(leave())
    [thread] = set(threading.enumerate()) - threads
    runner.gate.set()
    thread.join(timeout=5)
    assert not thread.is_alive()
