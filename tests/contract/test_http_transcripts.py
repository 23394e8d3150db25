"""The HTTP server as transcripts: bytes in, bytes out, cut at every byte."""

from __future__ import annotations

import asyncio
import logging

import pytest

from baton_api.errors import DeadlineExceeded, NoCapacity
from baton_wire.http_server import ClientGone, Exchange, ServerLimits
from support.wire import Line, echo

LIMITS = ServerLimits(max_body_bytes=100, max_header_bytes=300, max_headers=8, max_target_bytes=100)


def ok(body: str, *, close: bool = False) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
        f"{'connection: close' + chr(13) + chr(10) if close else ''}\r\n{body}"
    ).encode()


POST = b"POST /x HTTP/1.1\r\nhost: a\r\n"
GET = b"GET /y?q=1 HTTP/1.1\r\nHost: a\r\n\r\n"

ANSWERED = [
    ("no body", GET, ok("GET /y?q=1 "), False),
    ("body", POST + b"content-length: 5\r\n\r\nhello", ok("POST /x hello"), False),
    ("identity", POST + b"content-encoding: Identity\r\ncontent-length: 5\r\n\r\nhello", ok("POST /x hello"), False),
    ("nothing encoded", POST + b"content-encoding: gzip\r\n\r\n", ok("POST /x "), False),
    ("empty body", POST + b"content-length: 0\r\n\r\n", ok("POST /x "), False),
    ("close", b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", ok("GET / ", close=True), True),
    ("1.0", b"GET / HTTP/1.0\r\n\r\n", ok("GET / ", close=True), True),
    ("1.0 keep-alive", b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", ok("GET / ", close=True), True),
    (
        "chunked",
        POST + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
        ok("POST /x hello"),
        False,
    ),
    ("trailers", POST + b"transfer-encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n", ok("POST /x a"), False),
    (
        "pipeline",
        GET + POST + b"content-length: 2\r\n\r\nhi" + GET,
        ok("GET /y?q=1 ") + ok("POST /x hi") + ok("GET /y?q=1 "),
        False,
    ),
    (
        "pipelined chunks",
        (POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n") * 2,
        ok("POST /x a") * 2,
        False,
    ),
    ("nothing after a close", b"GET / HTTP/1.0\r\n\r\n" + GET, ok("GET / ", close=True), True),
]


@pytest.mark.parametrize(("name", "request_bytes", "answer", "ended"), ANSWERED, ids=[row[0] for row in ANSWERED])
async def test_requests_are_answered_alike_at_every_split(
    name: str, request_bytes: bytes, answer: bytes, ended: bool
) -> None:
    for first in range(len(request_bytes)):
        line = Line(echo, LIMITS)
        line.feed(request_bytes[:first], request_bytes[first:])
        assert (line.answer, line.ended) == (answer, ended), f"split at {first}"
    line = Line(echo, LIMITS)
    line.feed(*(bytes([byte]) for byte in request_bytes))
    assert (line.answer, line.ended) == (answer, ended)


REFUSED = [
    ("bare LF", b"GET / HTTP/1.1\nhost: a\n\n", 400),
    ("length and chunks", POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("two lengths", POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello", 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("absolute form", b"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("connect", b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("http/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("tls hello", b"\x16\x03\x01\x00\xa5\x01\x00\x00", 400),
    ("upgrade", b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\n\r\n", 400),
    ("chunk header", POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    ("chunk end", POST + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
    ("long target", b"GET /" + b"a" * 110 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("declared too large", POST + b"content-length: 101\r\n\r\n", 413),
    ("grown too large", POST + b"transfer-encoding: chunked\r\n\r\n40\r\n" + b"a" * 64 + b"\r\n40\r\n", 413),
    ("gzip", POST + b"content-encoding: gzip\r\ncontent-length: 1\r\n\r\n", 415),
    ("gzip in chunks", POST + b"content-encoding: identity, GZIP\r\ntransfer-encoding: chunked\r\n\r\n", 415),
    ("expectation", POST + b"expect: cake\r\ncontent-length: 1\r\n\r\n", 417),
    ("too large, with expect", POST + b"expect: 100-continue\r\ncontent-length: 101\r\n\r\n", 413),
    ("fields", POST + b"".join(b"a%d: b\r\n" % n for n in range(9)) + b"\r\n", 431),
    ("endless head", POST + b"a: " + b"b" * 300, 431),
    ("long head", POST + b"a: " + b"b" * 300 + b"\r\n\r\n", 431),
]


@pytest.mark.parametrize(("name", "request_bytes", "status"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_refusals_are_openai_errors_and_end_the_connection_at_every_split(
    name: str, request_bytes: bytes, status: int
) -> None:
    seen: list[Exchange] = []
    for first in range(len(request_bytes)):
        line = Line(seen.append, LIMITS)
        line.feed(request_bytes[:first], request_bytes[first:], GET)
        assert line.statuses == [status], f"split at {first}"
        assert line.ended
        assert b"connection: close\r\n" in line.answer and b'{"error":{"message":' in line.answer
    assert seen == []


async def test_a_good_request_before_a_bad_one_is_answered() -> None:
    line = Line(echo, LIMITS)
    line.feed(GET + b"BAD\r\n\r\n" + GET)
    assert line.statuses == [200, 400] and line.ended


async def test_continue_is_said_once_and_only_while_the_body_is_missing() -> None:
    request = POST + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n"
    waiting = Line(echo)
    waiting.feed(request)
    assert waiting.answer == b"HTTP/1.1 100 Continue\r\n\r\n"
    waiting.feed(b"h", b"i")
    assert waiting.answer == b"HTTP/1.1 100 Continue\r\n\r\n" + ok("POST /x hi")
    at_once = Line(echo)
    at_once.feed(request + b"hi")
    assert at_once.answer == ok("POST /x hi")


async def test_a_head_request_gets_the_head_alone() -> None:
    line = Line(lambda exchange: exchange.respond(200, b"body", content_type="text/plain"))
    line.feed(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert line.answer == b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n"


def stream(*pieces: bytes, headers: tuple[tuple[str, str], ...] = (), status: int = 200) -> object:
    def handler(exchange: Exchange) -> None:
        exchange.start(status, headers)
        for piece in pieces:
            exchange.write(piece)
        exchange.end()
        exchange.end()
        exchange.write(b"late")

    return handler


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
STREAMED = [
    (
        "chunks",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        stream(b"a", b"", b"b" * 16),
        CHUNKED + b"1\r\na\r\n10\r\n" + b"b" * 16 + b"\r\n0\r\n\r\n",
        False,
    ),
    ("no chunk", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", stream(), CHUNKED + b"0\r\n\r\n", False),
    ("1.0", b"GET / HTTP/1.0\r\n\r\n", stream(b"a", b"b"), b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab", True),
    (
        "declared",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        stream(b"a", b"b", headers=(("content-length", "2"),)),
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab",
        False,
    ),
    (
        "declared but short",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        stream(b"a", headers=(("content-length", "2"),)),
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na",
        True,
    ),
    ("head", b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", stream(b"a"), CHUNKED, False),
    (
        "no content",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        stream(b"a", status=204),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        False,
    ),
]


@pytest.mark.parametrize(
    ("name", "request_bytes", "handler", "answer", "ended"), STREAMED, ids=[r[0] for r in STREAMED]
)
async def test_streamed_answers_are_framed_for_their_reader(
    name: str, request_bytes: bytes, handler: object, answer: bytes, ended: bool
) -> None:
    line = Line(handler)  # type: ignore[arg-type]
    line.feed(request_bytes)
    assert (line.answer, line.ended) == (answer, ended)
    if not ended:
        line.feed(request_bytes)
        assert line.answer == answer * 2


async def test_the_head_of_a_stream_does_not_wait_for_its_first_chunk() -> None:
    line = Line(lambda exchange: exchange.start(200, [("x-a", "1")]))
    line.feed(GET)
    await asyncio.sleep(0)
    assert line.answer == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_an_answer_beyond_its_declared_length_is_cut() -> None:
    line = Line(stream(b"ab", b"c", headers=(("content-length", "2"),)))  # type: ignore[arg-type]
    line.feed(GET)
    assert line.answer.endswith(b"\r\n\r\nab") and line.ended


async def test_errors_become_their_own_answers() -> None:
    async def refuse(exchange: Exchange) -> None:
        raise NoCapacity("full", retry_after_s=2) if exchange.path == "/full" else DeadlineExceeded("late")

    line = Line(refuse)
    line.feed(b"GET /full HTTP/1.1\r\nhost: a\r\n\r\n")
    await asyncio.sleep(0.01)
    assert line.statuses == [503] and b"\r\nretry-after: 2\r\n" in line.answer
    line.feed(GET)
    await asyncio.sleep(0.01)
    assert line.statuses == [503, 504] and b"\r\nx-should-retry: false\r\n" in line.answer and not line.ended


async def test_an_unexpected_error_is_a_500_that_names_the_request_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(exchange: Exchange) -> None:
        raise KeyError("secret")

    line = Line(fail)
    with caplog.at_level(logging.ERROR):
        line.feed(b"GET / HTTP/1.1\r\nhost: a\r\nx-request-id: r-17\r\n\r\n")
    assert line.statuses == [500] and b"r-17" in line.answer and b"secret" not in line.answer
    assert "r-17" in caplog.text and "KeyError" in caplog.text


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_error_after_the_start_breaks_the_stream_off(version: str) -> None:
    async def fail(exchange: Exchange) -> None:
        exchange.start(200, ())
        exchange.write(b"a")
        raise NoCapacity("mid-stream")

    line = Line(fail)
    line.feed(f"GET / HTTP/{version}\r\nhost: a\r\n\r\n".encode())
    await asyncio.sleep(0.01)
    assert line.statuses == [200] and line.transport.closed and not line.answer.endswith(b"0\r\n\r\n")
    assert line.transport.aborted is (version == "1.0"), "a close would look like the end of an unframed answer"


async def test_a_handler_that_forgets_to_answer_gets_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def forget(exchange: Exchange) -> None:
        return

    line = Line(forget)
    with caplog.at_level(logging.ERROR):
        line.feed(GET)
        await asyncio.sleep(0.01)
    assert line.statuses == [500] and "without an answer" in caplog.text


async def test_an_answer_without_content_has_no_length_and_keeps_the_connection() -> None:
    line = Line(lambda exchange: exchange.respond(204, b"ignored", [("x-a", "1")]))
    line.feed(GET)
    assert line.answer == b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n" and not line.ended


async def test_after_the_client_is_gone_nothing_is_sent_and_nothing_raises() -> None:
    seen: list[Exchange] = []
    for method in ("respond", "start"):
        line = Line(seen.append)
        line.feed(GET)
        line.connection.connection_lost(None)
        if method == "respond":
            seen[-1].respond(200, b"late")
        else:
            seen[-1].start(200, ())
        seen[-1].write(b"late")
        seen[-1].end()
        seen[-1].abort()
        assert line.answer == b"" and seen[-1].gone and line.server.connections == 0


async def test_a_second_answer_is_an_error_of_the_caller() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append)
    line.feed(GET)
    with pytest.raises(RuntimeError, match="before start"):
        seen[0].write(b"a")
    with pytest.raises(RuntimeError, match="before start"):
        seen[0].end()
    with pytest.raises(ValueError, match="line break"):
        seen[0].respond(200, b"", [("x", "a\r\nb: c")])
    seen[0].respond(200, b"")
    with pytest.raises(RuntimeError, match="already"):
        seen[0].respond(200, b"")
    assert line.statuses == [200]


async def test_pipelined_requests_wait_for_the_answer_before_them() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append)
    line.feed(GET + GET, GET)
    assert len(seen) == 1
    seen[0].respond(200, b"1")
    assert len(seen) == 2
    seen[1].start(200, ())
    assert len(seen) == 2
    seen[1].end()
    assert len(seen) == 3


async def test_a_long_pipeline_is_no_recursion() -> None:
    line = Line(echo)
    line.feed(GET * 3000)
    while len(line.statuses) < 3000:
        before = len(line.statuses)
        await asyncio.sleep(0)
        assert before < len(line.statuses) <= before + 8, "a few in each turn of the loop: others want theirs, too"


async def test_what_comes_beside_a_pipeline_waits_its_turn_and_is_bounded() -> None:
    line = Line(echo, ServerLimits(max_pipelined_bytes=1000))
    line.feed(GET * 100, *[GET] * 100)
    assert not line.transport.reading and len(line.statuses) == 8
    async with asyncio.timeout(5):
        while len(line.statuses) < 200:
            await asyncio.sleep(0)
    assert line.transport.reading
    line.feed(GET * 100, POST, b"content-length: 2000\r\n\r\n", b"a" * 1000)
    async with asyncio.timeout(5):
        while len(line.statuses) < 300 or not line.transport.reading:
            await asyncio.sleep(0)
    line.feed(b"a" * 1000)
    assert len(line.statuses) == 301


async def test_what_comes_ahead_of_its_turn_is_bounded() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append, ServerLimits(max_pipelined_bytes=100))
    line.feed(GET, GET * 4)
    assert not line.transport.reading
    seen[0].respond(200, b"")
    assert not line.transport.reading and len(seen) == 2
    seen[1].respond(200, b"")
    assert line.transport.reading and len(seen) == 3


async def test_a_client_that_does_not_read_its_answers_is_not_read_either() -> None:
    line = Line(echo, ServerLimits(max_pipelined_bytes=100))
    line.connection.pause_writing()
    line.feed(GET, GET * 4)
    assert line.answer == b"" and not line.transport.reading
    line.connection.resume_writing()
    assert len(line.statuses) == 5 and line.transport.reading


async def test_a_pipeline_stops_where_the_write_buffer_fills() -> None:
    def fill(exchange: Exchange) -> None:
        exchange.respond(200, b"")
        line.connection.pause_writing()

    line = Line(fill)
    line.feed(GET * 3)
    for answered in (1, 2, 3):
        assert len(line.statuses) == answered
        line.connection.resume_writing()


async def test_a_half_closed_client_is_gone_at_once_even_if_its_answer_is_not_flushed() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append)
    line.feed(GET)
    seen[0].start(200, ())
    drained = asyncio.ensure_future(seen[0].drain())
    assert line.connection.eof_received() is False, "the transport closes"
    assert seen[0].gone
    with pytest.raises(ClientGone):
        await drained


async def test_a_full_write_buffer_pauses_the_relay_and_drain_waits() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append)
    line.feed(GET)
    calls: list[str] = []
    seen[0].start(200, ())
    await seen[0].drain()
    seen[0].on_writable(lambda: calls.append("pause"), lambda: calls.append("resume"))
    line.connection.pause_writing()
    drained = asyncio.ensure_future(seen[0].drain())
    await asyncio.sleep(0)
    assert calls == ["pause"] and not drained.done()
    line.connection.resume_writing()
    await drained
    assert calls == ["pause", "resume"]
    line.connection.pause_writing()
    seen[0].on_writable(lambda: calls.append("at once"), lambda: None)
    assert calls[-1] == "at once"


async def test_a_writer_that_ignores_back_pressure_is_cut() -> None:
    seen: list[Exchange] = []
    line = Line(seen.append, ServerLimits(max_write_buffer_bytes=1000))
    line.feed(GET)
    seen[0].start(200, ())
    line.connection.pause_writing()
    line.transport.buffered_bytes = 1000
    seen[0].write(b"a")
    assert not line.transport.aborted
    line.transport.buffered_bytes = 1001
    seen[0].write(b"a")
    assert line.transport.aborted
