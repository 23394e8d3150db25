"""A block store over plain memory: block ids may wrap around a smaller pool, to keep a long prompt's source small."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import numpy as np

from baton_api.layout import KvLayout
from baton_kv.settings import KvSettings

LAYOUTS = {
    "llama-3-8b": KvLayout("llama-3-8b", 32, 8, 128, 16, "bfloat16", "kv"),  # 2 MiB a block
    "qwen3-32b": KvLayout("qwen3-32b", 64, 8, 128, 16, "bfloat16", "kv"),  # 4 MiB a block
}
KEY = b"b" * 32
SOURCE_BYTES = 128 << 20
SEED = 7


def settings(transport: str) -> KvSettings:
    """The product's, but for heartbeats: the puller's event loop stands still while its peers are measured."""
    return KvSettings(transport=transport, heartbeat_s=60.0)


class WrappedStore:
    """`num_blocks` ids over `memory`; block i lies at i modulo what fits. A destination must not wrap."""

    def __init__(self, layout: KvLayout, num_blocks: int, memory: mmap.mmap) -> None:
        self.layout, self.num_blocks = layout, num_blocks
        self._view, self._fits = memoryview(memory), len(memory) // layout.block_bytes

    def view(self, block_id: int) -> memoryview:
        start = block_id % self._fits * self.layout.block_bytes
        return self._view[start : start + self.layout.block_bytes]

    def before_send(self, block_ids: Sequence[int]) -> None:
        """Host memory is always current."""

    def after_land(self, block_ids: Sequence[int]) -> None:
        """Host memory is all there is."""


def memory(size_bytes: int) -> mmap.mmap:
    """As the engine's pool: private, page-aligned, huge pages where the kernel grants them."""
    found = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        found.madvise(mmap.MADV_HUGEPAGE)
    return found


def source_memory() -> mmap.mmap:
    """The same random bytes in every process that asks."""
    found = memory(SOURCE_BYTES)
    np.frombuffer(found, np.uint8)[:] = np.frombuffer(np.random.default_rng(SEED).bytes(SOURCE_BYTES), np.uint8)
    return found
