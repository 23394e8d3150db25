"""Our forward pass over paged KV gives transformers' logits and tokens, however the work is cut and batched."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton_engine.batch import Draw, Slice
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings
from support.stepping import GREEDY, Blocks, Running, generate, step
from support.tiny_models import LLAMA3_ROPE, TinyModel, greedy, make_model, oracle

SHAPES = {
    "llama, 2 queries per KV head": TinyModel(),
    "llama, one KV head": TinyModel(kv_heads=1, layers=3),
    "llama, as many KV heads as heads": TinyModel(kv_heads=4),
    "llama, tied": TinyModel(tied=True, vocab=512),
    "llama, wide heads": TinyModel(head_dim=32),
    "llama, llama3 rope": TinyModel(rope=LLAMA3_ROPE, rope_theta=500000.0),
    "llama, llama3 rope as v4 wrote it": TinyModel(rope=LLAMA3_ROPE, old_style_rope=True),
    "llama, linear rope": TinyModel(rope={"rope_type": "linear", "factor": 4.0}),
    "llama, sharded": TinyModel(shards=4, layers=4),
    "llama, all biases": TinyModel(attention_bias=True, mlp_bias=True),
    "qwen2": TinyModel(family="qwen2"),
    "qwen2, tied, theta as v4 wrote it": TinyModel(family="qwen2", tied=True, rope_theta=1e6, old_style_rope=True),
    "qwen3": TinyModel(family="qwen3"),
    "qwen3, narrow heads": TinyModel(family="qwen3", head_dim=8, heads=6, kv_heads=3, hidden=48),
    "qwen3, wide heads, tied": TinyModel(family="qwen3", head_dim=32, tied=True),
}
BLOCK_TOKENS = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def load(folder: Path, dtype: str = "auto", num_blocks: int = 128, block_tokens: int = BLOCK_TOKENS) -> TorchRunner:
    return TorchRunner.load(folder, TensorSettings(dtype=dtype, num_blocks=num_blocks, block_tokens=block_tokens))


def prompt_of(length: int, seed: int = 0, vocab: int = 512) -> list[int]:
    rng = random.Random(1000 * length + seed)
    return [rng.randrange(3, vocab) for _ in range(length)]


def last_logits(runner: TorchRunner, prompt: list[int], cuts: list[int]) -> Tensor:
    """Prefills `prompt` cut at `cuts`; the logits [vocab] of its last token."""
    block_ids = Blocks(runner.store.num_blocks).take(-(-len(prompt) // runner.layout.block_tokens))
    edges = [0, *cuts, len(prompt)]
    for begin, end in itertools.pairwise(edges):
        draws = (Draw(GREEDY, 0, prompt, ()),) if end == len(prompt) else ()
        logits = runner.logits([Slice(prompt[begin:end], begin, block_ids, draws)])
    return logits[0]


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path, SHAPES[name])
    reference, runner = oracle(folder), load(folder)
    for length in (1, 2, 15, 16, 17, 33, 100):
        prompt = prompt_of(length)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(last_logits(runner, prompt, []), expected, rtol=1e-4, atol=1e-4)
    assert generate(runner, prompt_of(15), 20) == greedy(reference, prompt_of(15), 20)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("block_tokens", [1, 7, 16, 32])
def test_a_prompt_cut_into_random_chunks_gives_the_logits_of_the_whole(
    tmp_path: Path, family: str, block_tokens: int
) -> None:
    runner = load(make_model(tmp_path, TinyModel(family=family)), num_blocks=400, block_tokens=block_tokens)  # type: ignore[arg-type]
    rng = random.Random(block_tokens)
    for length in (2, block_tokens + 1, 63, 300):
        prompt = prompt_of(length)
        whole = last_logits(runner, prompt, [])
        for _ in range(3):
            cuts = sorted(rng.sample(range(1, length), k=min(length - 1, rng.randint(1, 6))))
            torch.testing.assert_close(last_logits(runner, prompt, cuts), whole, rtol=1e-4, atol=1e-4)


def test_sequences_of_all_lengths_in_one_batch_draw_the_tokens_they_draw_alone(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path, TinyModel(family="qwen3")), num_blocks=256)
    prompts = [prompt_of(length, seed=1) for length in (1, 3, 15, 16, 17, 31, 32, 33, 64, 100, 290, 17, 16, 2)]
    alone = [generate(runner, prompt, 24) for prompt in prompts]
    running, blocks = [Running(prompt) for prompt in prompts], Blocks(256)
    while left := [s for s in running if len(s.output) < 24]:
        step(runner, left, blocks, chunk=37)
    assert [s.output_ids for s in running] == alone


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bfloat16_stays_close_to_transformers_in_bfloat16(tmp_path: Path, family: str) -> None:
    """Both round at the same places and differ in the order of sums only: a small mean error."""
    folder = make_model(tmp_path, TinyModel(family=family, dtype="bfloat16"))  # type: ignore[arg-type]
    reference, runner = oracle(folder), load(folder, dtype="bfloat16")
    assert load(folder).layout.dtype == "float32", "what auto means on a CPU"
    for length in (1, 16, 50):
        prompt = prompt_of(length)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0, -1].float()
        for cuts in ([], [length // 2]) if length > 1 else ([],):
            error = (last_logits(runner, prompt, cuts) - expected).abs().mean()
            assert error < 0.03 * expected.std(), (length, cuts)


def test_a_prefill_chunk_too_large_for_one_mask_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    prompt = prompt_of(200)
    whole = last_logits(runner, prompt, [])
    monkeypatch.setattr("baton_engine.attention.MASK_ELEMENTS", 1000)
    torch.testing.assert_close(last_logits(runner, prompt, [50]), whole, rtol=1e-4, atol=1e-4)


def test_logits_come_in_the_order_of_the_slices(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    prompts = [prompt_of(length) for length in (40, 1, 20, 1)]
    blocks = Blocks(runner.store.num_blocks)
    slices = [Slice(p, 0, blocks.take(3), (Draw(GREEDY, 0, p, ()),)) for p in prompts]
    together = runner.logits(slices)
    for row, piece in zip(together, slices, strict=True):
        torch.testing.assert_close(row, runner.logits([piece])[0], rtol=1e-4, atol=1e-4)
