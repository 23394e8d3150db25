"""Our reading of requests against h11's: what h11 refuses we refuse; what we accept h11 reads the same.

Smuggling lives where two readers of one byte stream disagree. Ours may refuse more than h11, never less.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from baton_wire.http_server import Exchange
from support.wire import Line


@dataclass(frozen=True, slots=True)
class Read:
    """One request as a reader understood it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def read_by_us(pieces: list[bytes]) -> list[Read]:
    """The accepted requests, in order."""
    seen: list[Read] = []

    def keep(exchange: Exchange) -> None:
        seen.append(Read(exchange.method, exchange.target, _comparable(exchange.headers.items()), exchange.body))
        exchange.respond(200, b"")

    async def feed() -> None:
        Line(keep).feed(*pieces)

    asyncio.run(feed())
    return seen


def read_by_h11(raw: bytes) -> Iterator[Read]:
    """The requests that h11 accepts, until it refuses or needs more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    while True:
        try:
            request = _complete_request(connection)
            if request is None:
                return
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            yield request
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            return


def _complete_request(connection: h11.Connection) -> Read | None:
    request, body = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            headers = _comparable((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers)
            return Read(request.method.decode(), request.target.decode("latin-1"), headers, body)
        else:
            return None


def _comparable(headers: object) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:  # type: ignore[attr-defined]
        value = value.lower() if name in ("transfer-encoding", "expect", "connection") else value
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


GOOD = b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

# Sources: RFC 9112 section 11.2; Kettle, "HTTP Desync Attacks" (2019) and "HTTP/1.1 must die" (2025); the
# advisories of llhttp and h11.
SMUGGLING = [
    POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 6\r\nContent-Length: 5\r\n\r\n12345G",
    POST + b"Content-Length: 5, 6\r\n\r\n12345G",
    POST + b"Content-Length: 5\r\ncontent-length : 6\r\n\r\n12345G",
    POST + b"Content-Length: 0\r\n Content-Length: 5\r\n\r\nhello",
    POST + b"Content-Length:\r\n 5\r\n\r\nhello",
    POST + b"Content-Length: 5\r\n\tx: y\r\n\r\nhello",
    POST + b"Content_Length: 5\r\n\r\nhello",
    POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    POST + b"Content-Length: \xd9\xa5\r\n\r\nhello",
    POST + b"Content-Length: 5\x00\r\n\r\nhello",
    POST + b"Content-Length: 5\x0b\r\n\r\nhello",
    POST + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding:\xa0chunked\r\n\r\n0\r\n\r\n",
    POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer\r-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"X\x00: y\r\n\r\n",
    POST + b"\x00Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na0\r\n\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n100000001\r\na\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nGET /x HTTP/1.1\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\rHost: a\r\r",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //\\b HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    b"GET / HTTP/11\r\nHost: a\r\n\r\n",
    b"GET / XHTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.parametrize("raw", SMUGGLING, ids=lambda raw: repr(raw[-40:]))
async def test_smuggling_attempts_are_400_close_the_connection_and_reach_no_handler(raw: bytes) -> None:
    seen: list[Exchange] = []
    for pieces in ([raw + GOOD], [raw, GOOD], [bytes([byte]) for byte in raw + GOOD]):
        line = Line(seen.append)
        line.feed(*pieces)
        assert line.statuses == [400] and line.ended
        assert seen == []


NASTY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"_",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"0",
    b"\r\n ",
    b"\r\n\r\n",
]
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE", b"get", b"G,T", b"", b"CONNECT"])
TARGETS = st.sampled_from(
    [b"/", b"/v1/x?a=b&c", b"//x", b"/%2e%2e/", b"*", b"http://a/", b"a:1", b"/a#b", b"/\xc3\xa9", b""]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b""])
FIELDS = st.sampled_from(
    [
        b"Host: a",
        b"host: b:80",
        b"Host:",
        b"Content-Length: 3",
        b"content-length: 03",
        b"Content-Length: 3, 3",
        b"Content-Length: x",
        b"Content-Length: -3",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: Chunked",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Expect: 100-continue",
        b"X-A: 1",
        b"x-a:  two words \t",
        b"X-B:",
        b"x_c: 1",
        b"x-d : 1",
        b" fold",
        b"X-E: \xe9",
        b"X-F: a\tb",
        b"nocolon",
        b"X-G: ,",
        b"Upgrade: x",
        b"TE: trailers",
        b"Trailer: x",
        b"Cookie: a=b; c=d",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"abc",
        b"abcdef",
        b"0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;x=y\r\nabc\r\n0\r\nt: u\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0a\r\n0123456789\r\n00\r\n\r\n",
        b"3\nabc\n0\n\n",
        GOOD,
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 30 + [b"\n", b"\r", b"\r\n\r\n", b" \r\n"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Something between a request and noise."""
    lines = [b" ".join([draw(METHODS), draw(TARGETS), draw(VERSIONS)])]
    if draw(st.integers(0, 9)):
        lines.append(b"Host: a")
    lines += draw(st.lists(FIELDS, max_size=4))
    head = b"".join(line + draw(ENDS) for line in lines)
    return head + b"\r\n" + draw(BODIES)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A pipeline of them, with a few bytes inserted, doubled or lost."""
    raw = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from(NASTY)) + raw[at + draw(st.integers(0, 1)) :]
    return raw


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=streams(), cuts=st.lists(st.integers(0, 400), max_size=4))
@example(raw=b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", cuts=[])
@example(raw=POST + b"content-length: 03\r\n\r\nabc" + GOOD, cuts=[])
@example(raw=POST + b"transfer-encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", cuts=[])
def test_what_we_accept_h11_reads_the_same(raw: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(bounds)]
    ours = read_by_us(pieces)
    theirs = list(read_by_h11(raw))
    assert ours == theirs[: len(ours)]


CLEAN_VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
CLEAN_NAMES = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-", min_size=1, max_size=12).map(lambda name: f"x-{name}")


@settings(max_examples=300, deadline=None)
@given(
    fields=st.lists(st.tuples(CLEAN_NAMES, CLEAN_VALUES), max_size=8),
    body=st.binary(max_size=200),
    chunk_bytes=st.integers(0, 50),
    repeat=st.integers(1, 3),
)
def test_what_is_well_formed_is_accepted_by_both(
    fields: list[tuple[str, str]], body: bytes, chunk_bytes: int, repeat: int
) -> None:
    section = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
    if chunk_bytes:
        chunks = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        raw = POST + section + b"transfer-encoding: chunked\r\n\r\n" + coded
    else:
        raw = POST + section + b"content-length: %d\r\n\r\n" % len(body) + body
    ours = read_by_us([raw * repeat])
    assert len(ours) == repeat and ours == list(read_by_h11(raw * repeat))
