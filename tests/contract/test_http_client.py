"""The HTTP client against scripted peers and against our own server, on both event loops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from baton_api.errors import BatonError, DeadlineExceeded, NoCapacity, WorkerProtocolError
from baton_wire.http_client import ClientLimits, HttpClient, RelayHandle
from baton_wire.http_server import Exchange, Handler, serve
from support.wire import echo, on_both_loops, until

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
async def test_connections_are_reused_the_last_one_first() -> None:
    async with our_server(echo) as (url, client):
        for _ in range(3):
            assert (await client.request("POST", f"{url}/a", body=b"x", timeout_s=5)).body == b"POST /a x"
        assert client.connections == 1
        await asyncio.gather(*(client.request("GET", url, timeout_s=5) for _ in range(5)))
        assert client.connections == 5


@on_both_loops
async def test_a_request_is_repeated_once_when_its_idle_connection_closes_under_it() -> None:
    async def closes_at_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)

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
    async def closes_at_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)

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
async def test_head_answers_have_no_body_whatever_their_length() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    async with peer(answering(head)) as (scripted, client):
        response = await client.request("HEAD", scripted.url, timeout_s=5)
        assert (response.status, response.body, response.headers) == (200, b"", {"content-length": "5"})


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
