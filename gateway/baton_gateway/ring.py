"""Where prompts were routed, from each gateway process on one port to the others: a ring of shared memory for each,
written by its owner only.

A slot is its number, a length, a checksum and MessagePack. Slots are numbered on and on, so a reader knows what is new;
one that was lapped goes on with the oldest that is left. What is lost is a worse guess of where a prefix is held.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator

import msgspec

from .index import Routed

SLOTS = 32
SLOT_KEYS = 8192
SLOT_BYTES = 1 << 18
SLOTS_AT_ONCE = SLOTS // 4
"""A reader that looks as often as the writer writes is never lapped."""
_FRAME = struct.Struct("<QII")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, list[bytes | int]]]).decode


class Rings:
    """Made before the processes are forked; shared by them from then on. Each process calls for its own `index`."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._memory = mmap.mmap(-1, processes * SLOTS * SLOT_BYTES)
        self._heard = [0] * processes
        self._told: int | None = None

    def tell(self, index: int, routed: Iterable[Routed]) -> None:
        """Of a prompt's keys at most SLOT_KEYS; what does not fit into SLOTS_AT_ONCE slots is left out."""
        for _, batch in zip(range(SLOTS_AT_ONCE), _batches(routed), strict=False):
            data = _encode(batch)
            if len(data) > SLOT_BYTES - _FRAME.size:
                continue  # urls of kilobytes
            if self._told is None:  # who sat here before may have died
                self._told = max(self._frame(index, slot)[0] for slot in range(SLOTS))
            self._told += 1
            start = self._start(index, self._told)
            self._memory[start + _FRAME.size : start + _FRAME.size + len(data)] = data
            self._memory[start : start + _FRAME.size] = _FRAME.pack(self._told, len(data), zlib.crc32(data))

    def hear(self, index: int) -> Iterator[Routed]:
        """What the others told since the last call."""
        for other in range(self._processes):
            if other != index:
                yield from self._hear(other)

    def _hear(self, other: int) -> Iterator[Routed]:
        while True:
            number, size, checksum = self._frame(other, wanted := self._heard[other] + 1)
            if number < wanted or (number - wanted) % SLOTS:
                return
            if number > wanted:  # lapped, or just forked
                self._heard[other] = number - SLOTS
                continue
            start = self._start(other, number) + _FRAME.size
            data = self._memory[start : start + min(size, SLOT_BYTES)]
            if not size or zlib.crc32(data) != checksum:
                return  # being written
            self._heard[other] = number
            yield from _decode(data)

    def _frame(self, index: int, number: int) -> tuple[int, int, int]:
        number, size, checksum = _FRAME.unpack_from(self._memory, self._start(index, number))
        return number, size, checksum

    def _start(self, index: int, number: int) -> int:
        return (index * SLOTS + number % SLOTS) * SLOT_BYTES


def _batches(routed: Iterable[Routed]) -> Iterator[list[Routed]]:
    """Of at most SLOT_KEYS keys together."""
    batch: list[Routed] = []
    keys = 0
    for url, prompt in routed:
        some = prompt[:SLOT_KEYS]
        if batch and keys + len(some) > SLOT_KEYS:
            yield batch
            batch, keys = [], 0
        batch.append((url, some))
        keys += len(some)
    if batch:
        yield batch
