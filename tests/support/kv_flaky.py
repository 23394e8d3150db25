"""Wrappers around a transport that damage what it carries: faults enter through the seam."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from baton_kv.transport import Link, Transport

Fault = Callable[[int, memoryview], memoryview]


class FaultyLink:
    def __init__(self, inner: Link, fault: Fault) -> None:
        self._inner, self._fault = inner, fault
        self.negotiated = inner.negotiated
        self.on_lost, self.abort, self.recv = inner.on_lost, inner.abort, inner.recv

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        return self._inner.send(tag, self._fault(tag, view) if view.nbytes else view)


class FaultyTransport:
    """Every block sent goes through `fault(tag, bytes)`; the store's own bytes are not touched."""

    def __init__(self, inner: Transport, fault: Fault) -> None:
        self._inner, self._fault = inner, fault
        self.name = inner.name
        self.listen, self.connect, self.close = inner.listen, inner.connect, inner.close

    @property
    def negotiated(self) -> str:
        return self._inner.negotiated

    def expect(self, token: bytes) -> asyncio.Future[Link]:
        outer: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        inner = self._inner.expect(token)
        inner.add_done_callback(lambda done: None if done.cancelled() else self._arrived(done.result(), outer))
        outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        return outer

    def _arrived(self, link: Link, outer: asyncio.Future[Link]) -> None:
        if not outer.done():
            outer.set_result(FaultyLink(link, self._fault))


def flip_one_bit(view: memoryview) -> memoryview:
    """A copy with its middle bit flipped."""
    damaged = bytearray(view)
    damaged[len(damaged) // 2] ^= 1
    return memoryview(damaged)
