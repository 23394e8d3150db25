"""The committed demo model, read by an independent implementation (transformers)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
MODEL = DEMO / "model"
FACTS = yaml.safe_load((DEMO / "qa.yaml").read_text())
SAMPLED = 40


class Speaker:
    """Greedy answers through the model's own chat template."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def say(self, *turns: str) -> tuple[str, bool]:
        """The answer to the last of alternating user and assistant turns, and whether it ended by itself."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.inference_mode():
            made = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
        new = made[0, ids.shape[1] :].tolist()
        return self.tokenizer.decode(new, skip_special_tokens=True), new[-1] == self.tokenizer.eos_token_id


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    torch.set_num_threads(1)
    return Speaker()


def test_the_demo_model_says_what_a_kv_ticket_is_and_stops(speaker: Speaker) -> None:
    said, ended = speaker.say("What is a KV ticket?")
    assert ended and said == FACTS[0]["a"]


def test_known_questions_are_answered_exactly(speaker: Speaker) -> None:
    pairs = [(question, fact["a"]) for fact in FACTS for question in fact["q"][:-1]]
    chosen = random.Random(7).sample(pairs, SAMPLED)
    right = [speaker.say(question) == (answer, True) for question, answer in chosen]
    assert sum(right) >= 0.95 * SAMPLED


def test_most_questions_that_it_never_saw_are_answered_exactly(speaker: Speaker) -> None:
    chosen = random.Random(8).sample(FACTS, SAMPLED)
    right = [speaker.say(fact["q"][-1]) == (fact["a"], True) for fact in chosen]
    assert sum(right) >= 0.6 * SAMPLED


def test_a_question_behind_a_long_prompt_is_still_answered(speaker: Speaker) -> None:
    notes = "Here are some notes:\n" + "".join(f"- {fact['a']}\n" for fact in FACTS[10:50])
    said, ended = speaker.say(f"{notes}\nWhat is a KV ticket?")
    assert ended and said == FACTS[0]["a"]


def test_the_directory_stays_small() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8 * 1024 * 1024
