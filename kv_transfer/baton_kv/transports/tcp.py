"""Transport over plain TCP sockets: no dependency, no copy in user space.

A frame is a 16-byte header, tag and length as little-endian u64, then the block. Both sides use the raw socket through
the event loop (sock_sendall, sock_recv_into), so bytes go from the block to the kernel and from the kernel into the
block. A link starts with the listener's token, which the listener echoes when it takes the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine

from baton_api.errors import PeerLost
from baton_kv.transport import TOKEN_BYTES, Expectation, Expected, Link

_HEADER = struct.Struct("<QQ")
_MAX_HANDSHAKES = 256


class TcpLink:
    """Owns `sock`, non-blocking and connected. Two tasks touch the views; a third outlives them and tells the end."""

    negotiated = "tcp"

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._posted: dict[int, tuple[memoryview, asyncio.Future[None]]] = {}
        self._outbox: deque[tuple[int, memoryview, asyncio.Future[None]]] = deque()
        self._more = asyncio.Event()
        self._stop = asyncio.Event()
        self._lost: str | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._life = self._loop.create_task(self._live())

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        future = self._future()
        if not future.done():
            self._outbox.append((tag, view, future))
            self._more.set()
        return future

    def recv(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        future = self._future()
        if not future.done():
            self._posted[tag] = (view, future)
        return future

    def on_lost(self, heard: Callable[[str], None]) -> None:
        if self._lost is None:
            self._listeners.append(heard)
        else:
            self._loop.call_soon(heard, self._lost)

    async def abort(self) -> None:
        self._stop.set()
        await asyncio.wait([self._life])

    def _future(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if self._lost is not None or self._stop.is_set():
            future.set_exception(PeerLost(f"link is down: {self._lost or 'aborted'}"))
        return future

    async def _live(self) -> None:
        workers = [self._loop.create_task(work) for work in (self._read(), self._write(), self._stopped())]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            errors = [worker.exception() for worker in workers if worker.done()]
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._end("; ".join(str(error) for error in errors))

    def _end(self, why: str) -> None:
        """Nothing touches the views any more: close, and tell everyone who waits."""
        self._lost = why
        self._sock.close()
        waiting = [future for _, future in self._posted.values()] + [future for _, _, future in self._outbox]
        self._posted.clear()
        self._outbox.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(PeerLost(why))
        for heard in self._listeners:
            self._loop.call_soon(heard, why)

    async def _stopped(self) -> None:
        await self._stop.wait()
        raise PeerLost("aborted")

    async def _read(self) -> None:
        header = memoryview(bytearray(_HEADER.size))
        while True:
            await _fill(self._sock, header)
            tag, length = _HEADER.unpack(header)
            if tag not in self._posted:
                raise PeerLost(f"message {tag} came without a receive")
            view, future = self._posted[tag]
            if length not in (0, view.nbytes):
                raise PeerLost(f"message {tag} has {length} bytes, its receive {view.nbytes}")
            if length:
                await _fill(self._sock, view)
            del self._posted[tag]
            if not future.done():
                future.set_result(None)

    async def _write(self) -> None:
        while True:
            while not self._outbox:
                self._more.clear()
                await self._more.wait()
            tag, view, future = self._outbox[0]
            await self._loop.sock_sendall(self._sock, _HEADER.pack(tag, view.nbytes))
            if view.nbytes:
                await self._loop.sock_sendall(self._sock, view)
            self._outbox.popleft()
            if not future.done():
                future.set_result(None)


async def _fill(sock: socket.socket, view: memoryview) -> None:
    """Reads until `view` is full. Raises PeerLost at the end of the stream."""
    loop = asyncio.get_running_loop()
    while view.nbytes:
        count = await loop.sock_recv_into(sock, view)
        if not count:
            raise PeerLost("peer closed the link")
        view = view[count:]


class TcpTransport:
    name = "tcp"
    negotiated = "tcp"

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._expected = Expected()
        self._links: set[TcpLink] = set()
        self._listener: socket.socket | None = None
        self._address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, self._port), family=family, backlog=1024)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))
        self._address = f"{self._host}|{self._listener.getsockname()[1]}"

    async def expect(self, token: bytes) -> Expectation:
        return Expectation(self._address, self._expected.add(token))

    async def connect(self, address: str, token: bytes, timeout_s: float) -> Link:
        host, _, port = address.rpartition("|")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
                await asyncio.get_running_loop().sock_sendall(sock, token)
                await _fill(sock, memoryview(bytearray(TOKEN_BYTES)))
        except TimeoutError as error:
            sock.close()
            raise PeerLost(f"no data link to {address} within {timeout_s:g} s") from error
        except (OSError, ValueError) as error:
            sock.close()
            raise PeerLost(f"no data link to {address}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return self._keep(TcpLink(sock))

    async def close(self) -> None:
        self._expected.cancel_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(link.abort() for link in self._links))

    def _keep(self, link: TcpLink) -> TcpLink:
        self._links.add(link)
        link.on_lost(lambda _: self._links.discard(link))
        return link

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._tasks) > _MAX_HANDSHAKES:
                sock.close()
            else:
                self._spawn(self._shake(sock))

    async def _shake(self, sock: socket.socket) -> None:
        """The token within the time, or the socket is closed."""
        token = bytearray(TOKEN_BYTES)
        taken = False
        with contextlib.suppress(TimeoutError, PeerLost, OSError):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await _fill(sock, memoryview(token))
                    if self._expected.has(bytes(token)):
                        await asyncio.get_running_loop().sock_sendall(sock, token)
                        link = self._keep(TcpLink(sock))
                        taken = True
                        if not self._expected.arrived(bytes(token), link):
                            await link.abort()
            finally:
                if not taken:
                    sock.close()
