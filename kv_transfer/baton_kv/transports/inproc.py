"""Transport inside one process: a send is one memory copy into the posted view. For tests and one-process set-ups."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from baton_api.errors import PeerLost
from baton_kv.transport import Expectation, Expected, Link

_listening: dict[str, InprocTransport] = {}


class InprocLink:
    """One end. `peer` is the other end; a message that comes before its receive waits for it."""

    negotiated = "inproc"

    def __init__(self) -> None:
        self.peer: InprocLink | None = None
        self._posted: dict[int, tuple[memoryview, asyncio.Future[int | None]]] = {}
        self._early: dict[int, tuple[memoryview, asyncio.Future[None]]] = {}
        self._lost: str | None = None
        self._listeners: list[Callable[[str], None]] = []

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.peer is None or self._lost is not None:
            future.set_exception(PeerLost(f"link is down: {self._lost}"))
        else:
            self.peer.arrive(tag, view, future)
        return future

    def recv(self, tag: int, view: memoryview) -> asyncio.Future[int | None]:
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            future.set_exception(PeerLost(f"link is down: {self._lost}"))
        elif tag in self._early:
            self._copy(*self._early.pop(tag), view, future)
        else:
            self._posted[tag] = (view, future)
        return future

    def arrive(self, tag: int, data: memoryview, sent: asyncio.Future[None]) -> None:
        """Called by the sending end."""
        if tag in self._posted:
            self._copy(data, sent, *self._posted.pop(tag))
        else:
            self._early[tag] = (data, sent)

    def _copy(
        self, data: memoryview, sent: asyncio.Future[None], view: memoryview, landed: asyncio.Future[int | None]
    ) -> None:
        if data.nbytes not in (0, view.nbytes):
            self.drop(f"message of {data.nbytes} bytes for a receive of {view.nbytes}")
        if data.nbytes:
            view[:] = data
        for future in (sent, landed):
            if not future.done():
                future.set_result(None)

    def on_lost(self, heard: Callable[[str], None]) -> None:
        if self._lost is None:
            self._listeners.append(heard)
        else:
            asyncio.get_running_loop().call_soon(heard, self._lost)

    def drop(self, why: str) -> None:
        """Ends this end and everything posted on it."""
        if self._lost is not None:
            return
        self._lost = why
        for _, landed in self._posted.values():
            if not landed.done():
                landed.set_exception(PeerLost(why))
        for _, sent in self._early.values():
            if not sent.done():
                sent.set_exception(PeerLost(why))
        self._posted.clear()
        self._early.clear()
        for heard in self._listeners:
            asyncio.get_running_loop().call_soon(heard, why)

    async def abort(self) -> None:
        self.drop("aborted")
        if self.peer is not None:
            self.peer.drop("peer closed the link")


class InprocTransport:
    name = "inproc"
    negotiated = "inproc"

    def __init__(self) -> None:
        self._expected = Expected()
        self._address = ""
        self._links: list[InprocLink] = []

    async def listen(self) -> None:
        self._address = secrets.token_hex(8)
        _listening[self._address] = self

    async def expect(self, token: bytes) -> Expectation:
        return Expectation(self._address, self._expected.add(token))

    async def connect(self, address: str, token: bytes, timeout_s: float) -> Link:
        listener = _listening.get(address)
        near, far = InprocLink(), InprocLink()
        near.peer, far.peer = far, near
        if listener is None or not listener.take(token, far):
            raise PeerLost(f"nobody expects this link at {address}")
        self._keep(near)
        return near

    def take(self, token: bytes, link: InprocLink) -> bool:
        """Called by the connecting side."""
        if not self._expected.arrived(token, link):
            return False
        self._keep(link)
        return True

    def _keep(self, link: InprocLink) -> None:
        self._links.append(link)
        link.on_lost(lambda _: self._links.remove(link) if link in self._links else None)

    async def close(self) -> None:
        _listening.pop(self._address, None)
        self._expected.cancel_all()
        for link in list(self._links):
            await link.abort()
