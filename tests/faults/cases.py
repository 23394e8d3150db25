"""The known requests that clients make. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .story import Case, Load, Seen


def harder(cases: Sequence[Case], answers: Sequence[Seen]) -> list[Case]:
    """Each case once more with what makes resuming hard: log probabilities, several choices, and a stop string that
    its answer does contain."""
    kinds: tuple[Callable[[str], dict[str, Any]], ...] = (
        lambda text: {"logprobs": 2},
        lambda text: {"n": 2, "temperature": 0.9, "seed": len(text), "presence_penalty": 0.4},
        lambda text: {"stop": [text[2 * len(text) // 3 :][:6]]},
        lambda text: {
            "n": 3,
            "temperature": 0.7,
            "seed": 5,
            "logprobs": 1,
            "stop": [text[len(text) // 2 :][:3]],
        },
    )
    return [
        replace(case, extras=kinds[number % len(kinds)](answer.said[0].text))
        for number, (case, answer) in enumerate(zip(cases, answers, strict=True))
    ]


def cases_of(load: Load, seed: int, vocab: int = 640) -> list[Case]:
    """Known requests, some greedy, some seeded; special tokens are left out."""
    rng = random.Random(seed)

    def one() -> Case:
        prompt = tuple(rng.randrange(3, vocab) for _ in range(rng.randint(*load.prompt_tokens)))
        sampled = rng.randrange(1 << 31) if rng.random() < load.seeded_share else None
        return Case(prompt, rng.randint(*load.max_tokens), sampled)

    return [one() for _ in range(load.cases)]
