"""What the gateway processes on one port tell each other: one page of shared memory each, written by its owner only.

A page is a length, a checksum and MessagePack; a reader that meets a half-written page keeps what it read before. The
page of a process that died stays: its counters go on in its successor, its load is struck out by the parent.
"""

from __future__ import annotations

import mmap
import struct
import zlib

import msgspec

from .telemetry import Numbers

PAGE_BYTES = 1 << 20
_FRAME = struct.Struct("<II")
_TRIES = 3

Load = dict[str, tuple[int, int]]
"""Requests and tokens in flight by worker url."""


class Page(msgspec.Struct, frozen=True):
    """`values` and `histograms` as in telemetry.Numbers, as pairs: MessagePack has no tuples for names."""

    load: Load = {}
    values: list[tuple[tuple[str, ...], float]] = []
    histograms: list[tuple[tuple[str, ...], list[float]]] = []

    @classmethod
    def of(cls, load: Load, numbers: Numbers) -> Page:
        return cls(load, list(numbers.values.items()), list(numbers.histograms.items()))

    @property
    def numbers(self) -> Numbers:
        numbers = Numbers()
        numbers.values, numbers.histograms = dict(self.values), dict(self.histograms)
        return numbers


EMPTY = Page()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Page).decode


class Board:
    """Made before the processes are forked; shared by them from then on."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._memory = mmap.mmap(-1, processes * PAGE_BYTES)
        self._last = [EMPTY] * processes

    def write(self, index: int, page: Page) -> None:
        """Raises ValueError when the page is too large."""
        data = _encode(page)
        if len(data) > PAGE_BYTES - _FRAME.size:
            raise ValueError(f"a page of {len(data)} bytes; at most {PAGE_BYTES - _FRAME.size}")
        start = index * PAGE_BYTES
        self._memory[start : start + _FRAME.size + len(data)] = _FRAME.pack(len(data), zlib.crc32(data)) + data

    def read(self, index: int) -> Page:
        """The last whole page seen."""
        start = index * PAGE_BYTES
        for _ in range(_TRIES):
            size, checksum = _FRAME.unpack_from(self._memory, start)
            data = self._memory[start + _FRAME.size : start + _FRAME.size + min(size, PAGE_BYTES)]
            if size and len(data) == size and zlib.crc32(data) == checksum:
                self._last[index] = _decode(data)
                break
        return self._last[index]

    def others(self, index: int) -> list[Page]:
        return [self.read(other) for other in range(self.processes) if other != index]

    def strike_out(self, index: int) -> None:
        """The process is dead: it has nothing in flight any more."""
        page = self.read(index)
        gone = [(series, value) for series, value in page.values if series[0] != "baton_gateway_in_flight"]
        self.write(index, Page({}, gone, page.histograms))
