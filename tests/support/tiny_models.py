"""Makes tiny random Hugging Face model directories, the same bytes for the same shape.

The weights are spread wide (std about 0.25) so that logits differ clearly and a greedy tie never decides a test.
"""

from __future__ import annotations

import functools
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()

Family = Literal["llama", "qwen2", "qwen3"]

PAD, EOS, IM_START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
SPECIAL_TOKENS = (PAD, IM_START, EOS)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "Prefill runs the first leg, decode runs the second, and the KV cache is the baton that passes between them.",
    "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. How are you today?",
    "def step(self, now): return [block for block in self.blocks if block.lease_until_s > now]",
    'You are a helpful assistant. Answer in JSON: {"name": "Ada", "age": 36, "tags": ["math", "engine"]}.',
    "One two three four five six seven eight nine ten, 0 1 2 3 4 5 6 7 8 9 10 11 12 100 1000 2026.",
    "Ein Staffelstab wird übergeben. Le témoin passe de main en main. Эстафета продолжается.",
    "接力棒在他们之间传递。🙂🏃",
    "user system assistant tool hello world please tell me a story about the sea and the ships that sail on it",
)


@dataclass(frozen=True, slots=True)
class TinyModel:
    """The shape of one tiny model. `rope` is a transformers rope_scaling/rope_parameters mapping without theta."""

    family: Family = "llama"
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    intermediate: int = 128
    vocab: int = 640
    max_position: int = 1024
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: dict[str, Any] | None = field(default=None, hash=False)
    rope_theta: float = 10000.0
    dtype: str = "float32"
    shards: int = 1
    old_style_rope: bool = False
    seed: int = 0
    initializer_range: float = 0.25

    def config(self) -> PretrainedConfig:
        """The transformers config of this shape."""
        shape: dict[str, Any] = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.max_position,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.initializer_range,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta, **(self.rope or {})},
            "bos_token_id": None,
            "pad_token_id": SPECIAL_TOKENS.index(PAD),
            "eos_token_id": SPECIAL_TOKENS.index(EOS),
        }
        if self.family != "qwen2":
            shape["head_dim"] = self.head_dim or self.hidden // self.heads
        if self.family == "llama":
            shape |= {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias}
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[self.family]
        return kind(**shape)


def make_model(folder: Path, shape: TinyModel = TinyModel()) -> Path:
    """Writes config.json, generation_config.json, safetensors, tokenizer.json, tokenizer_config.json; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _random_model(shape)
    shard_bytes = 4 * sum(p.numel() for p in model.parameters()) // shape.shards + 4096
    model.save_pretrained(folder, max_shard_size=shard_bytes if shape.shards > 1 else "50GB")
    if shape.old_style_rope:
        _rewrite_rope_as_v4(folder / "config.json")
    make_tokenizer(folder, shape.vocab)
    return folder


def oracle(folder: Path) -> PreTrainedModel:
    """The transformers model of this folder, in its stored dtype; what our own forward is compared with."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    return model.eval()


def greedy(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """`max_tokens` greedy tokens of the oracle after `prompt`, past any EOS; one full forward per token, no cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(max_tokens):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def make_tokenizer(folder: Path, vocab: int = 640) -> Path:
    """A byte-level BPE tokenizer that can spell every text, with a ChatML template and special tokens 0, 1, 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(vocab), encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "bos_token": None,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {"eos_token_id": [SPECIAL_TOKENS.index(EOS), SPECIAL_TOKENS.index(PAD)], "pad_token_id": 0},
    )
    return folder


def _random_model(shape: TinyModel) -> PreTrainedModel:
    state = torch.get_rng_state()
    torch.manual_seed(shape.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0.0, shape.initializer_range)
                elif "norm" in name:
                    parameter.normal_(1.0, 0.1)
        return model.to(getattr(torch, shape.dtype)).eval()
    finally:
        torch.set_rng_state(state)


@functools.lru_cache(maxsize=8)
def _tokenizer_json(vocab: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*CORPUS, *_made_up_words()), trainer)
    text: str = tokenizer.to_str()
    return text


def _made_up_words() -> list[str]:
    """Enough text for any tiny vocabulary to be full, so that nearly every id a random model draws is a token."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return [f"{first}{second} {second}{first}s" for first in syllables for second in syllables]


def _rewrite_rope_as_v4(path: Path) -> None:
    """transformers v4 wrote rope_theta and rope_scaling where v5 writes rope_parameters."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    _write_json(path, config)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
