"""The memory of the paged KV: one contiguous region per block, all layers in it (block-major).

A block is [num_layers, 2 (K, V), num_kv_heads, block_tokens, head_dim]: its bytes are one message on the wire, and the
tokens of one head are one contiguous run, so that the runs of a sequence's blocks, copied one after the other, are the
head's keys as a dense matrix. (Tokens outside heads need fewer, longer copies, but then attention reads strided keys:
decode attention at 1000 tokens of context took 15-20 % longer on a CPU.)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from baton_api.errors import SettingError
from baton_api.layout import KvLayout

ARRANGEMENT = "native:layer,kv,head,token,dim"
SLAB_BLOCKS = 32


def torch_dtype(name: str) -> torch.dtype:
    """ "float32" -> torch.float32."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class KvPool:
    """All blocks as flat rows, seen at two grains; both are views of the same memory.

    `token_rows` [runs * block_tokens, head_dim] and `run_rows` [runs, block_tokens * head_dim], where run
    ((block * num_layers + layer) * 2 + kv) * num_kv_heads + head holds one head's keys or values of a block.
    """

    def __init__(self, layout: KvLayout, flat: Tensor) -> None:
        self.layout = layout
        self.blocks = flat.view(-1, layout.block_bytes // flat.element_size())
        """[num_blocks, elements of a block]."""
        self.token_rows = flat.view(-1, layout.head_dim)
        self.run_rows = flat.view(-1, layout.block_tokens * layout.head_dim)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, destination) each, as if all at once."""
        index = torch.tensor(pairs, dtype=torch.int64, device=self.blocks.device).view(-1, 2)
        self.blocks.index_copy_(0, index[:, 1], self.blocks.index_select(0, index[:, 0]))


class TorchBlockStore:
    """Blocks in host memory: `view` is the very memory the model reads and writes.

    The memory is page-aligned, private to the process, zeroed and touched, so that registering it (RDMA) or a first
    write never waits for the kernel.
    """

    def __init__(self, layout: KvLayout, num_blocks: int) -> None:
        self.layout, self.num_blocks = layout, num_blocks
        self._memory = _host_memory(layout.block_bytes * num_blocks)
        flat = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._bytes = memoryview(self._memory)
        self.pool = KvPool(layout, flat.zero_().view(torch_dtype(layout.dtype)))

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        return self._bytes[_checked(block_id, self.num_blocks) * size : (block_id + 1) * size]

    def before_send(self, block_ids: Sequence[int]) -> None:
        """The host bytes are the KV: nothing to do."""

    def after_land(self, block_ids: Sequence[int]) -> None:
        """The host bytes are the KV: nothing to do."""


class StagedBlockStore:
    """Blocks in device memory with host copies of those that travel.

    Host memory is made in slabs of `SLAB_BLOCKS` blocks at the first view of one of them (pinned on CUDA), so that a
    pool that never moves a block has none. Copies run on a stream of their own, behind the compute that was queued
    before, and are finished when the call returns.
    """

    def __init__(self, layout: KvLayout, num_blocks: int, device: torch.device) -> None:
        self.layout, self.num_blocks = layout, num_blocks
        elements = layout.block_bytes * num_blocks // torch_dtype(layout.dtype).itemsize
        self.pool = KvPool(layout, torch.zeros(elements, dtype=torch_dtype(layout.dtype), device=device))
        self._slabs: dict[int, Tensor] = {}
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def view(self, block_id: int) -> memoryview:
        return self._host(_checked(block_id, self.num_blocks)).numpy().data

    def before_send(self, block_ids: Sequence[int]) -> None:
        self._copy([(self._host(block), self._device_bytes(block)) for block in block_ids])

    def after_land(self, block_ids: Sequence[int]) -> None:
        self._copy([(self._device_bytes(block), self._host(block)) for block in block_ids])

    def _host(self, block_id: int) -> Tensor:
        """[block_bytes] uint8 on the host."""
        slab, offset = divmod(block_id, SLAB_BLOCKS)
        if slab not in self._slabs:
            shape = (SLAB_BLOCKS, self.layout.block_bytes)
            self._slabs[slab] = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        return self._slabs[slab][offset]

    def _device_bytes(self, block_id: int) -> Tensor:
        return self.pool.blocks[_checked(block_id, self.num_blocks)].view(torch.uint8)

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """(destination, source) each."""
        if self._stream is None:
            for destination, source in pairs:
                destination.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            for destination, source in pairs:
                destination.copy_(source, non_blocking=True)
        self._stream.synchronize()


KvStore = TorchBlockStore | StagedBlockStore


def make_store(layout: KvLayout, num_blocks: int, device: torch.device) -> KvStore:
    """The store for this device. Raises SettingError when the memory is not to be had.

    Linux grants more than it has and kills whoever touches it, so what the machine has is asked first.
    """
    size = layout.block_bytes * num_blocks
    if device.type == "cpu" and size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise SettingError("kv_bytes", size, "is more than this machine's memory", "use a smaller KV cache")
    try:
        if device.type == "cpu":
            return TorchBlockStore(layout, num_blocks)
        return StagedBlockStore(layout, num_blocks, device)
    except (OSError, RuntimeError) as error:
        raise SettingError("kv_bytes", size, f"could not be allocated ({error})", "use a smaller KV cache") from error


def _host_memory(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # A kernel without transparent huge pages: the same memory, in small pages.
    return memory


def _checked(block_id: int, num_blocks: int) -> int:
    if not 0 <= block_id < num_blocks:
        raise IndexError(f"block {block_id} is not in [0, {num_blocks})")
    return block_id
