"""The prefix cache's changes, numbered, with a bounded replay buffer. Pure.

A watcher that says which sequence it has seen gets what came after, or, when that has left the buffer, a snapshot
(batches of `snapshot=True` first), and then goes on from there. Sequences are consecutive within an epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton_engine.nouns import KvBlockStored, KvEvent


@dataclass(frozen=True, slots=True)
class Batch:
    """`sequence` numbers the last event; a snapshot stands for everything up to it."""

    sequence: int
    snapshot: bool
    events: tuple[KvEvent, ...]


class KvJournal:
    """`snapshot` lists (key, parent) with parents first; `capacity` is in events, about 200 bytes each."""

    def __init__(self, snapshot: Callable[[], list[tuple[bytes, bytes | None]]], capacity: int) -> None:
        self._snapshot = snapshot
        self._capacity = capacity
        self._batches: deque[Batch] = deque()
        self._held = 0
        self.sequence = 0

    def record(self, events: Sequence[KvEvent]) -> Batch:
        self.sequence += len(events)
        batch = Batch(self.sequence, False, tuple(events))
        self._batches.append(batch)
        self._held += len(events)
        while self._held > self._capacity and len(self._batches) > 1:
            self._held -= len(self._batches.popleft().events)
        return batch

    def since(self, sequence: int | None) -> list[Batch]:
        """What a watcher that has seen `sequence` must be told now; None: it knows nothing."""
        if sequence is None or not self._covers(sequence):
            return [self._snapshot_batch()]
        return [_after(batch, sequence) for batch in self._batches if batch.sequence > sequence]

    def _covers(self, sequence: int) -> bool:
        oldest = self._batches[0].sequence - len(self._batches[0].events) if self._batches else self.sequence
        return oldest <= sequence <= self.sequence

    def _snapshot_batch(self) -> Batch:
        return Batch(self.sequence, True, tuple(KvBlockStored((key,), parent) for key, parent in self._snapshot()))


def _after(batch: Batch, sequence: int) -> Batch:
    first = batch.sequence - len(batch.events)
    return Batch(batch.sequence, False, batch.events[max(0, sequence - first) :])
