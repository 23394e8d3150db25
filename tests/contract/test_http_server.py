"""The HTTP server over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from baton_wire.http_server import ClientGone, Exchange, Handler, HttpServer, ServerLimits, serve
from support.wire import echo, on_both_loops, until

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nhost: a\r\n"


@asynccontextmanager
async def served(handler: Handler, limits: ServerLimits | None = None) -> AsyncIterator[HttpServer]:
    server = await serve(handler, "127.0.0.1", 0, limits=limits)
    try:
        yield server
    finally:
        await server.close()
        assert server.connections == 0


@asynccontextmanager
async def dialled(server: HttpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer with a content-length."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)


@on_both_loops
async def test_a_connection_is_kept_and_counted() -> None:
    async with served(echo) as server, dialled(server) as (reader, writer):
        for number in range(3):
            writer.write(POST + b"content-length: 1\r\n\r\n%d" % number)
            assert await read_answer(reader) == (200, b"POST /x %d" % number)
        assert server.connections == 1
    assert server.connections == 0


@on_both_loops
async def test_pipelined_requests_to_slow_handlers_are_answered_in_order() -> None:
    running: list[int] = []

    async def slow(exchange: Exchange) -> None:
        running.append(1)
        assert len(running) == 1
        await asyncio.sleep(0.01)
        running.pop()
        exchange.respond(200, exchange.path.encode())

    async with served(slow) as server, dialled(server) as (reader, writer):
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % n for n in range(5)))
        assert [await read_answer(reader) for _ in range(5)] == [(200, b"/%d" % n) for n in range(5)]


@on_both_loops
async def test_a_stream_arrives_chunk_by_chunk() -> None:
    turn = asyncio.Event()

    async def tokens(exchange: Exchange) -> None:
        exchange.start(200, [("content-type", "text/event-stream")])
        await turn.wait()
        exchange.write(b"one")
        await exchange.drain()
        exchange.end()

    async with served(tokens) as server, dialled(server) as (reader, writer):
        writer.write(GET)
        assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
        turn.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n0\r\n\r\n"


def vanish(writer: asyncio.StreamWriter) -> None:
    writer.close()


def half_close(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("leave", [vanish, half_close, reset])
@pytest.mark.parametrize("started", [False, True])
async def test_a_client_that_leaves_before_or_in_the_middle_of_its_answer_is_noticed(
    started: bool, leave: Callable[[asyncio.StreamWriter], None]
) -> None:
    gone: list[str] = []
    drained: list[BaseException] = []

    async def wait(exchange: Exchange) -> None:
        left = asyncio.Event()
        exchange.on_gone(lambda: (gone.append(exchange.path), left.set()))  # type: ignore[arg-type, return-value]
        if started:
            exchange.start(200, ())
            exchange.write(b"a")
        await left.wait()
        assert exchange.gone
        exchange.write(b"b")
        exchange.end()
        exchange.on_gone(lambda: gone.append("late"))
        try:
            await exchange.drain()
        except ClientGone as error:
            drained.append(error)
            raise

    async with served(wait) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        if started:
            await reader.readuntil(b"a\r\n")
        else:
            await until(lambda: server.connections == 1)
            await asyncio.sleep(0.02)
        leave(writer)
        await until(lambda: bool(drained))
        await until(lambda: server.connections == 0)
        writer.close()
    assert gone == ["/", "late"]


@on_both_loops
async def test_a_client_that_leaves_behind_what_it_sent_ahead_is_noticed() -> None:
    """It is not read, and so is its end."""
    gone = asyncio.Event()

    def hold(exchange: Exchange) -> None:
        exchange.on_gone(gone.set)

    limits = ServerLimits(max_pipelined_bytes=1000, linger_s=0.2)
    async with served(hold, limits) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            for ahead in (GET, b"a" * 10_000):
                client.sendall(ahead)
                await asyncio.sleep(0.1)
            assert not gone.is_set()
        await asyncio.wait_for(gone.wait(), 5)


@on_both_loops
async def test_a_slow_reader_holds_the_writer_back() -> None:
    written = 0
    ends: list[str] = []

    async def flood(exchange: Exchange) -> None:
        nonlocal written
        exchange.start(200, ())
        try:
            while written < 200_000_000:
                exchange.write(b"x" * 65536)
                written += 65536
                await exchange.drain()
        except ClientGone:
            ends.append("gone")

    async with served(flood, ServerLimits(write_stall_s=0.4)) as server, dialled(server) as (_, writer):
        writer.transport.pause_reading()
        writer.write(GET)
        await until(lambda: written > 0)
        await asyncio.sleep(0.1)
        stalled_at = written
        await asyncio.sleep(0.1)
        assert written == stalled_at < 1_000_000
        await until(lambda: ends == ["gone"])


@on_both_loops
async def test_a_whole_answer_read_a_little_now_and_then_arrives() -> None:
    await read_slowly(whole=True)


@on_both_loops
async def test_a_stream_read_a_little_now_and_then_arrives() -> None:
    await read_slowly(whole=False)


async def read_slowly(*, whole: bool) -> None:
    """Many times as long as a reader may stand still."""
    size = 1_000_000

    async def much(exchange: Exchange) -> None:
        if whole:
            exchange.respond(200, b"x" * size)
            return
        exchange.start(200, (("content-length", str(size)),))
        for _ in range(size // 1000):
            exchange.write(b"x" * 1000)
            await exchange.drain()
        exchange.end()

    async with served(much, ServerLimits(write_stall_s=0.4)) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            client.settimeout(5.0)
            await asyncio.to_thread(client.connect, ("127.0.0.1", server.port))
            client.sendall(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            began_s, got = time.monotonic(), 0
            while piece := await asyncio.to_thread(client.recv, 40_000):
                got += len(piece)
                await asyncio.sleep(0.03)
            assert got > size and time.monotonic() - began_s > 1.0
        assert not server.refused


@on_both_loops
async def test_whole_answers_that_nobody_reads_are_bounded_together() -> None:
    async def large(exchange: Exchange) -> None:
        exchange.respond(200, b"x" * 10_000_000)

    async with served(large, ServerLimits(max_bodies_bytes=25_000_000)) as server:
        async with AsyncExitStack() as stack:
            for _ in range(4):
                _, writer = await stack.enter_async_context(dialled(server))
                writer.transport.pause_reading()
                writer.write(GET)
            await until(lambda: server.refused["answers_full"] >= 1)
            assert server.bodies.held_bytes <= 25_000_000
        await until(lambda: server.bodies.held_bytes == 0)


@on_both_loops
async def test_slow_clients_are_told_408() -> None:
    limits = ServerLimits(header_timeout_s=0.2, body_grace_s=0.2, body_min_bytes_per_s=1e6)
    async with served(echo, limits) as server:
        for request in (b"GET / HT", POST + b"content-length: 9\r\n\r\nhal"):
            async with dialled(server) as (reader, writer):
                writer.write(request)
                assert (await read_answer(reader))[0] == 408
                assert await reader.read() == b""
        async with dialled(server) as (reader, writer):
            assert await reader.read() == b"", "a silent client is dropped without a word"


@on_both_loops
async def test_an_idle_connection_is_closed() -> None:
    async with served(echo, ServerLimits(idle_timeout_s=0.2)) as server, dialled(server) as (reader, writer):
        writer.write(GET)
        await read_answer(reader)
        async with asyncio.timeout(2):
            assert await reader.read() == b""


@on_both_loops
async def test_a_refused_upload_can_still_read_its_refusal() -> None:
    async with served(echo, ServerLimits(max_body_bytes=1_000_000)) as server, dialled(server) as (reader, writer):
        writer.write(POST + b"content-length: 2000000\r\n\r\n")
        writer.write(b"x" * 2_000_000)
        assert (await read_answer(reader))[0] == 413
        await writer.drain()


@on_both_loops
async def test_closing_lets_running_requests_finish_and_refuses_new_ones() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        exchange.respond(200, b"done")

    async with served(slow) as server, dialled(server) as (reader, writer), dialled(server) as (idle_reader, _):
        writer.write(GET)
        await until(lambda: server.connections == 2)
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(server.close(grace_s=5))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and b"connection: close\r\n" in head
        assert await reader.read() == b"done" and await idle_reader.read() == b""
        await closing
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


@on_both_loops
async def test_a_stream_opened_before_the_close_ends_in_order_and_then_its_connection() -> None:
    turn = asyncio.Event()

    async def tokens(exchange: Exchange) -> None:
        exchange.start(200, ())
        await turn.wait()
        exchange.write(b"a")
        exchange.end()

    async with served(tokens) as server, dialled(server) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        closing = asyncio.create_task(server.close(grace_s=5))
        await asyncio.sleep(0.01)
        turn.set()
        async with asyncio.timeout(1):
            assert await reader.read() == b"1\r\na\r\n0\r\n\r\n"
            await closing


@on_both_loops
async def test_what_outlives_the_grace_is_cut_and_its_task_cancelled() -> None:
    cancelled: list[bool] = []

    async def stuck(exchange: Exchange) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(exchange.gone)
            raise

    async with served(stuck) as server, dialled(server) as (reader, writer):
        writer.write(GET)
        await until(lambda: server.connections == 1)
        await asyncio.sleep(0.02)
        async with asyncio.timeout(2):
            await server.close(grace_s=0.1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert cancelled == [True]


@on_both_loops
async def test_connections_beyond_the_limit_get_503() -> None:
    async with served(echo, ServerLimits(max_connections=1)) as server, dialled(server) as (reader, writer):
        writer.write(GET)
        await read_answer(reader)
        async with dialled(server) as (second, _):
            assert (await read_answer(second))[0] == 503
        writer.write(GET)
        assert (await read_answer(reader))[0] == 200


@on_both_loops
async def test_two_servers_share_a_port_when_asked() -> None:
    async with served(echo) as alone:
        with pytest.raises(OSError, match="in use"):
            await serve(echo, "127.0.0.1", alone.port)
    first = await serve(echo, "127.0.0.1", 0, reuse_port=True)
    second = await serve(echo, "127.0.0.1", first.port, reuse_port=True)
    await first.close()
    await second.close()
