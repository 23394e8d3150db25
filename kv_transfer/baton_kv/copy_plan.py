"""Which blocks of a prompt have to move, and in which runs they are asked for. Pure.

Blocks are named by ordinal: 0 is the prompt's first block. The first `held_blocks` hold the right KV already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from baton_api.blocks import blocks_for


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """`block_ids[ordinal]` is the destination of a block; ordinals in [held_blocks, total_blocks) have to move."""

    block_ids: tuple[int, ...]
    held_blocks: int

    @property
    def total_blocks(self) -> int:
        return len(self.block_ids)

    @property
    def moving_blocks(self) -> int:
        return len(self.block_ids) - self.held_blocks


def plan_copy(
    num_tokens: int, block_tokens: int, block_ids: Sequence[int], held_blocks: int, num_blocks: int
) -> CopyPlan:
    """The plan of one pull into a store of `num_blocks` blocks.

    Raises ValueError when the destination does not fit the prompt, leaves the store or names a block twice: two
    receives into one block would be silent corruption.
    """
    needed = blocks_for(num_tokens, block_tokens)
    if len(block_ids) != needed:
        raise ValueError(f"{num_tokens} tokens need {needed} blocks, {len(block_ids)} were given")
    if not 0 <= held_blocks <= needed:
        raise ValueError(f"held_blocks is {held_blocks}; it must be in [0, {needed}]")
    if len(set(block_ids)) != needed:
        raise ValueError("a destination block is named twice")
    if any(not 0 <= block_id < num_blocks for block_id in block_ids):
        raise ValueError(f"a destination block is outside [0, {num_blocks})")
    return CopyPlan(tuple(block_ids), held_blocks)


def runs(ordinals: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending ordinals as (first, count) of consecutive ones: a run is one message."""
    first, count = 0, 0
    for ordinal in ordinals:
        if count and ordinal == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = ordinal, 1
    if count:
        yield first, count
