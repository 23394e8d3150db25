"""Sockets that cost a server much and a client nothing: heads and bodies that dribble, silence, readers at 1 byte/s.

One that is cut comes back at once, so that `count` of them are there all the time.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from faults.client import head_and

Address = tuple[str, int]
DRIBBLE_S = 1.0
BODY = json.dumps(
    {"model": "tiny", "prompt": list(range(3, 40)), "max_tokens": 24, "ignore_eos": True, "stream": True}
    | {"logprobs": 20, "return_token_ids": True}
).encode()


async def dribbles_a_head(sock: socket.socket) -> None:
    await _send(sock, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
    while True:
        await _send(sock, b"x-a: b\r\n")
        await asyncio.sleep(DRIBBLE_S)


async def dribbles_a_body(sock: socket.socket) -> None:
    await _send(sock, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
    while True:
        await _send(sock, b" " * 10)
        await asyncio.sleep(DRIBBLE_S)


async def says_nothing(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 1):
        pass


async def reads_slowly(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await _send(sock, head_and(BODY))
    while await loop.sock_recv(sock, 1):
        await asyncio.sleep(DRIBBLE_S)


KINDS: tuple[Callable[[socket.socket], Awaitable[None]], ...] = (
    dribbles_a_head, dribbles_a_body, says_nothing, reads_slowly,
)  # fmt: skip


class SlowCrowd:
    """`count` sockets, a quarter of each kind, from one address. `met`: how often each kind was cut or refused."""

    def __init__(self, server: Address, count: int, address: str = "127.0.0.1") -> None:
        self._server, self._count, self._address = server, count, address
        self._tasks: list[asyncio.Task[None]] = []
        self.open = 0
        self.met: Counter[str] = Counter()

    async def __aenter__(self) -> SlowCrowd:
        self._tasks = [asyncio.create_task(self._one(KINDS[n % len(KINDS)], n)) for n in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self, kind: Callable[[socket.socket], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(0.001 * number)
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the kernel reads on for it
                try:
                    sock.bind((self._address, 0))
                    await loop.sock_connect(sock, self._server)
                    self.open += 1
                    try:
                        await kind(sock)
                    finally:
                        self.open -= 1
                    self.met[f"{kind.__name__}: closed"] += 1
                except OSError as error:
                    self.met[f"{kind.__name__}: {type(error).__name__}"] += 1
            await asyncio.sleep(DRIBBLE_S)


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
