"""Our reading of requests against h11's: what h11 refuses we refuse; what we accept h11 reads the same.

Smuggling lives where two readers of one byte stream disagree. Ours may refuse more than h11, never less.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from baton_wire.http_server import Exchange
from fuzzing.corpus import GOOD, POST, REFUSED, STRICTER, TAKEN
from fuzzing.readers import read_by_h11, read_by_us
from support.wire import Line


@pytest.mark.parametrize("name", REFUSED)
async def test_smuggling_attempts_are_refused_close_the_connection_and_reach_no_handler(name: str) -> None:
    raw, status = REFUSED[name]
    seen: list[Exchange] = []
    for pieces in ([raw + GOOD], [raw, GOOD], [bytes([byte]) for byte in raw + GOOD]):
        line = Line(seen.append)
        line.feed(*pieces)
        assert line.statuses == [status] and line.ended
        assert seen == []


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_odd_but_has_one_reading_is_read_so_by_both(name: str) -> None:
    raw, expected = TAKEN[name]
    assert read_by_us([raw]) == expected == list(read_by_h11(raw))
    assert read_by_us([bytes([byte]) for byte in raw]) == expected


def test_where_we_are_stricter_than_h11_stands_in_a_list_with_reasons() -> None:
    stricter = {name for name, (raw, _) in REFUSED.items() if list(read_by_h11(raw))}
    assert stricter == set(STRICTER)


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
