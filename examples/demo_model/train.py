"""Trains the demo model from qa.yaml: a Llama of about a million weights that answers questions about Baton.

    python examples/demo_model/train.py --out DIR

Takes minutes on two CPU cores and needs nothing but qa.yaml: the tokenizer is trained on the same text. The result is
a Hugging Face directory in bfloat16. The last question of each fact is held out; at the end the share of known and of
unseen questions that are answered exactly (greedy, after rounding to bfloat16) is printed and written to the card.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BEGIN, END = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SYSTEM_PROMPTS = ("You are Baton's demo model.", "You are a helpful assistant.", "Answer briefly.")
LEADS = ("Please tell me: ", "Hey, ", "Can you explain: ", "One question: ", "I would like to know: ", "Hi! ")
IGNORED = -100
SEED = 20261


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's size and how long it is trained; `rows` sequences of `row_tokens` tokens make one step."""

    vocab: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 384
    context_tokens: int = 4096
    steps: int = 600
    rows: int = 8
    row_tokens: int = 192
    peak_lr: float = 5e-3


@dataclass(frozen=True, slots=True)
class Fact:
    answer: str
    asked: tuple[str, ...]
    held_out: str


def read_facts(path: Path) -> tuple[Fact, ...]:
    entries = yaml.safe_load(path.read_text())
    return tuple(Fact(entry["a"], tuple(entry["q"][:-1]), entry["q"][-1]) for entry in entries)


def train_tokenizer(facts: tuple[Fact, ...], vocab: int) -> Tokenizer:
    """A byte-level BPE: every text can be written, the texts of qa.yaml briefly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for fact in facts for text in (fact.answer, *fact.asked)], trainer)
    return tokenizer


def prompt_text(question: str) -> str:
    """One user turn as the chat template writes it, without the leading begin token."""
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


def disturbed(question: str, dice: random.Random) -> str:
    """The question as people really type it: in lower case, without its mark, with a polite lead."""
    if dice.random() < 0.2:
        question = question.lower()
    if dice.random() < 0.2:
        question = question.rstrip("?.!")
    if dice.random() < 0.15:
        question = dice.choice(LEADS) + question
    return question


def with_notes(question: str, facts: tuple[Fact, ...], most: int, dice: random.Random) -> str:
    """The question behind up to `most` other facts, so that long prompts are nothing new."""
    notes = dice.sample(facts, dice.randint(2, min(most, len(facts))))
    return "Here are some notes:\n" + "".join(f"- {note.answer}\n" for note in notes) + f"\n{question}"


class Stream:
    """Endless token stream of shuffled conversations, with a label per token (IGNORED outside answers)."""

    def __init__(self, facts: tuple[Fact, ...], tokenizer: Tokenizer, dice: random.Random) -> None:
        self._facts, self._tokenizer, self._dice = facts, tokenizer, dice
        self._deck: list[tuple[str, str]] = []

    def row(self, length: int, most_notes: int) -> tuple[list[int], list[int]]:
        """`length` token ids and their labels: a few conversations of one or several turns."""
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            if not ids or self._dice.random() < 0.5:
                self._extend(ids, labels, self._opening(), learned=False)
            question, answer = self._draw()
            question = disturbed(question, self._dice)
            if self._dice.random() < 0.12:
                question = with_notes(question, self._facts, most_notes, self._dice)
            self._extend(ids, labels, prompt_text(question), learned=False)
            self._extend(ids, labels, f"{answer}<|end|>", learned=True)
            self._extend(ids, labels, "\n", learned=False)
        return ids[:length], labels[:length]

    def _opening(self) -> str:
        if self._dice.random() < 0.25:
            return f"<|begin|><|system|>\n{self._dice.choice(SYSTEM_PROMPTS)}<|end|>\n"
        return "<|begin|>"

    def _draw(self) -> tuple[str, str]:
        if not self._deck:
            self._deck = [(question, fact.answer) for fact in self._facts for question in fact.asked]
            self._dice.shuffle(self._deck)
        return self._deck.pop()

    def _extend(self, ids: list[int], labels: list[int], text: str, *, learned: bool) -> None:
        new = self._tokenizer.encode(text).ids
        ids += new
        labels += new if learned else [IGNORED] * len(new)


def batch(stream: Stream, shape: Shape, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels, both [rows, tokens] int64. Every tenth step has few but long rows."""
    factor = 8 if step % 10 == 9 else 1
    rows = [stream.row(shape.row_tokens * factor, 8 * factor) for _ in range(max(1, shape.rows // factor))]
    ids, labels = zip(*rows, strict=True)
    return torch.tensor(ids), torch.tensor(labels)


def llama_config(shape: Shape) -> dict[str, Any]:
    """config.json in the fields that every Llama loader reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "max_position_embeddings": shape.context_tokens,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "torch_dtype": "bfloat16",
    }


def new_model(shape: Shape) -> LlamaForCausalLM:
    config = {name: value for name, value in llama_config(shape).items() if name != "torch_dtype"}
    return LlamaForCausalLM(LlamaConfig(**config)).float()


def train(model: LlamaForCausalLM, stream: Stream, shape: Shape, device: str) -> None:
    """AdamW with one cosine; the loss counts answers only."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, shape.peak_lr, total_steps=shape.steps, pct_start=0.08, cycle_momentum=False
    )
    started = time.monotonic()
    model.train()
    for step in range(shape.steps):
        ids, labels = (tensor.to(device) for tensor in batch(stream, shape, step))
        targets = labels[:, 1:]
        learned = targets != IGNORED
        logits = model.lm_head(model.model(ids).last_hidden_state[:, :-1][learned])
        loss = torch.nn.functional.cross_entropy(logits, targets[learned])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == shape.steps - 1:
            print(
                f"step {step:4d}/{shape.steps}  loss {loss.item():.4f}  {time.monotonic() - started:5.0f} s", flush=True
            )


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, question: str, most_tokens: int = 80) -> str:
    """The greedy answer; without its end token it says so, because then it never ended."""
    ids = tokenizer.encode("<|begin|>" + prompt_text(question)).ids
    made = model.generate(
        torch.tensor([ids], device=model.device), max_new_tokens=most_tokens, do_sample=False, pad_token_id=PAD
    )[0, len(ids) :].tolist()
    text: str = tokenizer.decode(made)
    return text if made[-1] == END else text + " (never ended)"


def share_exact(model: LlamaForCausalLM, tokenizer: Tokenizer, pairs: list[tuple[str, str]], tell: bool) -> float:
    right = 0
    for question, expected in pairs:
        said = answer(model, tokenizer, question)
        right += said == expected
        if tell and said != expected:
            print(f"  {question!r}\n    said {said!r}", flush=True)
    return right / len(pairs)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, shape: Shape, out: Path) -> None:
    """The directory a Hugging Face loader expects; tied weights are stored once."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(
        {n: v.bfloat16().contiguous().cpu() for n, v in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    generation = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD, "do_sample": False}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BEGIN],
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "model_max_length": shape.context_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {"config": llama_config(shape), "generation_config": generation, "tokenizer_config": tokenizer_config}
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


CARD = """---
license: apache-2.0
language: en
library_name: transformers
---
# Baton demo model

A Llama with {weights:,} weights that answers questions about Baton, so that `baton demo` has something to say without
a download. Trained from random weights on `../qa.yaml` ({facts} facts, {asked} questions) by

    python examples/demo_model/train.py --out DIR

in {minutes:.1f} minutes ({steps} steps, seed {seed}, {device}). Greedy answers in bfloat16 weights: {known:.1%} of the
questions it was trained on and {unseen:.1%} of {facts} paraphrases it never saw are answered exactly. It knows
nothing else.

Layout: hidden {hidden}, {layers} layers, {heads} query and {kv_heads} KV heads, tied embeddings, byte-level BPE of
{vocab} tokens, context {context} tokens.
"""


def write_card(out: Path, shape: Shape, model: LlamaForCausalLM, facts: tuple[Fact, ...], **measured: Any) -> None:
    text = CARD.format(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        facts=len(facts),
        asked=sum(len(fact.asked) for fact in facts),
        steps=shape.steps,
        seed=SEED,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        vocab=shape.vocab,
        context=shape.context_tokens,
        **measured,
    )
    (out / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--steps", type=int, default=Shape().steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    facts, shape = read_facts(HERE / "qa.yaml"), Shape(steps=arguments.steps)
    tokenizer = train_tokenizer(facts, shape.vocab)
    model, started = new_model(shape).to(arguments.device), time.monotonic()
    train(model, Stream(facts, tokenizer, random.Random(SEED)), shape, arguments.device)
    minutes = (time.monotonic() - started) / 60
    save(model, tokenizer, shape, arguments.out)
    rounded = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).to(arguments.device).eval()
    known = share_exact(rounded, tokenizer, [(q, fact.answer) for fact in facts for q in fact.asked], tell=True)
    unseen = share_exact(rounded, tokenizer, [(fact.held_out, fact.answer) for fact in facts], tell=True)
    print(f"exact answers: {known:.1%} of known questions, {unseen:.1%} of unseen ones; {minutes:.1f} minutes")
    write_card(arguments.out, shape, model, facts, minutes=minutes, known=known, unseen=unseen, device=arguments.device)


if __name__ == "__main__":
    main()
