"""Sockets that cost a server much and a client nothing: heads and bodies that dribble, silence, readers at 1 byte/s.

One that is cut comes back at once, so that `count` of them are there all the time.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from faults.client import head_and

Address = tuple[str, int]
DRIBBLE_S = 1.0
AGAIN_S = 0.1
"""Who was cut comes back so soon; who was refused, a little later: that is no flood."""
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


@asynccontextmanager
async def slow_crowd(server: Address, count: int) -> AsyncIterator[Counter[str]]:
    """`count` sockets, a quarter of each kind, from one address. How often each kind was cut or refused is known when
    they have left. In a process of their own: they take no turns from the client that is timed."""
    command = (sys.executable, "-m", "pressure.slow", *map(str, (*server, count)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    met: Counter[str] = Counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield met
    finally:
        told, _ = await process.communicate(b"")  # closes its input, which None does not
    assert process.returncode == 0, f"the slow sockets ended with {process.returncode}"
    met.update(json.loads(told))


async def crowd(server: Address, count: int) -> Counter[str]:
    """Until the input ends."""
    met: Counter[str] = Counter()
    tasks = [asyncio.create_task(_one(server, KINDS[n % len(KINDS)], n, met)) for n in range(count)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return met


async def _one(
    server: Address, kind: Callable[[socket.socket], Awaitable[None]], number: int, met: Counter[str]
) -> None:
    await asyncio.sleep(0.001 * number)
    loop = asyncio.get_running_loop()
    while True:
        began_s = loop.time()
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the kernel reads on for it
            try:
                await loop.sock_connect(sock, server)
                await kind(sock)
                met[f"{kind.__name__}: closed"] += 1
            except OSError as error:
                met[f"{kind.__name__}: {type(error).__name__}"] += 1
        await asyncio.sleep(AGAIN_S if loop.time() - began_s > DRIBBLE_S else DRIBBLE_S)


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


if __name__ == "__main__":
    host, port, number = sys.argv[1:]
    print(json.dumps(asyncio.run(crowd((host, int(port)), int(number)))))
