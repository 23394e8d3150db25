"""The HTTP client's connections: reused, repeated on, bounded, given up. On both event loops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from baton_api.errors import NoCapacity, WorkerProtocolError
from baton_wire.http_client import ClientLimits, HttpClient
from baton_wire.http_server import Exchange
from support.http_peers import OK, Recorder, answering, our_server, peer, read_request
from support.wire import echo, on_both_loops, until


async def closes_at_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK)
    await read_request(reader)


@on_both_loops
async def test_connections_are_reused_the_last_one_first() -> None:
    async with our_server(echo) as (url, client):
        for _ in range(3):
            assert (await client.request("POST", f"{url}/a", body=b"x", timeout_s=5)).body == b"POST /a x"
        assert client.connections == 1
        await asyncio.gather(*(client.request("GET", url, timeout_s=5) for _ in range(5)))
        assert client.connections == 5


@on_both_loops
async def test_a_request_is_repeated_once_when_its_idle_connection_closes_under_it() -> None:
    async with peer(closes_at_the_second, answering(OK)) as (scripted, client):
        for _ in range(2):
            assert (await client.request("POST", scripted.url, timeout_s=5)).body == b"hi"
        assert scripted.accepted == 2
    async with peer(closes_at_the_second, answering(OK)) as (scripted, client):
        await client.request("POST", scripted.url, timeout_s=5)
        with pytest.raises(WorkerProtocolError):
            await client.request("POST", scripted.url, timeout_s=5, repeatable=False)
        assert scripted.accepted == 1
    async with peer(closes_at_the_second, answering(b"HTTP/1.1 2", keep=False)) as (scripted, client):
        await client.request("POST", scripted.url, timeout_s=5)
        with pytest.raises(WorkerProtocolError):
            await client.request("POST", scripted.url, timeout_s=5)
        assert scripted.accepted == 2, "once, not for ever"


@on_both_loops
async def test_a_repeated_request_is_not_repeated_again_on_another_reused_connection() -> None:
    limits = ClientLimits(max_connections_per_peer=1)
    async with peer(closes_at_the_second, limits=limits) as (scripted, client):
        await client.request("GET", scripted.url, timeout_s=5)
        raced = asyncio.create_task(client.request("GET", scripted.url, timeout_s=5))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(client.request("GET", scripted.url, timeout_s=5))
        assert (await waiting).status == 200
        with pytest.raises(WorkerProtocolError):
            await raced
        assert scripted.accepted == 2


@on_both_loops
async def test_a_request_whose_answer_had_begun_is_not_repeated() -> None:
    async def breaks_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"H")

    async with peer(breaks_the_second, answering(OK)) as (scripted, client):
        await client.request("GET", scripted.url, timeout_s=5)
        with pytest.raises(WorkerProtocolError, match="in the middle"):
            await client.request("GET", scripted.url, timeout_s=5)
        assert scripted.accepted == 1


@on_both_loops
async def test_an_unasked_answer_on_an_idle_connection_is_not_taken_for_the_next() -> None:
    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await reader.read()

    async with peer(talkative, answering(OK)) as (scripted, client):
        assert (await client.request("GET", scripted.url, timeout_s=5)).body == b"hi"
        await until(lambda: client.connections == 0)
        assert (await client.request("GET", scripted.url, timeout_s=5)).body == b"hi"


@on_both_loops
async def test_the_pool_is_bounded_and_the_waiting_go_in_order() -> None:
    order: list[str] = []
    turn = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        order.append(exchange.path)
        await turn.wait()
        exchange.respond(200, b"")

    limits = ClientLimits(max_connections_per_peer=1, max_waiting_per_peer=2)
    async with our_server(slow, limits) as (url, client):
        calls = [asyncio.create_task(client.request("GET", f"{url}/{n}", timeout_s=5)) for n in range(3)]
        await until(lambda: order == ["/0"])
        with pytest.raises(NoCapacity):
            await client.request("GET", f"{url}/3", timeout_s=5)
        calls[1].cancel()
        turn.set()
        await calls[0]
        await calls[2]
        assert order == ["/0", "/2"] and client.connections == 1
        await asyncio.gather(calls[1], return_exceptions=True)


@on_both_loops
async def test_the_waiting_are_served_when_a_connection_breaks() -> None:
    async with peer(answering(b"", keep=False), answering(OK), limits=ClientLimits(max_connections_per_peer=1)) as (
        scripted,
        client,
    ):
        first = asyncio.create_task(client.request("GET", scripted.url, timeout_s=5))
        second = asyncio.create_task(client.request("GET", scripted.url, timeout_s=5))
        with pytest.raises(WorkerProtocolError):
            await first
        assert (await second).body == b"hi"


@on_both_loops
async def test_no_more_connections_stay_idle_than_allowed() -> None:
    async with our_server(echo, ClientLimits(max_idle_per_peer=2)) as (url, client):
        await asyncio.gather(*(client.request("GET", url, timeout_s=5) for _ in range(5)))
        await until(lambda: client.connections == 2)


@on_both_loops
async def test_a_peer_that_does_not_take_connections_is_given_up_on() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):  # beyond the backlog the kernel drops the handshake
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        client = HttpClient(ClientLimits(connect_timeout_s=0.1))
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        started_at = loop.time()
        with pytest.raises(WorkerProtocolError, match=r"no connection in 0\.1 s") as failure:
            await client.request("GET", url, timeout_s=5)
        assert failure.value.code == "connect_failed" and loop.time() - started_at < 2
        pending = Recorder()
        client.relay("GET", url, sink=pending)
        await asyncio.sleep(0)
        await client.close()
        assert pending.error is not None and pending.error.code == "connection_lost"


@on_both_loops
async def test_idle_connections_are_closed_by_the_client_first() -> None:
    async with our_server(echo, ClientLimits(idle_timeout_s=0.1)) as (url, client):
        await client.request("GET", url, timeout_s=5)
        assert client.connections == 1
        await until(lambda: client.connections == 0)
        await client.request("GET", url, timeout_s=5)
