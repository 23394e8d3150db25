"""One step of the model, as the scheduler asks for it. Pure.

The seam between the integer half of the engine (block pool, scheduler, loop) and the tensor half (model, sampler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton_api.layout import KvLayout
from baton_api.sampling import SampledToken, SamplingParams

from .nouns import BlockStore


@dataclass(slots=True, eq=False)
class Memory:
    """A place for what the tensor half makes of some tokens and needs again at their next draw."""

    value: object = None


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw one token for one choice from the logits at the slice's last token.

    `prompt` and `output` are the tokens so far (for penalties, min_tokens); the draw's position is len(output), and
    its randomness comes from (params.seed, choice, position) alone. Draws that share a memory have the same prompt,
    or the same output but for tokens added at its end.
    """

    params: SamplingParams
    choice: int
    prompt: Sequence[int]
    output: Sequence[int]
    prompt_memory: Memory = field(default_factory=Memory, compare=False)
    output_memory: Memory = field(default_factory=Memory, compare=False)


@dataclass(frozen=True, slots=True)
class Slice:
    """One sequence's part of a step: compute `token_ids`, which stand at positions `start`, `start` + 1, ...

    `block_ids` is the sequence's block table, long enough for the last of them; the KV of positions below `start` is
    in it already. `draws` is empty while a prompt is unfinished, has n entries at a prompt's end, one in decode.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    draws: tuple[Draw, ...] = ()


class Runner(Protocol):
    """The tensor half. Called from the engine's thread only."""

    @property
    def layout(self) -> KvLayout: ...

    @property
    def store(self) -> BlockStore: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        """Writes the KV of every slice's tokens into its blocks and draws; result[i][j] answers slices[i].draws[j].

        Raises when the step failed: none of its slices has a token then, and their KV is undefined.
        """

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, destination) each."""
