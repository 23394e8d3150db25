"""Steps a TorchRunner by hand: sequences with block tables of their own, chunked prefill, batched decode."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.batch import Draw, Slice
from baton_engine.runner import TorchRunner

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Blocks:
    """Hands out block ids in a shuffled order, so that no test depends on neighbours being neighbours."""

    total: int
    seed: int = 0
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.free = list(range(self.total))
        random.Random(self.seed).shuffle(self.free)

    def take(self, count: int) -> list[int]:
        return [self.free.pop() for _ in range(count)]


@dataclass
class Running:
    """One sequence: its prompt, what was drawn, how many tokens' KV is computed, and its block table."""

    prompt: list[int]
    params: SamplingParams = GREEDY
    choice: int = 0
    output: list[SampledToken] = field(default_factory=list)
    computed: int = 0
    block_ids: list[int] = field(default_factory=list)

    @property
    def output_ids(self) -> list[int]:
        return [token.token_id for token in self.output]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output_ids

    def next_slice(self, blocks: Blocks, block_tokens: int, chunk: int = 1 << 30) -> Slice:
        """The next at most `chunk` tokens; draws when they reach the end."""
        end = min(self.computed + chunk, len(self.tokens))
        self.block_ids += blocks.take(-(-end // block_tokens) - len(self.block_ids))
        draws = (Draw(self.params, self.choice, self.prompt, self.output_ids),) if end == len(self.tokens) else ()
        piece = Slice(self.tokens[self.computed : end], self.computed, tuple(self.block_ids), draws)
        self.computed = end
        return piece


def step(runner: TorchRunner, running: Sequence[Running], blocks: Blocks, chunk: int = 1 << 30) -> None:
    """One step for all sequences, tokens appended."""
    size = runner.layout.block_tokens
    for sequence, drawn in zip(running, runner.run([s.next_slice(blocks, size, chunk) for s in running]), strict=True):
        sequence.output += drawn


def generate(
    runner: TorchRunner, prompt: list[int], max_tokens: int, params: SamplingParams = GREEDY, chunk: int = 1 << 30
) -> list[int]:
    """One sequence alone, from prompt to `max_tokens` tokens; the pool is taken to be free."""
    sequence, blocks = Running(prompt, params), Blocks(runner.store.num_blocks)
    while len(sequence.output) < max_tokens:
        step(runner, [sequence], blocks, chunk)
    return sequence.output_ids
