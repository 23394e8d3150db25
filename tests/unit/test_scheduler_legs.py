"""The scheduler: prefill and decode legs, reservations, landings, pinned blocks."""

from dataclasses import replace

import pytest

from baton_api.blocks import block_keys, tenant_salt
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.nouns import (
    Computed,
    Failed,
    Finished,
    Leg,
    PrefillDone,
    Sampled,
)
from support.engine_bench import GREEDY, SALT, Bench, pull
from support.toy_runner import ToyRunner, toy_answer

PROMPT = [7, 3, 9, 4, 1, 8, 2, 6, 5, 3, 7]


def first_sampled(bench: Bench, request_id: str) -> Sampled:
    return next(event for event in bench.events[request_id] if isinstance(event, Sampled))


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


def test_the_first_token_of_every_leg_says_how_long_the_request_waited_and_computed_here() -> None:
    """Bench's clock goes a second a step: what is submitted between two steps waits for one."""
    prefill, decode = Bench(max_batched_tokens=8), Bench(max_batched_tokens=8)
    decode.submit("aggregated", PROMPT)
    decode.step()
    decode.submit("recomputed", PROMPT[::-1], GREEDY, Leg.DECODE)
    decode.drain()
    decode.submit("landed", PROMPT[3:], GREEDY, Leg.DECODE)
    prefill.submit("landed", PROMPT[3:], GREEDY, Leg.PREFILL)
    prefill.drain()
    decode.drain()
    decode.now_s += 50.0  # the pull, or waiting for it, is neither
    decode.scheduler.recompute("recomputed")
    pull(prefill, "landed", decode, "landed")
    decode.drain()
    told = {name: first_sampled(decode, name) for name in ("aggregated", "recomputed", "landed")}
    assert {name: (first.queue_s, first.compute_s) for name, first in told.items()} == {
        "aggregated": (1.0, 1.0),
        "recomputed": (1.0, 1.0),
        "landed": (1.0, None),
    }


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


@pytest.mark.parametrize("leg", list(Leg))
def test_before_its_first_token_a_choice_cannot_be_stopped(leg: Leg) -> None:
    bench = Bench()
    bench.submit("a", PROMPT, GREEDY, leg)
    bench.scheduler.stop_choice("a", 0)
    bench.drain()
    bench.scheduler.recompute("a")
    bench.drain()
    assert len(bench.output("a")) == (0 if leg is Leg.PREFILL else 8)


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
    bench = Bench(ToyRunner(poison=50, vocab_size=51), max_batched_tokens=8)
    bench.submit("bystander", [2] * 9, GREEDY, Leg.PREFILL)
    bench.drain()
    bench.submit("victim", [*PROMPT, 50, 1, 2])
    bench.drain()
    failed = bench.events["victim"][-1]
    assert isinstance(failed, Failed) and failed.error.http_status == 500
    assert not bench.pool.match(block_keys(PROMPT, 4, SALT))
    assert len(bench.pool.match(block_keys([2] * 9, 4, SALT))) == 2
    bench.submit("again", PROMPT)
    bench.drain()
    assert bench.output("again") == toy_answer(PROMPT, GREEDY)[0]
