"""Transports over plain TCP sockets: no dependency, no copy in user space. `cma` reads lent memory where it can.

A link starts with the listener's token, which the listener echoes when it takes the link, with its process id and the
address of another random token. On transport `cma` the connecting side tries to read that token from there: if that
works both ends are on one host, and large blocks are lent instead of sent (socket_link.py). It answers with one byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Coroutine
from pathlib import Path

from baton_api.errors import PeerLost
from baton_kv.transport import TOKEN_BYTES, Expectation, Expected, Link

from . import cross_memory
from .socket_link import SocketLink

log = logging.getLogger("baton.kv")

_WELCOME = struct.Struct(f"<{TOKEN_BYTES}sQQ{TOKEN_BYTES}s")  # token, process id, address of the probe, the probe
_SENDS, _LENDS = b"S", b"L"
_BUFFER_BYTES = 4 << 20
_MAX_HANDSHAKES = 256


def _tune(sock: socket.socket) -> None:
    """Before connect and listen. A buffer size that the system would cut short is worse than its own choice."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, limit in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
        with contextlib.suppress(OSError, ValueError):
            if int(Path("/proc/sys/net/core", limit).read_text()) >= _BUFFER_BYTES:
                sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


async def _receive(sock: socket.socket, size: int) -> bytes:
    """Raises PeerLost at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            raise PeerLost("peer closed the link")
        data += part
    return bytes(data)


class TcpTransport:
    """`name` is "tcp" or "cma"."""

    def __init__(self, name: str, host: str, port: int, timeout_s: float) -> None:
        self.name = self.negotiated = name
        self._probe = bytearray(secrets.token_bytes(TOKEN_BYTES))
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._expected = Expected()
        self._links: set[SocketLink] = set()
        self._listener: socket.socket | None = None
        self._address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(self._listener)
        self._listener.bind((self._host, self._port))
        self._listener.listen(1024)
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
            _tune(sock)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
                await asyncio.get_running_loop().sock_sendall(sock, token)
                peer_pid = self._peer_pid(await _receive(sock, _WELCOME.size))
                await asyncio.get_running_loop().sock_sendall(sock, _LENDS if peer_pid else _SENDS)
        except TimeoutError as error:
            sock.close()
            raise PeerLost(f"no data link to {address} within {timeout_s:g} s") from error
        except (OSError, ValueError) as error:
            sock.close()
            raise PeerLost(f"no data link to {address}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return self._keep(SocketLink(sock, self._say(peer_pid > 0), peer_pid=peer_pid))

    def _peer_pid(self, welcome: bytes) -> int:
        """The process whose memory can be read from here, or 0."""
        _, pid, address, probe = _WELCOME.unpack(welcome)
        if self.name == "cma":
            with contextlib.suppress(OSError, OverflowError):
                found = bytearray(TOKEN_BYTES)
                cross_memory.read(pid, address, memoryview(found))
                return int(pid) if found == probe else 0
        return 0

    def _say(self, lends: bool) -> str:
        self.negotiated = "cma" if lends else "tcp"
        if self.negotiated != self.name:
            log.warning("kv link runs on %s, %s was asked for", self.negotiated, self.name)
        return self.negotiated

    async def close(self) -> None:
        self._expected.cancel_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(link.abort() for link in set(self._links)))

    def _keep(self, link: SocketLink) -> SocketLink:
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
            if len(self._tasks) > _MAX_HANDSHAKES:
                sock.close()
            else:
                self._spawn(self._shake(sock))

    async def _shake(self, sock: socket.socket) -> None:
        """The token within the time, or the socket is closed."""
        loop, taken = asyncio.get_running_loop(), False
        with contextlib.suppress(TimeoutError, PeerLost, OSError):
            try:
                async with asyncio.timeout(self._timeout_s):
                    token = await _receive(sock, TOKEN_BYTES)
                    if self._expected.has(token):
                        probe = memoryview(self._probe)
                        welcome = _WELCOME.pack(token, os.getpid(), cross_memory.address_of(probe), probe.tobytes())
                        await loop.sock_sendall(sock, welcome)
                        lends = await _receive(sock, 1) == _LENDS
                        link = self._keep(SocketLink(sock, self._say(lends), lends=lends))
                        taken = True
                        if not self._expected.arrived(token, link):
                            await link.abort()
            finally:
                if not taken:
                    sock.close()
