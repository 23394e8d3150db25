"""Streams and relays of the HTTP client: read as they come, held back, broken off, aborted. On both event loops."""

from __future__ import annotations

import asyncio

import pytest

from baton_api.errors import BatonError, WorkerProtocolError
from baton_wire.http_client import ClientLimits, RelayHandle
from baton_wire.http_server import Exchange
from support.http_peers import CHUNKED, Recorder, answering, our_server, peer
from support.wire import echo, on_both_loops, until


@on_both_loops
async def test_a_stream_is_read_as_it_comes_and_leaving_early_closes_it() -> None:
    gone: list[bool] = []
    turn = asyncio.Event()

    async def tokens(exchange: Exchange) -> None:
        exchange.on_gone(lambda: (gone.append(True), turn.set()))  # type: ignore[arg-type, return-value]
        exchange.start(200, [("x-a", "1")])
        exchange.write(b"one")
        await turn.wait()
        exchange.write(b"two")
        exchange.end()

    async with our_server(tokens) as (url, client):
        async with await client.stream("GET", url, head_timeout_s=5) as answer:
            assert answer.status == 200 and answer.headers["x-a"] == "1"
            parts = []
            async for data in answer:
                parts.append(data)
                turn.set()
            assert parts == [b"one", b"two"]
        assert client.connections == 1 and gone == []
        turn.clear()
        async with await client.stream("GET", url, head_timeout_s=5) as answer:
            assert await anext(answer) == b"one"
        await until(lambda: gone == [True] and client.connections == 0)


@on_both_loops
async def test_a_stream_that_breaks_off_raises_after_what_had_come() -> None:
    async with peer(answering(CHUNKED + b"3\r\none\r\n", keep=False)) as (scripted, client):
        async with await client.stream("GET", scripted.url, head_timeout_s=5) as answer:
            assert await anext(answer) == b"one"
            with pytest.raises(WorkerProtocolError) as failure:
                await anext(answer)
        assert failure.value.code == "connection_lost"


@on_both_loops
async def test_a_stream_nobody_reads_holds_its_server_back() -> None:
    sent = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        exchange.start(200, ())
        while sent < 50_000_000:
            exchange.write(b"x" * 50_000)
            sent += 50_000
            await exchange.drain()
        exchange.end()

    async with our_server(flood) as (url, client):
        async with await client.stream("GET", url, head_timeout_s=5) as answer:
            await asyncio.sleep(0.1)
            held_at = sent
            await asyncio.sleep(0.1)
            assert sent == held_at < 30_000_000
            assert sum([len(data) async for data in answer]) == 50_000_000
        assert client.connections == 1


@on_both_loops
async def test_a_relay_passes_back_pressure_and_an_aborted_one_falls_silent() -> None:
    async def flood(exchange: Exchange) -> None:
        exchange.start(200, ())
        for _ in range(400):
            exchange.write(b"x" * 50_000)
            await exchange.drain()
        exchange.end()

    async with our_server(flood) as (url, client):
        sink = Recorder()
        handle = client.relay("GET", url, sink=sink)
        await until(lambda: sink.status == 200)
        handle.pause()
        handle.pause()
        await asyncio.sleep(0.05)
        held_at = len(sink.body)
        await asyncio.sleep(0.05)
        assert len(sink.body) == held_at < 20_000_000
        handle.resume()
        await until(sink.done.is_set)
        assert len(sink.body) == 20_000_000 and client.connections == 1
        handle.abort()
        assert client.connections == 1, "an abort after the end does no harm"

        other = Recorder()
        aborted: RelayHandle = client.relay("GET", url, sink=other)
        await until(lambda: other.status == 200)
        aborted.abort()
        seen = len(other.parts)
        await until(lambda: client.connections == 0)
        assert len(other.parts) == seen and not other.done.is_set()


@on_both_loops
async def test_an_abort_while_connecting_or_waiting_is_silent() -> None:
    async with our_server(echo, ClientLimits(max_connections_per_peer=1)) as (url, client):
        sinks = [Recorder() for _ in range(3)]
        handles = [client.relay("GET", url, sink=sink) for sink in sinks]
        handles[0].abort()
        handles[1].abort()
        await until(sinks[2].done.is_set)
        assert [sink.status for sink in sinks] == [0, 0, 200]
        assert not sinks[0].done.is_set() and not sinks[1].done.is_set()


@on_both_loops
async def test_closing_the_client_ends_every_call() -> None:
    async with peer(answering(keep=True), limits=ClientLimits(max_connections_per_peer=1)) as (scripted, client):
        running, waiting, connecting = Recorder(), Recorder(), Recorder()
        client.relay("GET", scripted.url, sink=running)
        await until(lambda: scripted.accepted == 1)
        client.relay("GET", scripted.url, sink=waiting)
        client.relay("GET", scripted.url.replace("127.0.0.1", "127.0.0.2"), sink=connecting)
        await client.close()
        for sink in (running, waiting, connecting):
            assert isinstance(sink.error, WorkerProtocolError)
        late = Recorder()
        client.relay("GET", scripted.url, sink=late)
        assert late.error is not None and late.error.code == "connection_lost"


@on_both_loops
async def test_a_relay_from_server_to_server_is_the_sum_of_its_parts() -> None:
    class ToExchange:
        def __init__(self, exchange: Exchange) -> None:
            self.exchange = exchange

        def on_head(self, status: int, headers: dict[str, str]) -> None:
            self.exchange.start(status, list(headers.items()))

        def on_data(self, data: bytes) -> None:
            self.exchange.write(data)

        def on_end(self) -> None:
            self.exchange.end()

        def on_error(self, error: BatonError) -> None:
            if self.exchange.started:
                self.exchange.abort()
            else:
                self.exchange.respond_error(error)

    async def worker(exchange: Exchange) -> None:
        if exchange.path == "/whole":
            exchange.respond(201, exchange.body, [("x-a", "1")])
            return
        exchange.start(200, ())
        exchange.write(b"one")
        if exchange.path == "/broken":
            exchange.abort()
            return
        exchange.write(b"two" * 100_000)
        exchange.end()

    async with our_server(worker) as (worker_url, inner):

        def gateway(exchange: Exchange) -> None:
            url = worker_url if exchange.path != "/down" else "http://127.0.0.1:1"
            handle = inner.relay(exchange.method, url + exchange.target, body=exchange.body, sink=ToExchange(exchange))
            exchange.on_gone(handle.abort)
            exchange.on_writable(handle.pause, handle.resume)

        async with our_server(gateway) as (url, client):
            whole = await client.request("POST", f"{url}/whole", body=b"{}", timeout_s=5)
            assert (whole.status, whole.body, whole.headers["x-a"]) == (201, b"{}", "1")
            assert whole.headers["content-length"] == "2"
            streamed = await client.request("GET", f"{url}/stream", timeout_s=5)
            assert streamed.body == b"one" + b"two" * 100_000
            with pytest.raises(WorkerProtocolError) as broken:
                await client.request("GET", f"{url}/broken", timeout_s=5)
            assert broken.value.code == "connection_lost"
            assert (await client.request("GET", f"{url}/down", timeout_s=5)).status == 502
