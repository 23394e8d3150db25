"""The scheduler: stories of one or a few requests, with tokens that any wrong block would change."""

from dataclasses import replace

import pytest

from baton_api.blocks import block_keys, tenant_salt
from baton_api.errors import InternalError, NoCapacity
from baton_api.sampling import SamplingParams
from baton_engine.nouns import (
    Failed,
    Finished,
    KvBlockStored,
    KvCleared,
    Leg,
    Sampled,
)
from support.engine_bench import GREEDY, SALT, Bench
from support.toy_runner import ToyRunner, toy_answer

PROMPT = [7, 3, 9, 4, 1, 8, 2, 6, 5, 3, 7]


def first_sampled(bench: Bench, request_id: str) -> Sampled:
    return next(event for event in bench.events[request_id] if isinstance(event, Sampled))


def test_a_request_alone_gets_the_reference_tokens_and_gives_its_blocks_back() -> None:
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.drain()
    assert (bench.output("a"), bench.finish("a")) == toy_answer(PROMPT, GREEDY)
    assert isinstance(bench.events["a"][-1], Finished)
    assert (first_sampled(bench, "a").cached_tokens, first_sampled(bench, "a").computed_tokens) == (0, 11)
    bench.expect_whole()


def test_a_long_prompt_is_computed_in_chunks_that_keep_the_budget_while_decodes_go_first() -> None:
    bench = Bench(max_batched_tokens=8)
    bench.submit("short", [1, 2, 3], replace(GREEDY, max_tokens=12))
    bench.step()
    bench.submit("long", list(range(1, 31)))
    bench.drain()
    assert [tokens for tokens, _ in bench.runner.steps[:6]] == [3, 8, 8, 8, 8, 3]
    for request_id, prompt, tokens in [("short", [1, 2, 3], 12), ("long", list(range(1, 31)), 8)]:
        assert bench.output(request_id) == toy_answer(prompt, replace(GREEDY, max_tokens=tokens))[0]


def test_a_shared_prefix_is_computed_once() -> None:
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.drain()
    bench.submit("b", [*PROMPT[:8], 40, 41])
    bench.drain()
    sampled = first_sampled(bench, "b")
    assert (sampled.cached_tokens, sampled.computed_tokens) == (8, 2)
    assert bench.output("b") == toy_answer([*PROMPT[:8], 40, 41], GREEDY)[0]
    stats = bench.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens_cached) == (21, 8, 8)
    assert stats.prompt_tokens_computed == 13 and stats.kv_usage == 0.0


def test_a_prompt_that_is_cached_whole_still_computes_its_last_block_in_a_block_of_its_own() -> None:
    bench = Bench()
    for request_id in ("a", "b"):
        bench.submit(request_id, PROMPT[:8])
        bench.drain()
    assert first_sampled(bench, "b").cached_tokens == 4
    assert bench.output("b") == bench.output("a") == toy_answer(PROMPT[:8], GREEDY)[0]


def test_decoded_blocks_serve_the_next_turn_of_a_conversation() -> None:
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.drain()
    turn = [*PROMPT, *bench.output("a"), 9]
    bench.submit("b", turn)
    bench.drain()
    assert first_sampled(bench, "b").cached_tokens == 16
    assert bench.output("b") == toy_answer(turn, GREEDY)[0]


def test_tenants_do_not_share_blocks() -> None:
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.drain()
    bench.submit("b", PROMPT, salt=tenant_salt(b"secret", "other"))
    bench.drain()
    assert first_sampled(bench, "b").cached_tokens == 0


@pytest.mark.parametrize("prompt_tokens", [8, 11])
def test_n_choices_share_the_prompt_and_differ_after_it(prompt_tokens: int) -> None:
    prompt = PROMPT[:prompt_tokens]
    params = SamplingParams(temperature=1.0, seed=5, n=4, max_tokens=9, ignore_eos=True)
    bench = Bench()
    bench.submit("a", prompt, params)
    bench.drain()
    outputs = [bench.output("a", choice) for choice in range(4)]
    assert outputs == [toy_answer(prompt, params, choice)[0] for choice in range(4)]
    assert len({tuple(output) for output in outputs}) == 4
    assert bench.scheduler.stats().prompt_tokens_computed == prompt_tokens
    bench.expect_whole()


def test_choices_without_a_block_for_their_tail_wait_and_come_out_right() -> None:
    params = SamplingParams(temperature=1.0, seed=5, n=4, max_tokens=8, ignore_eos=True)
    bench = Bench(ToyRunner(num_blocks=5))
    bench.submit("a", PROMPT, params)
    bench.drain()
    assert [bench.output("a", c) for c in range(4)] == [toy_answer(PROMPT, params, c)[0] for c in range(4)]
    bench.expect_whole()


def test_preemption_takes_the_newest_and_costs_no_token() -> None:
    bench = Bench(ToyRunner(num_blocks=8), max_batched_tokens=32)
    params = replace(GREEDY, max_tokens=16)
    prompts = {name: [index + 1] * 7 for index, name in enumerate("abc")}
    for name, prompt in prompts.items():
        bench.submit(name, prompt, params)
    while bench.step():
        assert "a" not in [sequence.job.request.request_id for sequence in bench.scheduler._table.waiting]
    assert bench.scheduler.stats().preemptions > 0
    assert bench.scheduler.stats().prefix_queries == 21, "a preempted request is not counted again"
    assert {name: bench.output(name) for name in prompts} == {
        name: toy_answer(prompt, params)[0] for name, prompt in prompts.items()
    }
    ends = [name for name in prompts if bench.ended(name)]
    assert ends == ["a", "b", "c"]
    bench.expect_whole()


@pytest.mark.parametrize(("emitted", "order"), [(((5, 6),), ["a", "c", "b"]), ((), ["a", "b", "c"])])
def test_an_answer_that_another_worker_began_goes_before_those_that_nobody_has_seen(
    emitted: tuple[tuple[int, ...] | None, ...], order: list[str]
) -> None:
    bench = Bench(ToyRunner(), max_running=1)
    bench.submit("a", PROMPT)
    bench.step()
    bench.submit("b", PROMPT)
    bench.submit("c", PROMPT, emitted=emitted)
    begun: list[str] = []
    while bench.step():
        begun += [name for name in "abc" if name not in begun and bench.output(name)]
    assert begun == order
    bench.expect_whole()


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("leg", list(Leg))
def test_an_abort_at_any_time_ends_the_request_and_frees_its_blocks(leg: Leg, steps: int) -> None:
    bench = Bench(max_batched_tokens=8)
    bench.submit("a", PROMPT, replace(GREEDY, n=2), leg)
    for _ in range(steps):
        bench.step()
    bench.scheduler.abort("a")
    bench.scheduler.abort("a")
    bench.settle()
    assert isinstance(bench.events["a"][-1], Finished)
    bench.expect_whole()
    assert not bench.step()


def test_stopping_choices_ends_them_one_by_one() -> None:
    params = replace(GREEDY, n=3, temperature=1.0, max_tokens=20)
    bench = Bench()
    bench.submit("a", PROMPT, params)
    bench.step()
    bench.step()
    bench.scheduler.stop_choice("a", 0)
    bench.scheduler.stop_choice("a", 0)
    bench.scheduler.stop_choice("a", 7)
    bench.step()
    assert [len(bench.output("a", choice)) for choice in range(3)] == [2, 3, 3]
    bench.scheduler.stop_choice("a", 1)
    bench.drain()
    assert bench.output("a", 2) == toy_answer(PROMPT, params, 2)[0]
    assert isinstance(bench.events["a"][-1], Finished)
    bench.expect_whole()


def test_a_waiting_choice_can_be_stopped() -> None:
    params = replace(GREEDY, n=2, temperature=1.0)
    bench = Bench(ToyRunner(num_blocks=5))
    bench.submit("a", PROMPT, params)
    while not (waiting := bench.scheduler._table.waiting) or not bench.output("a"):
        bench.step()
    bench.scheduler.stop_choice("a", waiting[0].choice)
    bench.drain()
    assert sorted(bench.finish("a", choice) or "" for choice in range(2)) == ["", "length"]
    bench.expect_whole()


def test_choices_that_end_with_their_first_token_take_no_block() -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=4, max_tokens=6, stop_token_ids=tuple(range(25)))
    bench = Bench()
    bench.submit("a", PROMPT, params)
    bench.step()
    expected = [toy_answer(PROMPT, params, choice) for choice in range(4)]
    ended = [len(tokens) == 1 for tokens, _ in expected]
    assert any(ended) and not all(ended)
    assert bench.pool.free_blocks == 64 - 3 - (ended.count(False) - 1)
    bench.drain()
    assert [(bench.output("a", choice), bench.finish("a", choice)) for choice in range(4)] == expected


def test_a_request_whose_every_choice_ends_at_once_is_over() -> None:
    bench = Bench()
    bench.submit("a", PROMPT, replace(GREEDY, n=3, max_tokens=1))
    bench.drain()
    assert [bench.finish("a", choice) for choice in range(3)] == ["length"] * 3
    assert bench.events["a"].count(Finished()) == 1 and len(bench.events["a"]) == 4
    bench.expect_whole()


def test_commands_for_unknown_requests_are_ignored() -> None:
    bench = Bench()
    bench.scheduler.land("x", ())
    bench.scheduler.recompute("x")
    bench.scheduler.release("x")
    bench.scheduler.abort("x")
    bench.scheduler.stop_choice("x", 0)
    bench.scheduler.fail(["x"], InternalError("x"))
    bench.submit("a", PROMPT)
    bench.scheduler.release("a")
    bench.drain()
    assert bench.output("a") == toy_answer(PROMPT, GREEDY)[0]


def test_a_paused_request_stands_still_and_goes_on_where_it_was() -> None:
    bench = Bench()
    params = replace(GREEDY, max_tokens=12)
    bench.submit("a", PROMPT, params)
    bench.submit("b", PROMPT[:5], params)
    for _ in range(3):
        bench.step()
    bench.scheduler.pause("a")
    bench.scheduler.pause("unknown")
    at = len(bench.output("a"))
    bench.drain()
    assert bench.ended("b") and len(bench.output("a")) == at and not bench.ended("a")
    bench.scheduler.resume("a")
    bench.drain()
    assert bench.output("a") == toy_answer(PROMPT, params)[0]
    bench.expect_whole()


def test_a_paused_request_gives_its_blocks_to_others_however_old_it_is() -> None:
    bench = Bench(ToyRunner(num_blocks=8), max_batched_tokens=32)
    params = replace(GREEDY, max_tokens=16)
    bench.submit("a", [1] * 7, params)
    bench.step()
    bench.scheduler.pause("a")
    for name in "bc":
        bench.submit(name, [ord(name) % 40] * 7, params)
    bench.drain()
    assert bench.ended("b") and bench.ended("c") and not bench.ended("a")
    assert bench.scheduler.stats().preemptions > 0
    bench.scheduler.resume("a")
    bench.drain()
    assert bench.output("a") == toy_answer([1] * 7, params)[0]
    bench.expect_whole()


@pytest.mark.parametrize("leg", [Leg.AGGREGATED, Leg.DECODE, Leg.PREFILL])
def test_a_paused_request_keeps_nobody_from_being_admitted(leg: Leg) -> None:
    bench = Bench(ToyRunner(num_blocks=10), max_batched_tokens=64)
    long = [1] * (6 * bench.runner.layout.block_tokens)
    bench.submit("a", long, GREEDY)
    bench.step()
    bench.scheduler.pause("a")
    bench.submit("b", [2] * len(long), GREEDY, leg)
    bench.drain()
    assert bench.scheduler.stats().preemptions == 1 and bench.events["b"]
    bench.scheduler.abort("b")
    bench.scheduler.resume("a")
    bench.drain()
    assert bench.output("a") == toy_answer(long, GREEDY)[0]
    bench.expect_whole()


def test_paused_requests_take_no_place_in_the_batch_and_all_come_back_within_its_bounds() -> None:
    bench = Bench(max_batched_tokens=64, max_running=2)
    params = replace(GREEDY, max_tokens=6)
    for name in "abcd":
        bench.submit(name, [ord(name) % 40] * 5, params)
        bench.step()
        if name in "ab":
            bench.scheduler.pause(name)
    bench.drain()
    assert bench.ended("c") and bench.ended("d")
    for name in "ab":
        bench.scheduler.resume(name)
    bench.drain()
    assert all(bench.output(name) == toy_answer([ord(name) % 40] * 5, params)[0] for name in "abcd")
    bench.expect_whole()


def test_failing_all_ends_everything_and_forgets_the_cache() -> None:
    bench = Bench()
    for request_id, leg in zip("abc", Leg, strict=True):
        bench.submit(request_id, PROMPT, GREEDY, leg)
    bench.step()
    bench.scheduler.fail_all(NoCapacity("draining"))
    bench.settle()
    assert all(isinstance(bench.events[request_id][-1], Failed) for request_id in "abc")
    assert bench.pool.cached_blocks == 0 and bench.kv_events[-1] == KvCleared()
    bench.expect_whole()


def test_running_choices_never_exceed_their_limit() -> None:
    bench = Bench(max_batched_tokens=64, max_running=3)
    params = replace(GREEDY, n=2)
    for request_id in "abc":
        bench.submit(request_id, PROMPT, params)
    bench.drain()
    assert max(draws for _, draws in bench.runner.steps) == 2
    assert all(bench.output(request_id, 1) == toy_answer(PROMPT, params)[0] for request_id in "abc")


def test_stored_events_name_the_chain_of_prompt_and_output() -> None:
    bench = Bench()
    bench.submit("a", PROMPT, replace(GREEDY, max_tokens=6))
    bench.drain()
    keys = block_keys([*PROMPT, *bench.output("a")], 4, SALT)
    assert bench.kv_events == [
        KvBlockStored(keys[:2], None),
        KvBlockStored(keys[2:3], keys[1]),
        KvBlockStored(keys[3:4], keys[2]),
    ]


def test_a_requests_draws_share_what_is_kept_of_its_prompt_and_a_choices_what_is_kept_of_its_output() -> None:
    bench = Bench()
    bench.submit("a", PROMPT, replace(GREEDY, n=2))
    bench.submit("b", PROMPT[:5])
    bench.step()
    steps = []
    for _ in range(2):
        bench.settle()
        step = bench.scheduler.schedule(bench.now_s)
        bench.settle()
        steps.append([draw for part in step.slices() for draw in part.draws])
        bench.scheduler.commit(step, bench.runner.run(step.slices()), bench.now_s)
    first, second = steps
    assert [id(draw.output_memory) for draw in first] == [id(draw.output_memory) for draw in second]
    assert len({id(draw.output_memory) for draw in first}) == 3
    of_prompts = [(draw.prompt, id(draw.prompt_memory)) for draw in first + second]
    assert len(set(map(repr, of_prompts))) == 2, "one for each request"
