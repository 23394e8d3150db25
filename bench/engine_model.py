"""The random Llama that bench.engine runs in both engines: 8 layers, hidden 512, 27 M parameters, float32."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig

VOCAB = 8192


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=False,
        initializer_range=0.05, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def make(folder: Path) -> None:
    """The same weights every time. The tokenizer is only there to be loaded: prompts are token ids."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(), dtype=torch.float32).save_pretrained(folder)
    words = {f"t{i}": i for i in range(VOCAB)}
    Tokenizer(models.WordLevel(words, unk_token="t0")).save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
