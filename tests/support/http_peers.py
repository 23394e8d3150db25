"""For tests of the HTTP client: scripted peers, our own server, and a sink that keeps what is relayed to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from baton_api.errors import BatonError
from baton_wire.http_client import ClientLimits, HttpClient
from baton_wire.http_server import Handler, serve

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A raw server: runs the next script for each connection, the last one for ever."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.accepted = 0
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
        self.accepted += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def peer(*scripts: Script, limits: ClientLimits | None = None) -> AsyncIterator[tuple[Peer, HttpClient]]:
    scripted = Peer(*scripts)
    listener = await asyncio.start_server(scripted.accept, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    client = HttpClient(limits)
    try:
        yield scripted, client
    finally:
        await client.close()
        assert client.connections == 0
        listener.close()


@asynccontextmanager
async def our_server(handler: Handler, limits: ClientLimits | None = None) -> AsyncIterator[tuple[str, HttpClient]]:
    server = await serve(handler, "127.0.0.1", 0)
    client = HttpClient(limits)
    try:
        yield f"http://127.0.0.1:{server.port}", client
    finally:
        await client.close()
        await server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length: " not in head:
        return head
    return head + await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


def answering(*answers: bytes, keep: bool = True) -> Script:
    """Sends one answer for each request, then waits for the client (`keep`) or closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        if keep:
            await reader.read()

    return script


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.error: BatonError | None = None
        self.done = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        assert self.status == 0 and not self.done.is_set()
        self.status, self.headers = status, headers

    def on_data(self, data: bytes) -> None:
        assert self.status and data and not self.done.is_set()
        self.parts.append(data)

    def on_end(self) -> None:
        assert not self.done.is_set()
        self.done.set()

    def on_error(self, error: BatonError) -> None:
        assert not self.done.is_set()
        self.error = error
        self.done.set()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
