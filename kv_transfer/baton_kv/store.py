"""BlockStore: the memory of a block pool, as the KV transfer sees it. Pure.

The engine's block store has this shape; the two packages do not import each other, so the contract is structural.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from baton_api.layout import KvLayout


class BlockStore(Protocol):
    """Block ids are in [0, num_blocks). `view` is writable host memory, `layout.block_bytes` long, format "B"."""

    @property
    def layout(self) -> KvLayout: ...

    @property
    def num_blocks(self) -> int: ...

    def view(self, block_id: int) -> memoryview: ...

    def before_send(self, block_ids: Sequence[int]) -> None:
        """Makes the host bytes of these blocks current (device to host)."""

    def after_land(self, block_ids: Sequence[int]) -> None:
        """Takes over verified host bytes of these blocks (host to device)."""
