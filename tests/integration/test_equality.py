"""I2: prefill + decode == aggregated == transformers, token for token, whatever the transport, the length, the cache.

BATON_TEST_DEVICE=cuda and BATON_TEST_DTYPE=bfloat16 run the same suite on a GPU.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.loops import LoopThread
from support.pair import Pair
from support.tiny_models import LLAMA3_ROPE, TinyModel, make_model, oracle

DEVICE = os.environ.get("BATON_TEST_DEVICE", "cpu")
DTYPE = os.environ.get("BATON_TEST_DTYPE", "float32")
TRANSPORTS = ("ucx/tcp", "ucx/shm", "tcp", "cma", "inproc")
CONTEXT = 4096
MODELS = {
    "llama": TinyModel("llama", max_position=CONTEXT),
    "llama-tied-llama3-rope": TinyModel("llama", layers=3, tied=True, rope=LLAMA3_ROPE, max_position=CONTEXT, seed=1),
    "llama-sharded-mha": TinyModel("llama", layers=4, kv_heads=4, shards=3, max_position=CONTEXT, seed=2),
    "qwen2": TinyModel("qwen2", hidden=96, heads=6, kv_heads=2, max_position=CONTEXT, seed=3),
    "qwen3": TinyModel("qwen3", head_dim=32, heads=4, kv_heads=1, max_position=CONTEXT, seed=4),
}
# Around every kind of border: one token, a block (16), a prefill chunk (128), many chunks.
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257, 1000, 2999, 3000)
NEW_TOKENS = 6


def prompt(length: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(3, 640) for _ in range(length)]


@functools.lru_cache(maxsize=1)
def the_oracle(folder: Path) -> Any:
    return oracle(folder).to(DEVICE, getattr(torch, DTYPE))


def expected(folder: Path, tokens: list[int], count: int = NEW_TOKENS) -> list[int]:
    """transformers' own greedy generate, past any end-of-sequence token."""
    model = the_oracle(folder)
    ids = torch.tensor([tokens], device=DEVICE)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    result: list[int] = out[0, len(tokens) :].tolist()
    return result


def greedy(**more: Any) -> dict[str, Any]:
    return {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, **more}


def pair_of(folder: Path, transport: str, directory: Path, **changes: Any) -> Pair:
    compute = {"device": DEVICE, "dtype": DTYPE, **changes.pop("engine", {})}
    return Pair.of(folder, transport, directory, engine=compute, **changes)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / request.param, MODELS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", MODELS["llama"])


async def test_every_family_and_length_equals_transformers(folder: Path, tmp_path: Path) -> None:
    async with pair_of(folder, "tcp", tmp_path, kv={"num_blocks": 1024}) as pair:
        for length in LENGTHS:
            tokens = prompt(length, length)
            moved = await pair.disaggregated(tokens, **greedy())
            alone = await pair.aggregated(prompt(length, length + 10_000), **greedy())
            assert (moved.status, moved.prefill_status) == (200, 200), moved
            assert moved.tokens == [expected(folder, tokens)], length
            assert alone.tokens == [expected(folder, prompt(length, length + 10_000))], length
            again = await pair.aggregated(tokens, **greedy())
            assert again.tokens == moved.tokens
        stats = pair.decode.parts.engine.stats()
        assert stats.prompt_tokens_transferred == sum(LENGTHS)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_32_at_once_equal_transformers(folder: Path, transport: str, tmp_path: Path) -> None:
    prompts = [prompt(random.Random(i).choice(LENGTHS), i) for i in range(32)]
    async with pair_of(folder, transport, tmp_path, kv={"num_blocks": 4096}) as pair:
        answers = await asyncio.gather(*(pair.disaggregated(tokens, **greedy()) for tokens in prompts))
        assert {answer.status for answer in answers} == {200}
        computed = pair.decode.parts.engine.stats().prompt_tokens_computed
    assert [answer.tokens[0] for answer in answers] == [expected(folder, tokens) for tokens in prompts]
    assert computed == 0, "decode computed prompt tokens"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("held", ["none", "some", "all"])
async def test_a_held_prefix_is_neither_moved_nor_trusted_wrongly(
    llama: Path, transport: str, held: str, tmp_path: Path
) -> None:
    tokens = prompt(200, 7)
    prefix = {"none": [], "some": tokens[:100], "all": tokens}[held]
    async with pair_of(llama, transport, tmp_path) as pair:
        if prefix:
            await pair.aggregated(prefix, **greedy())
        before = pair.decode.parts.engine.stats().prompt_tokens_transferred
        answer = await pair.disaggregated(tokens, **greedy())
        moved = pair.decode.parts.engine.stats().prompt_tokens_transferred - before
    assert answer.tokens == [expected(llama, tokens)]
    assert moved == 200 - {"none": 0, "some": 96, "all": 192}[held]


async def test_a_small_pool_preempts_and_queues_yet_answers_right(llama: Path, tmp_path: Path) -> None:
    prompts = [prompt(60 + i, 100 + i) for i in range(16)]
    async with pair_of(llama, "tcp", tmp_path, kv={"num_blocks": 24}) as pair:
        wanted = greedy(max_tokens=40)
        moved = await asyncio.gather(*(pair.disaggregated(tokens, policy="recompute", **wanted) for tokens in prompts))
        alone = await asyncio.gather(*(pair.aggregated(tokens, **wanted) for tokens in prompts))
    reference = [expected(llama, tokens, 40) for tokens in prompts]
    assert [answer.tokens[0] for answer in moved] == reference
    assert [answer.tokens[0] for answer in alone] == reference


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module", params=["tcp", "ucx/shm"])
def standing(
    request: pytest.FixtureRequest, llama: Path, loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    async def start() -> Pair:
        return await pair_of(llama, request.param, tmp_path_factory.mktemp("pair")).__aenter__()

    pair = loop.run(start())
    yield pair
    loop.run(pair.__aexit__())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 400),
    shared=st.integers(0, 400),
    family=st.integers(0, 3),
    n=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 2**32),
    penalty=st.sampled_from([0.0, 0.8]),
    max_tokens=st.integers(1, 12),
    warm_decode=st.booleans(),
)
def test_any_request_gets_the_same_tokens_from_the_pair_as_from_one_worker(
    standing: Pair, loop: LoopThread, length: int, shared: int, family: int, warm_decode: bool, **params: Any
) -> None:
    head = prompt(min(shared, length), family)
    tokens = head + prompt(length - len(head), params["seed"] % 1000)
    wanted = {"ignore_eos": True, "presence_penalty": params.pop("penalty"), **params}

    async def ask() -> None:
        if warm_decode and head:
            await standing.aggregated(head, **greedy())
        moved, alone = await asyncio.gather(
            standing.disaggregated(tokens, **wanted), standing.aggregated(tokens, **wanted)
        )
        assert moved.status == alone.status == 200, (moved, alone)
        assert moved.tokens == alone.tokens
        await standing.check_quiet()

    loop.run(ask())
