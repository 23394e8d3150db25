"""How the HTTP client reads answers: whatever their segments, and what is none. On both event loops."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from baton_api.errors import DeadlineExceeded, WorkerProtocolError
from baton_wire.http_client import ClientLimits
from support.http_peers import CHUNKED, OK, Recorder, Script, answering, peer, read_request
from support.wire import on_both_loops, until

GOOD_ANSWERS = [
    (OK, 200, b"hi", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b"", True),
    (b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", 500, b"", True),
    (CHUNKED + b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\nx: y\r\n\r\n", 200, b"abc", True),
    (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"hi", True),
    (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 200, b"hi", True),
    (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
    (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
    (b"HTTP/1.1 200 OK\r\n\r\nuntil the close", 200, b"until the close", False),
]


@on_both_loops
async def test_answers_are_read_alike_whatever_their_segments() -> None:
    for answer, status, body, kept in GOOD_ANSWERS:

        async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            await read_request(reader)
            for byte in answer:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            if b"until" not in answer:
                await reader.read()

        for script in (answering(answer, keep=b"until" not in answer), dribble):
            async with peer(script) as (scripted, client):
                response = await client.request("POST", scripted.url, body=b"x", timeout_s=5)
                assert (response.status, response.body) == (status, body)
                await asyncio.sleep(0.005)
                assert client.connections == kept, answer
    assert response.headers == {}


BAD_ANSWERS = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na : b\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    CHUNKED + b"zz\r\n",
    CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    CHUNKED + b"fffffffffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"a" * 5000,
    CHUNKED + b"1;" + b"x" * 5000,
    OK + OK,
]


@on_both_loops
async def test_answers_that_are_not_http_or_too_large_are_errors_and_their_connections_closed() -> None:
    limits = ClientLimits(max_head_bytes=1000, max_coding_bytes=1000)
    for answer in BAD_ANSWERS:
        async with peer(answering(answer), limits=limits) as (scripted, client):
            with pytest.raises(WorkerProtocolError) as failure:
                await client.request("GET", scripted.url, timeout_s=5)
            assert failure.value.code == "bad_answer", answer
            await until(lambda c=client: c.connections == 0)  # type: ignore[misc]


@on_both_loops
async def test_an_answer_beyond_what_is_held_in_memory_is_an_error() -> None:
    big = b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 5_000_000
    async with peer(answering(big), limits=ClientLimits(max_answer_bytes=5000)) as (scripted, client):
        with pytest.raises(WorkerProtocolError, match="exceeds 5000"):
            await client.request("GET", scripted.url, timeout_s=5)
        await until(lambda: client.connections == 0)


@on_both_loops
async def test_answers_that_break_off_are_lost_connections() -> None:
    for part in (
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"1\r\na\r\n",
    ):
        async with peer(answering(part, keep=False)) as (scripted, client):
            with pytest.raises(WorkerProtocolError) as failure:
                await client.request("GET", scripted.url, timeout_s=5)
            assert failure.value.code == "connection_lost"
            assert scripted.accepted == 1, "a fresh connection is no idle race"


@on_both_loops
async def test_a_refused_connection_and_an_expired_deadline_have_their_own_errors() -> None:
    async with peer(answering(keep=True)) as (scripted, client):
        with pytest.raises(WorkerProtocolError) as refused:
            await client.request("GET", "http://127.0.0.1:1/", timeout_s=5)
        assert refused.value.code == "connect_failed" and refused.value.retryable
        with pytest.raises(DeadlineExceeded):
            await client.request("GET", scripted.url, timeout_s=0.05)
        await until(lambda: client.connections == 0)
        with pytest.raises(DeadlineExceeded):
            await client.stream("GET", scripted.url, head_timeout_s=0.05)
        await until(lambda: client.connections == 0)


@on_both_loops
async def test_head_answers_have_no_body_whatever_their_length() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    async with peer(answering(head)) as (scripted, client):
        response = await client.request("HEAD", scripted.url, timeout_s=5)
        assert (response.status, response.body, response.headers) == (200, b"", {"content-length": "5"})


@on_both_loops
async def test_a_storm_of_chunks_and_segments_arrives_whole() -> None:
    payload = bytes(range(256)) * 40
    coded = (
        CHUNKED + b"".join(b"%x\r\n%b\r\n" % (n % 7 + 1, payload[:7][: n % 7 + 1]) for n in range(3000)) + b"0\r\n\r\n"
    )
    expected = b"".join(payload[:7][: n % 7 + 1] for n in range(3000))

    def in_pieces(size: int) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            for start in range(0, len(coded), size):
                writer.write(coded[start : start + size])
                await asyncio.sleep(0)
            await reader.read()

        return script

    for size in (3, 7, 64, 1000, 100_000):
        async with peer(in_pieces(size)) as (scripted, client):
            sink = Recorder()
            client.relay("GET", scripted.url, sink=sink)
            async with asyncio.timeout(10):
                await sink.done.wait()
            assert sink.body == expected and sink.error is None
            assert sink.headers == {"transfer-encoding": "chunked", "x-a": "1, 2"}


@on_both_loops
async def test_the_kernel_takes_no_more_of_an_answer_than_it_is_told() -> None:
    """Else it takes a whole answer that nobody reads, and who makes it hears nothing of that."""
    async with peer(answering(OK), limits=ClientLimits(receive_buffer_bytes=8192)) as (scripted, client):
        await client.request("GET", scripted.url, timeout_s=5)
        assert receive_buffers_bytes(int(scripted.url.rsplit(":", 1)[1])) == [2 * 8192]  # Linux doubles it


def receive_buffers_bytes(port: int) -> list[int]:
    """Of this process's connections to `port`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as held:
                if held.family == socket.AF_INET and held.getpeername()[1] == port:
                    found.append(held.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        except OSError:  # no socket, or not connected
            continue
    return found
