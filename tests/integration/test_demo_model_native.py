"""The committed demo model, read by Baton's own engine: paged KV, chunked prompt, own tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings
from baton_engine.text.tokenizer import Tokenizer, load_chat_template
from support.stepping import generate

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
FACTS = yaml.safe_load((DEMO / "qa.yaml").read_text())
NOTES = "Here are some notes:\n" + "".join(f"- {fact['a']}\n" for fact in FACTS[10:50]) + "\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("lead", "chunks_at_least"), [("", 1), (NOTES, 8)])
def test_our_engine_says_what_a_kv_ticket_is_and_stops(dtype: str, lead: str, chunks_at_least: int) -> None:
    torch.set_num_threads(1)
    runner = TorchRunner.load(DEMO / "model", TensorSettings(dtype=dtype, num_blocks=128))
    tokenizer, template = Tokenizer.load(DEMO / "model"), load_chat_template(DEMO / "model")
    assert template is not None
    text = template.render([{"role": "user", "content": f"{lead}What is a KV ticket?"}])
    prompt = tokenizer.encode(text, add_special_tokens=False)
    assert len(prompt) > 100 * (chunks_at_least - 1)
    expected = tokenizer.encode(FACTS[0]["a"], add_special_tokens=False)
    made = generate(runner, prompt, len(expected) + 1, chunk=100)
    assert tokenizer.decode(made) == FACTS[0]["a"] and made[-1] in runner.eos_token_ids
