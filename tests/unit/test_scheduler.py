"""The scheduler: every story of one or a few requests, with tokens that any wrong block would change."""

from dataclasses import replace

import pytest

from baton_api.blocks import block_keys, tenant_salt
from baton_api.errors import BadRequest, ContextLengthExceeded, InternalError, NoCapacity, SettingError
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.limits import EngineSettings, Limits
from baton_engine.nouns import (
    Computed,
    Failed,
    Finished,
    GenerateRequest,
    KvBlockStored,
    KvCleared,
    Leg,
    PrefillDone,
    Sampled,
)
from support.engine_bench import GREEDY, SALT, Bench, pull
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


def test_a_prefill_leg_announces_growing_whole_blocks_and_keeps_them_until_released() -> None:
    bench = Bench(max_batched_tokens=6)
    params = replace(GREEDY, n=2, max_tokens=1, temperature=1.0)
    bench.submit("p", PROMPT, params, Leg.PREFILL)
    bench.drain()
    done = bench.prefill_done("p")
    assert bench.computed("p") == [1, 2]
    assert [token.token_id for token in done.first] == [toy_answer(PROMPT, params, c)[0][0] for c in range(2)]
    assert (len(done.block_ids), done.chunks, done.cached_tokens) == (3, 2, 0)
    assert (done.queue_s, done.compute_s) == (1.0, 1.0)
    assert not bench.ended("p") and bench.pool.free_blocks == 61
    assert bench.scheduler.stats().running == bench.scheduler.stats().waiting == 0
    bench.scheduler.release("p")
    bench.settle()
    assert isinstance(bench.events["p"][-1], Finished)
    bench.expect_whole()


def test_cached_blocks_of_a_prefill_leg_are_announced_before_anything_is_computed() -> None:
    bench = Bench()
    bench.submit("a", PROMPT)
    bench.drain()
    bench.submit("p", PROMPT, GREEDY, Leg.PREFILL)
    bench.scheduler.schedule(0.0)
    bench.settle()
    assert bench.computed("p") == [2]


def test_a_release_before_the_end_of_a_prefill_ends_it() -> None:
    bench = Bench(max_batched_tokens=8)
    bench.submit("p", PROMPT, GREEDY, Leg.PREFILL)
    bench.step()
    bench.scheduler.release("p")
    bench.drain()
    assert isinstance(bench.events["p"][-1], Finished)
    bench.expect_whole()


def test_pinned_prefills_are_never_preempted() -> None:
    bench = Bench(ToyRunner(num_blocks=6), max_batched_tokens=32)
    bench.submit("a", [1] * 7, replace(GREEDY, max_tokens=16))
    bench.submit("p", [2] * 11, GREEDY, Leg.PREFILL)
    bench.drain()
    done = bench.prefill_done("p")
    content = [bytes(bench.runner.store.view(block)) for block in done.block_ids]
    assert not bench.ended("a"), "it has to wait for the pinned blocks"
    bench.scheduler.release("p")
    bench.settle()
    assert [bytes(bench.runner.store.view(block)) for block in done.block_ids] == content
    bench.drain()
    assert bench.output("a") == toy_answer([1] * 7, replace(GREEDY, max_tokens=16))[0]


def test_a_prefill_that_announced_blocks_keeps_them_although_it_is_the_newest() -> None:
    bench = Bench(ToyRunner(num_blocks=10), max_batched_tokens=3)
    params = replace(GREEDY, max_tokens=12)
    bench.submit("a", [1] * 7, params)
    bench.submit("b", [2] * 7, params)
    while not bench.output("b"):
        bench.step()
    bench.submit("p", list(range(3, 19)), GREEDY, Leg.PREFILL)
    while not bench.scheduler.stats().preemptions:
        assert bench.step()
    assert bench.computed("p") and not any(isinstance(event, PrefillDone) for event in bench.events["p"])
    announced = next(event for event in bench.events["p"] if isinstance(event, Computed)).block_ids
    content = bytes(bench.runner.store.view(announced[0]))
    bench.drain()
    assert bytes(bench.runner.store.view(announced[0])) == content
    bench.scheduler.release("p")
    bench.drain()
    assert [bench.output(name) for name in "ab"] == [toy_answer([i] * 7, params)[0] for i in (1, 2)]


def test_a_sequence_of_this_step_is_not_preempted_in_it() -> None:
    bench = Bench(ToyRunner(num_blocks=4))
    bench.submit("warm", PROMPT[:8], replace(GREEDY, max_tokens=1))
    bench.drain()
    bench.submit("d", PROMPT[:8], replace(GREEDY, max_tokens=4), Leg.DECODE)
    bench.submit("a", [1] * 7)
    bench.step()
    bench.step()
    assert bench.reserved("d").held_blocks == 2 and bench.pool.free_blocks == 0
    bench.scheduler.recompute("d")
    bench.step()
    assert len(bench.output("a")) == 3, "the decode took the block that the older prompt needs"
    bench.drain()
    assert bench.output("a") == toy_answer([1] * 7, GREEDY)[0]
    assert bench.output("d") == toy_answer(PROMPT[:8], replace(GREEDY, max_tokens=4))[0]
    bench.expect_whole()


@pytest.mark.parametrize(("prompt_tokens", "n"), [(11, 1), (8, 1), (11, 3), (8, 3), (2, 1)])
def test_both_legs_together_equal_one_worker(prompt_tokens: int, n: int) -> None:
    prompt = PROMPT[:prompt_tokens]
    params = SamplingParams(temperature=1.0, seed=3, n=n, max_tokens=9)
    prefill, decode = Bench(), Bench()
    prefill.submit("t", prompt, replace(params, max_tokens=1), Leg.PREFILL)
    decode.submit("t", prompt, params, Leg.DECODE)
    prefill.drain()
    decode.drain()
    assert decode.reserved("t").held_blocks == 0 and not decode.runner.steps
    pull(prefill, "t", decode, "t")
    decode.drain()
    for choice in range(n):
        assert (decode.output("t", choice), decode.finish("t", choice)) == toy_answer(prompt, params, choice)
    assert all(tokens == draws for tokens, draws in decode.runner.steps), "no prompt token is computed again"
    assert decode.scheduler.stats().prompt_tokens_transferred == prompt_tokens
    assert decode.scheduler.stats().prompt_tokens_computed == 0
    decode.expect_whole()


def test_a_reservation_holds_what_is_cached_and_pulls_only_the_rest() -> None:
    prefill, decode = Bench(), Bench()
    decode.submit("warm", PROMPT[:9])
    decode.drain()
    prefill.submit("t", PROMPT, GREEDY, Leg.PREFILL)
    decode.submit("t", PROMPT, GREEDY, Leg.DECODE)
    prefill.drain()
    decode.drain()
    assert decode.reserved("t").held_blocks == 2
    pull(prefill, "t", decode, "t")
    decode.drain()
    assert decode.output("t") == toy_answer(PROMPT, GREEDY)[0]
    assert decode.scheduler.stats().prompt_tokens_transferred == 3


def test_a_landed_prompt_serves_the_next_request_from_the_cache() -> None:
    prefill, decode = Bench(), Bench()
    prefill.submit("t", PROMPT, GREEDY, Leg.PREFILL)
    decode.submit("t", PROMPT, GREEDY, Leg.DECODE)
    prefill.drain()
    decode.drain()
    pull(prefill, "t", decode, "t")
    decode.submit("b", PROMPT)
    decode.drain()
    assert first_sampled(decode, "b").cached_tokens == 8
    assert decode.output("b") == decode.output("t") == toy_answer(PROMPT, GREEDY)[0]


@pytest.mark.parametrize("prompt_tokens", [8, 11])
@pytest.mark.parametrize("warm", [False, True])
def test_recompute_prefills_on_top_of_what_is_held(prompt_tokens: int, warm: bool) -> None:
    prompt = PROMPT[:prompt_tokens]
    bench = Bench()
    if warm:
        bench.submit("warm", PROMPT)
        bench.drain()
    bench.submit("d", prompt, GREEDY, Leg.DECODE)
    bench.drain()
    assert bench.reserved("d").held_blocks == (2 if warm else 0)
    bench.scheduler.recompute("d")
    bench.drain()
    assert bench.output("d") == toy_answer(prompt, GREEDY)[0]
    computed = {(8, False): 8, (8, True): 4, (11, False): 11, (11, True): 3}
    assert first_sampled(bench, "d").computed_tokens == computed[prompt_tokens, warm]
    bench.expect_whole()


def test_prompts_computed_side_by_side_share_the_budget() -> None:
    bench = Bench(max_batched_tokens=4)
    for request_id in "de":
        bench.submit(request_id, PROMPT, GREEDY, Leg.DECODE, tenant_salt(b"secret", request_id))
    bench.drain()
    for request_id in "de":
        bench.scheduler.recompute(request_id)
    bench.drain()
    assert [tokens for tokens, _ in bench.runner.steps[:3]] == [4, 4, 4]
    assert bench.output("d") == bench.output("e") == toy_answer(PROMPT, GREEDY)[0]


def test_recompute_before_the_reservation_makes_it_an_ordinary_request() -> None:
    bench = Bench()
    bench.submit("d", PROMPT, GREEDY, Leg.DECODE)
    bench.scheduler.recompute("d")
    bench.scheduler.recompute("d")
    bench.drain()
    assert bench.output("d") == toy_answer(PROMPT, GREEDY)[0]


def test_a_reservation_waits_its_turn_when_blocks_are_short() -> None:
    bench = Bench(ToyRunner(num_blocks=5))
    bench.submit("a", [1] * 11, replace(GREEDY, max_tokens=9))
    bench.submit("d", PROMPT, GREEDY, Leg.DECODE)
    bench.step()
    bench.step()
    assert bench.scheduler.stats().running == 1
    bench.drain()
    assert bench.ended("a") and len(bench.reserved("d").block_ids) == 3


@pytest.mark.parametrize("first", ["d", "a"])
def test_blocks_that_are_pulled_into_are_neither_taken_nor_findable(first: str) -> None:
    bench = Bench(ToyRunner(num_blocks=6))
    for request_id in (first, {"d": "a", "a": "d"}[first]):
        if request_id == "d":
            bench.submit("d", PROMPT, GREEDY, Leg.DECODE)
        else:
            bench.submit("a", PROMPT[:7], replace(GREEDY, max_tokens=12))
    bench.drain()
    destination = bench.reserved("d").block_ids
    assert [bytes(bench.runner.store.view(block)) for block in destination] == [b"\xa5" * 32] * 3
    assert bench.scheduler.stats().waiting == 2, "a pulling request counts as waiting, as vLLM's does"
    bench.scheduler.abort("d")
    bench.drain()
    assert bench.output("a") == toy_answer(PROMPT[:7], replace(GREEDY, max_tokens=12))[0]
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


@pytest.mark.parametrize("leg", list(Leg))
def test_before_its_first_token_a_choice_cannot_be_stopped(leg: Leg) -> None:
    bench = Bench()
    bench.submit("a", PROMPT, GREEDY, leg)
    bench.scheduler.stop_choice("a", 0)
    bench.drain()
    bench.scheduler.recompute("a")
    bench.drain()
    assert len(bench.output("a")) == (0 if leg is Leg.PREFILL else 8)


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


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_landing_that_does_not_fit_fails_its_request(tokens: int) -> None:
    bench = Bench()
    bench.submit("d", PROMPT, GREEDY, Leg.DECODE)
    bench.drain()
    bench.scheduler.land("d", [SampledToken(1)] * tokens)
    bench.settle()
    failed = bench.events["d"][-1]
    assert isinstance(failed, Failed) and failed.error.reason == "worker_protocol"
    bench.expect_whole()


def test_a_landing_before_the_reservation_fails_its_request() -> None:
    bench = Bench()
    bench.submit("d", PROMPT, GREEDY, Leg.DECODE)
    bench.scheduler.land("d", [SampledToken(1)])
    bench.settle()
    assert isinstance(bench.events["d"][-1], Failed)


def test_a_failed_step_takes_its_requests_and_their_cached_blocks_but_nothing_else() -> None:
    bench = Bench(ToyRunner(poison=33), max_batched_tokens=8)
    bench.submit("bystander", [2] * 9, GREEDY, Leg.PREFILL)
    bench.drain()
    bench.submit("victim", [*PROMPT, 33, 1, 2])
    bench.drain()
    failed = bench.events["victim"][-1]
    assert isinstance(failed, Failed) and failed.error.http_status == 500
    assert not bench.pool.match(block_keys(PROMPT, 4, SALT))
    assert len(bench.pool.match(block_keys([2] * 9, 4, SALT))) == 2
    bench.submit("again", PROMPT)
    bench.drain()
    assert bench.output("again") == toy_answer(PROMPT, GREEDY)[0]


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


LIMITS = Limits(max_model_tokens=20, max_running=4, vocab_size=50, eos_token_ids=frozenset({0}))


@pytest.mark.parametrize(
    ("prompt", "changes", "error", "param", "words"),
    [
        ([], {}, BadRequest, "prompt", "no tokens"),
        ([1] * 20, {"max_tokens": None}, ContextLengthExceeded, "prompt", "20 tokens. However, you requested 21"),
        ([1] * 13, {}, ContextLengthExceeded, "max_tokens", r"13 in the prompt, 8 in the completion"),
        ([1], {"n": 5}, BadRequest, "n", "n is 5; this engine runs 4"),
        ([1, 50], {}, BadRequest, "prompt", r"token id 50 is outside \[0, 50\)"),
        ([-1, 5], {}, BadRequest, "prompt", "token id -1"),
    ],
)
def test_a_request_that_can_never_run_is_refused_with_counts(
    prompt: list[int], changes: dict[str, object], error: type[BadRequest], param: str, words: str
) -> None:
    request = GenerateRequest("r", prompt, replace(GREEDY, **changes), SALT)  # type: ignore[arg-type]
    with pytest.raises(error, match=words) as caught:
        LIMITS.check(request)
    assert caught.value.param == param


def test_a_request_that_just_fits_is_accepted() -> None:
    LIMITS.check(GenerateRequest("r", [1] * 12, GREEDY, SALT))
    LIMITS.check(GenerateRequest("r", [1] * 19, replace(GREEDY, max_tokens=None), SALT))


FREE = SamplingParams(seed=0)


@pytest.mark.parametrize(
    ("output", "sampling", "reason"),
    [
        ([5], FREE, None),
        ([0], FREE, "stop"),
        ([0], replace(FREE, ignore_eos=True), None),
        ([0], replace(FREE, ignore_eos=True, stop_token_ids=(0,)), "stop"),
        ([7], replace(FREE, stop_token_ids=(7,)), "stop"),
        ([5, 0], replace(FREE, min_tokens=3), None),
        ([5, 5, 0], replace(FREE, min_tokens=3), "stop"),
        ([5, 5], replace(FREE, max_tokens=2), "length"),
        ([5, 0], replace(FREE, max_tokens=2), "stop"),
        ([5] * 10, FREE, "length"),
        ([5] * 9, FREE, None),
        ([5] * 10, replace(FREE, min_tokens=15), "length"),
    ],
)
def test_a_choice_is_over_by_these_rules(output: list[int], sampling: SamplingParams, reason: str | None) -> None:
    assert LIMITS.finish_reason(10, output, sampling) == reason


def test_a_budget_below_the_running_limit_stops_the_start() -> None:
    with pytest.raises(SettingError, match=r"engine.max_batched_tokens: 100 is below engine.max_running \(256\)"):
        EngineSettings(max_batched_tokens=100)
