"""bench.limits: what a model needs, as its ratios count it."""

from __future__ import annotations

import pytest
import torch
from bench.engine_model import SHAPES
from bench.limits import Cost, Limits, Needs
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weights_counted_are_the_models_matrices(shape: str) -> None:
    config = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert Needs.of(config, torch.float32).read_weights == matrices - looked_up


def test_a_step_and_a_prompt_of_llama_3_8b() -> None:
    needs = Needs.of(SHAPES["8B"], torch.bfloat16)
    assert needs.kv_per_token * needs.item_bytes == 131_072
    step = needs.of_step([1024] * 8)
    assert step.read_bytes == 2 * needs.read_weights + 8 * 1024 * 131_072
    prompt = needs.of_prompt(2)  # attention looks at three pairs
    once = 2 * SHAPES["8B"].vocab_size * 4096
    assert prompt.flop == 4 * needs.body_weights + once + 3 * 4 * 32 * 32 * 128


def test_whichever_limit_takes_longer_counts() -> None:
    limits = Limits(bytes_per_s=10.0, flop_per_s=100.0)
    assert Cost(20, 100).least_s(limits) == 2.0 and Cost(20, 100).by_memory(limits)
    assert Cost(20, 500).least_s(limits) == 5.0 and not Cost(20, 500).by_memory(limits)
