"""Which KV block is whose: reference counts, prefix cache, LRU eviction. Pure.

Every block is exactly one of: free, cached (findable by key, referenced by nobody), referenced (by one sequence or
several, findable or not). Cached blocks are as good as free: allocating evicts the least recently used of them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from baton_api.blocks import ROOT, BlockKey

from .nouns import KvBlockRemoved, KvBlockStored, KvCleared, KvEvent


class BlockPool:
    """Block ids are 0 .. num_blocks - 1. Memory is O(num_blocks), the events between two take_events() aside."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._name: dict[int, tuple[BlockKey, BlockKey]] = {}
        self._block_of: dict[BlockKey, int] = {}
        self._events: list[KvEvent] = []

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def free_blocks(self) -> int:
        """Blocks that allocate() can give: free ones and cached ones that nobody references."""
        return len(self._free) + len(self._idle)

    @property
    def cached_blocks(self) -> int:
        """Blocks findable by key, referenced or not."""
        return len(self._block_of)

    def references(self, block_id: int) -> int:
        return self._references[block_id]

    def is_cached(self, block_id: int) -> bool:
        return block_id in self._name

    def can_allocate(self, count: int, held: Iterable[int] = ()) -> bool:
        """Could `count` blocks be allocated after share(held)?"""
        return count <= self.free_blocks - sum(1 for block_id in held if not self._references[block_id])

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each and undefined content. Raises ValueError if there are too few."""
        if not self.can_allocate(count):
            raise ValueError(f"asked for {count} blocks, {self.free_blocks} of {self._num_blocks} are free")
        forgotten: list[BlockKey] = []
        taken = [self._take(forgotten) for _ in range(count)]
        self._announce_removed(forgotten)
        for block_id in taken:
            self._references[block_id] = 1
        return taken

    def match(self, keys: Iterable[BlockKey]) -> list[int]:
        """The blocks of the longest prefix of `keys` that is cached. Takes no reference."""
        found: list[int] = []
        for key in keys:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference to each of these blocks, which are cached or referenced already."""
        for block_id in block_ids:
            self._idle.pop(block_id, None)
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One reference less, last block first, so that the tail of a chain is evicted before its head."""
        for block_id in reversed(block_ids):
            if self._references[block_id] < 1:
                raise ValueError(f"block {block_id} is released more often than it was allocated or shared")
            self._references[block_id] -= 1
            if not self._references[block_id]:
                self._retire(block_id)

    def register(self, block_ids: Sequence[int], keys: Sequence[BlockKey], parent: BlockKey) -> None:
        """Makes referenced blocks with final content findable; `keys` is one chain and `parent` the key before it
        (ROOT for none). A key that is findable already keeps its block."""
        stored: list[BlockKey] = []
        for block_id, key, before in zip(block_ids, keys, (parent, *keys), strict=False):
            if key in self._block_of:
                self._announce(stored)
                stored = []
                continue
            self._block_of[key] = block_id
            self._name[block_id] = (key, before)
            stored.append(key)
        self._announce(stored)

    def forget(self, block_ids: Iterable[int]) -> None:
        """Makes blocks unfindable, whoever references them: their content can no longer be trusted."""
        removed = []
        for block_id in block_ids:
            if block_id in self._name:
                removed.append(self._unname(block_id))
                if block_id in self._idle:
                    del self._idle[block_id]
                    self._free.append(block_id)
        self._announce_removed(removed)

    def clear(self) -> None:
        """Makes every block unfindable."""
        self._name.clear()
        self._block_of.clear()
        self._free.extend(self._idle)
        self._idle.clear()
        self._events.append(KvCleared())

    def take_events(self) -> list[KvEvent]:
        """What changed in the prefix cache since the last call, in order."""
        events, self._events = self._events, []
        return events

    def cached_keys(self) -> list[tuple[BlockKey, BlockKey | None]]:
        """(key, parent key or None at the root) of every cached block, parents before children. A parent that was
        evicted before its child is named but has no row."""
        rows: dict[BlockKey, BlockKey | None] = {}
        for key in self._block_of:
            chain = []
            while key in self._block_of and key not in rows:
                before = self._name[self._block_of[key]][1]
                chain.append((key, before if before != ROOT else None))
                key = before
            rows.update(reversed(chain))
        return list(rows.items())

    def check_invariants(self, holders: Iterable[Sequence[int]] = ()) -> None:
        """Raises AssertionError unless every block is exactly once free, cached or referenced, and the references are
        those of `holders` (each the block table of one sequence)."""
        counted = Counter(block_id for table in holders for block_id in table)
        for block_id, references in enumerate(self._references):
            assert references == counted[block_id], (
                f"block {block_id}: {references} references, {counted[block_id]} held"
            )
        referenced = [block_id for block_id, references in enumerate(self._references) if references]
        places = Counter([*self._free, *self._idle, *referenced])
        assert places == Counter(range(self._num_blocks)), "a block is in no place or in two"
        assert not self._name.keys() & set(self._free), "a free block is findable"
        assert self._idle.keys() <= self._name.keys(), "a cached block has no key"
        assert {block: pair[0] for block, pair in self._name.items()} == {b: k for k, b in self._block_of.items()}

    def _take(self, forgotten: list[BlockKey]) -> int:
        if self._free:
            return self._free.pop()
        block_id, _ = self._idle.popitem(last=False)
        forgotten.append(self._unname(block_id))
        return block_id

    def _retire(self, block_id: int) -> None:
        if block_id in self._name:
            self._idle[block_id] = None
        else:
            self._free.append(block_id)

    def _unname(self, block_id: int) -> BlockKey:
        key, _ = self._name.pop(block_id)
        del self._block_of[key]
        return key

    def _announce(self, keys: list[BlockKey]) -> None:
        if keys:
            before = self._name[self._block_of[keys[0]]][1]
            self._events.append(KvBlockStored(tuple(keys), before if before != ROOT else None))

    def _announce_removed(self, keys: list[BlockKey]) -> None:
        if keys:
            self._events.append(KvBlockRemoved(tuple(keys)))
