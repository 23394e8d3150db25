"""Small tokenizers made in code, saved as Hugging Face directories: byte-level BPE and sentencepiece-like BPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. Isn't it   fast?\n\n",
    "def f(x):\n    return {'a': [1, 2, 3]}  # 12345",
    "今日は世界、こんにちは。你好,世界!",
    "Ünïcödé naïve café — “quotes” … €5",
    "emoji 😀😃 👩‍👩‍👧 🇩🇪 and 🤷🏽‍♀️",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(folder: Path, **config: Any) -> Path:
    """As GPT-2, Llama 3 and Qwen: bytes as characters, special tokens, no token for the start unless asked."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<|end|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken("<tool>", special=False)])
    return _saved(folder, backend, {"eos_token": "<|end|>", "bos_token": "<|bos|>", **config})


def sentencepiece(folder: Path, **config: Any) -> Path:
    """As Llama 2 and Mistral: `▁` for spaces, one in front, bytes for what the vocabulary lacks, <s> at the start."""
    backend = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SENTENCES[:2], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _saved(folder, backend, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", **config})


def _saved(folder: Path, backend: Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
