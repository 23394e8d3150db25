"""Attention over paged KV: decides once per step what every layer reads and writes, then does it layer by layer.

Rows of a step are ordered: slices of one token (decode) first, by context length, so that sequences of like length
are neighbours and go through one padded call; longer slices (prefill chunks) after them, one call each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Slice
from .config import ModelConfig
from .kv_cache import KvPool

GROUP_BYTES = 1 << 22
"""A padded call gathers about this much KV per layer: enough to hide the calls' cost, and little enough that what was
gathered is still in the CPU's cache (1 MiB was 20 % slower at batch 8, 64 MiB 40 % at batch 32 x 1000 tokens)."""
GROUP_WASTE = 1.25
"""A padded call reads at most this many times the blocks its sequences have."""
MASK_ELEMENTS = 1 << 22
"""A prefill chunk with context is cut so that no mask is larger."""
SHORT_PROMPT = 768
"""On a CPU torch's causal kernel computes keys in blocks of 512, hidden ones included: at 512 tokens half of its work.
Up to this length a prompt goes through in pieces of `PIECE` queries with a mask, each with just the keys that it sees:
25 to 35 % faster in float32, 5 to 25 % in bfloat16. At 1,024 tokens it is even, at 2,048 slower."""
PIECE = 128


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows [begin, end): one query each. `gather` as `PagedAttention._runs`; `mask` [rows, 1, 1, keys] or None."""

    begin: int
    end: int
    gather: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """Rows [begin, end): consecutive queries of one sequence, and the first `keys` tokens of it that they see.

    The keys are those that `gather` fetches (as `PagedAttention._runs`), or without it those of rows from `first` on,
    computed in this very step. `mask` [rows, keys]; without it the attention is causal, query and key i being one row.
    """

    begin: int
    end: int
    keys: int
    mask: Tensor | None = None
    gather: Tensor | None = None
    first: int = 0


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """`write` [num_tokens * 2 * kv_heads]: the token rows of the pool where layer 0's K and V of each token go."""

    write: Tensor
    groups: tuple[DecodeGroup, ...]
    parts: tuple[PrefillPart, ...]


class PagedAttention:
    """The attention of all layers over one pool."""

    def __init__(self, config: ModelConfig, pool: KvPool) -> None:
        self._config, self._pool = config, pool
        self._block_tokens = pool.layout.block_tokens
        self._device, self._dtype = pool.blocks.device, pool.blocks.dtype
        self._scale = 1.0 / math.sqrt(config.head_dim)
        self._layer_runs = 2 * config.num_kv_heads
        self._block_runs = config.num_layers * self._layer_runs
        self._group_blocks = max(1, GROUP_BYTES * config.num_layers // pool.layout.block_bytes)
        self._heads = torch.arange(self._layer_runs, dtype=torch.int64, device=self._device)
        self._scratch = torch.empty(0, dtype=self._dtype, device=self._device)
        self._causal = torch.empty(0, dtype=self._dtype, device=self._device)

    def plan(self, slices: Sequence[Slice], positions: Tensor) -> AttentionPlan:
        """`slices` in row order (decode first, by length); `positions` [num_tokens] int64 of all their tokens."""
        decodes = sum(1 for piece in slices if len(piece.token_ids) == 1)
        return AttentionPlan(
            self._write_rows(slices, positions),
            tuple(self._groups(slices[:decodes])),
            tuple(self._parts(slices[decodes:], decodes)),
        )

    def wipe_fresh_tails(self, slices: Sequence[Slice]) -> None:
        """Zeroes each last, partly written block whose first token is written in this step.

        What an earlier request left there is then neither multiplied (0 x NaN is NaN) nor sent to another worker.
        """
        size = self._block_tokens
        fresh = []
        for piece in slices:
            end = piece.start + len(piece.token_ids)
            if end % size and end - end % size >= piece.start:
                fresh.append(piece.block_ids[end // size])
        if fresh:
            self._pool.blocks.index_fill_(0, self._index(fresh), 0)

    def attend(self, plan: AttentionPlan, layer: int, queries: Tensor, kv: Tensor) -> Tensor:
        """Writes `kv` [num_tokens, 2, kv_heads, head_dim] and attends with `queries` [num_tokens, heads, head_dim].

        Returns [num_tokens, heads * head_dim].
        """
        rows = plan.write + layer * self._layer_runs * self._block_tokens
        self._pool.token_rows.index_copy_(0, rows, kv.reshape(-1, self._config.head_dim))
        out = torch.empty_like(queries)
        for group in plan.groups:
            self._decode(group, layer, queries, out)
        fresh = kv
        if any(part.gather is None for part in plan.parts):
            fresh = kv.permute(1, 2, 0, 3).contiguous()
        for part in plan.parts:
            self._prefill(part, layer, queries, fresh, out)
        return out.flatten(1)

    def _decode(self, group: DecodeGroup, layer: int, queries: Tensor, out: Tensor) -> None:
        """The heads that share a KV head stand as rows of one query matrix, so that its keys are read once."""
        config, rows = self._config, group.end - group.begin
        keys, values = self._gathered(group.gather, layer, rows)
        shape = (rows, config.num_kv_heads, -1, config.head_dim)
        result = F.scaled_dot_product_attention(
            queries[group.begin : group.end].view(shape), keys, values, group.mask, scale=self._scale
        )
        out[group.begin : group.end].view(shape).copy_(result)

    def _prefill(self, part: PrefillPart, layer: int, queries: Tensor, fresh: Tensor, out: Tensor) -> None:
        """`fresh` [2, kv_heads, num_tokens, head_dim], dense: this step's KV, for a part that gathers none."""
        if part.gather is None:
            keys, values = fresh[:, None, :, part.first : part.first + part.keys]
        else:
            keys, values = self._gathered(part.gather, layer, 1)
            keys, values = keys[:, :, : part.keys], values[:, :, : part.keys]
        result = F.scaled_dot_product_attention(
            queries[part.begin : part.end].transpose(0, 1)[None], keys, values, part.mask,
            is_causal=part.mask is None, scale=self._scale, enable_gqa=True,
        )  # fmt: skip
        out[part.begin : part.end].copy_(result[0].transpose(0, 1))

    def _gathered(self, runs: Tensor, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values, [rows, kv_heads, keys, head_dim] each, dense views of the scratch memory."""
        pool, config = self._pool.run_rows, self._config
        index = runs + layer * self._layer_runs
        elements = index.shape[0] * pool.shape[1]
        if self._scratch.shape[0] < elements:
            self._scratch = torch.empty(elements, dtype=self._dtype, device=self._device)
        gathered = self._scratch[:elements].view(index.shape[0], pool.shape[1])
        torch.index_select(pool, 0, index, out=gathered)
        keys, values = gathered.view(2, rows, config.num_kv_heads, -1, config.head_dim)
        return keys, values

    def _write_rows(self, slices: Sequence[Slice], positions: Tensor) -> Tensor:
        size = self._block_tokens
        blocks: list[int] = []
        for piece in slices:
            if len(piece.token_ids) == 1:
                blocks.append(piece.block_ids[piece.start // size])
            else:
                blocks += [piece.block_ids[p // size] for p in range(piece.start, piece.start + len(piece.token_ids))]
        first = self._index(blocks) * (self._block_runs * size) + positions % size
        return (first[:, None] + self._heads * size).flatten()

    def _runs(self, block_ids: Sequence[int], rows: int) -> Tensor:
        """[2 * rows * kv_heads * blocks]: layer 0's runs of the blocks, `rows` sequences of as many blocks each.

        Ordered by K and V, sequence, head, block: copied in this order they are dense matrices of keys and values.
        """
        blocks = self._index(block_ids).view(1, rows, 1, -1) * self._block_runs
        return (blocks + self._heads.view(2, 1, -1, 1)).flatten()

    def _groups(self, slices: Sequence[Slice]) -> list[DecodeGroup]:
        counts = [piece.start // self._block_tokens + 1 for piece in slices]
        return [self._group(slices, counts, begin, end) for begin, end in group_rows(counts, self._group_blocks)]

    def _group(self, slices: Sequence[Slice], counts: list[int], begin: int, end: int) -> DecodeGroup:
        """Short sequences are padded with their own last block, so that no sequence touches another's memory."""
        width, size = counts[end - 1], self._block_tokens
        table: list[int] = []
        for piece, count in zip(slices[begin:end], counts[begin:end], strict=True):
            table += piece.block_ids[:count]
            table += [piece.block_ids[count - 1]] * (width - count)
        lengths = [piece.start + 1 for piece in slices[begin:end]]
        mask = None
        if lengths[0] < width * size:
            hidden = torch.arange(width * size, device=self._device) >= self._index(lengths)[:, None]
            mask = self._additive(hidden)[:, None, None]
        return DecodeGroup(begin, end, self._runs(table, end - begin), mask)

    def _parts(self, slices: Sequence[Slice], row: int) -> list[PrefillPart]:
        parts: list[PrefillPart] = []
        for piece in slices:
            count = len(piece.token_ids)
            if piece.start:
                parts += self._parts_with_context(piece, row)
            elif self._device.type == "cpu" and PIECE < count <= SHORT_PROMPT:
                parts += self._parts_of_short_prompt(count, row)
            else:
                parts.append(PrefillPart(row, row + count, count, first=row))
            row += count
        return parts

    def _parts_of_short_prompt(self, count: int, row: int) -> list[PrefillPart]:
        masks = self._causal_mask(count)
        cuts = [(begin, min(begin + PIECE, count)) for begin in range(0, count, PIECE)]
        return [PrefillPart(row + begin, row + end, end, masks[begin:end, :end], first=row) for begin, end in cuts]

    def _causal_mask(self, count: int) -> Tensor:
        """At least [count, count]; kept, as it is the same for every prompt."""
        if self._causal.shape[0] < count:
            places = torch.arange(SHORT_PROMPT, device=self._device)
            self._causal = self._additive(places > places[:, None])
        return self._causal

    def _parts_with_context(self, piece: Slice, row: int) -> list[PrefillPart]:
        count, size = len(piece.token_ids), self._block_tokens
        step = max(1, MASK_ELEMENTS // (piece.start + count))
        parts = []
        for begin in range(0, count, step):
            end = min(begin + step, count)
            keys = piece.start + end
            queries_at = torch.arange(piece.start + begin, keys, device=self._device)
            mask = self._additive(torch.arange(keys, device=self._device) > queries_at[:, None])
            gather = self._runs(piece.block_ids[: -(-keys // size)], 1)
            parts.append(PrefillPart(row + begin, row + end, keys, mask, gather, first=row))
        return parts

    def _additive(self, hidden: Tensor) -> Tensor:
        """A bool mask (True is hidden) as what is added to the scores."""
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, -math.inf)

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)


def group_rows(counts: Sequence[int], limit_blocks: int) -> list[tuple[int, int]]:
    """Cuts ascending block counts into [begin, end) runs that one padded call may serve.

    A run holds at most about `limit_blocks` padded blocks (one sequence always fits) and at most `GROUP_WASTE` times
    the blocks that its sequences have.
    """
    runs: list[tuple[int, int]] = []
    begin, held = 0, 0
    for end, count in enumerate(counts):
        padded = count * (end - begin + 1)
        if end > begin and (padded > limit_blocks or padded > GROUP_WASTE * (held + count)):
            runs.append((begin, end))
            begin, held = end, 0
        held += count
    if counts:
        runs.append((begin, len(counts)))
    return runs
