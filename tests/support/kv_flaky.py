"""Wrappers around a transport that damage what it carries: faults enter through the seam."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from baton_api.errors import PeerLost
from baton_kv.transport import Expectation, Link, Transport

Fault = Callable[[int, memoryview], memoryview]


class FaultyLink:
    """Sends `fault(tag, bytes)` in place of each block; the store's own bytes are not touched."""

    def __init__(self, inner: Link, fault: Fault) -> None:
        self._inner, self._fault = inner, fault
        self.negotiated = inner.negotiated
        self.on_lost, self.abort, self.recv = inner.on_lost, inner.abort, inner.recv

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        return self._inner.send(tag, self._fault(tag, view) if view.nbytes else view)


class SilentLink:
    """Sends nothing, not even the messages that end receives: only dropping the link ends anything."""

    def __init__(self, inner: Link) -> None:
        self.negotiated = inner.negotiated
        self.on_lost, self.abort, self.recv = inner.on_lost, inner.abort, inner.recv

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_lost(lambda why: future.set_exception(PeerLost(why)))
        return future


class WrappedTransport:
    """Every link that is taken (not made) goes through `wrap`."""

    def __init__(self, inner: Transport, wrap: Callable[[Link], Link]) -> None:
        self._inner, self._wrap = inner, wrap
        self.name = inner.name
        self.listen, self.connect, self.close = inner.listen, inner.connect, inner.close

    @property
    def negotiated(self) -> str:
        return self._inner.negotiated

    async def expect(self, token: bytes) -> Expectation:
        outer: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        expectation = await self._inner.expect(token)
        inner = expectation.link
        inner.add_done_callback(lambda done: None if done.cancelled() else self._arrived(done.result(), outer))
        outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        return Expectation(expectation.address, outer)

    def _arrived(self, link: Link, outer: asyncio.Future[Link]) -> None:
        if not outer.done():
            outer.set_result(self._wrap(link))


def faulty(fault: Fault) -> Callable[[Transport], Transport]:
    """A wrapper for kv_pair: sent blocks go through `fault`."""
    return lambda inner: WrappedTransport(inner, lambda link: FaultyLink(link, fault))


def silent(inner: Transport) -> Transport:
    """A wrapper for kv_pair: nothing sent arrives."""
    return WrappedTransport(inner, SilentLink)


def flip_one_bit(view: memoryview) -> memoryview:
    """A copy with its middle bit flipped."""
    damaged = bytearray(view)
    damaged[len(damaged) // 2] ^= 1
    return memoryview(damaged)


class SlowTransport(WrappedTransport):
    """The first link, and every other one, takes `pause_s` longer to make."""

    def __init__(self, inner: Transport, pause_s: float) -> None:
        super().__init__(inner, lambda link: link)
        self._pause_s = pause_s

    async def expect(self, token: bytes) -> Expectation:
        await asyncio.sleep(self._pause_s)
        return await super().expect(token)


def slow(pause_s: float) -> Callable[[Transport], Transport]:
    """A wrapper for kv_pair: the data link takes its time."""
    return lambda inner: SlowTransport(inner, pause_s)
