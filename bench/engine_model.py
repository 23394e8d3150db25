"""The random models that bench.engine and bench.pd run in both engines, the same weights every time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

IDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
SHAPES: dict[str, PretrainedConfig] = {
    "small": LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=False,
        initializer_range=0.05, **IDS,
    ),
    "0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, initializer_range=0.05, **IDS,
    ),
    "8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=8192, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, initializer_range=0.02, **IDS,
    ),
}  # fmt: skip
"""8 layers, hidden 512, 27 M parameters; Qwen2.5-0.5B's shape, 494 M parameters; Llama-3-8B's, 8,030 M."""


def make(folder: Path, name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """The Hugging Face directory of SHAPES[name], its numbers drawn on `device`. Its tokenizer has one word "t<id>" for
    each id."""
    torch.manual_seed(0)
    config = SHAPES[name]
    folder.mkdir(exist_ok=True)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    words = {f"t{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]))
