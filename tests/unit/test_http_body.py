"""Bodies of a known length and chunked ones, in any segmentation."""

from __future__ import annotations

import pytest

from baton_api.errors import BadRequest, TooLarge
from baton_wire.http_body import ChunkedBody, LengthBody

GOOD = [
    (b"0\r\n\r\n", b"", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""),
    (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nGET /", b"hello world", b"GET /"),
    (b"A\r\n0123456789\r\n00a\r\n0123456789\r\n000\r\n\r\n", b"0123456789" * 2, b""),
    (b'2;name=value;q="x"\r\n\r\n\r\n0;last\r\n\r\n', b"\r\n", b""),
    (b"1\r\na\r\n0\r\nx-sum: 1\r\nX-B:\r\n\r\nrest", b"a", b"rest"),
]

BAD = [
    b"\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"+1\r\na\r\n",
    b"0x1\r\na\r\n",
    b" 1\r\na\r\n",
    b"1 \r\na\r\n",
    b"1\na\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\r\nab\r\n",
    b"1\r\na\rX",
    b"123456789\r\n",
    b"1;\x00\r\na",
    b"1;a\nb\r\n",
    b"1;" + b"x" * 300,
    b"0\r\nbad name: 1\r\n\r\n",
    b"0\r\na : b\r\n\r\n",
    b"0\r\na: b\r\n fold\r\n\r\n",
    b"0\r\na: b\nc\r\n\r\n",
    b"0\r\n" + b"a: b\r\n" * 2000,
    b"1_0\r\n",
    b"0\r\nx_a: 1\r\n\r\n",
    b"\xb2\r\n",
    b";a\r\n",
]


@pytest.mark.parametrize(("coded", "body", "rest"), GOOD)
def test_chunked_bodies_decode_alike_at_every_split(coded: bytes, body: bytes, rest: bytes) -> None:
    for first in range(len(coded) - len(rest)):
        chunks = ChunkedBody(100)
        chunks.feed(coded[:first])
        assert not chunks.done
        chunks.feed(coded[first:])
        assert chunks.done and (chunks.body(), chunks.rest) == (body, rest)


@pytest.mark.parametrize(("coded", "body", "rest"), GOOD)
def test_chunked_bodies_decode_byte_by_byte(coded: bytes, body: bytes, rest: bytes) -> None:
    chunks = ChunkedBody(100)
    for byte in coded[: len(coded) - len(rest)]:
        assert not chunks.done
        chunks.feed(bytes([byte]))
    assert chunks.done and chunks.body() == body


def feed_bytewise(chunks: ChunkedBody, coded: bytes) -> None:
    for byte in coded:
        chunks.feed(bytes([byte]))


@pytest.mark.parametrize("coded", BAD, ids=lambda coded: repr(coded[:30]))
def test_malformed_chunks_are_refused_whole_and_byte_by_byte(coded: bytes) -> None:
    with pytest.raises(BadRequest):
        ChunkedBody(10_000).feed(coded)
    with pytest.raises(BadRequest):
        feed_bytewise(ChunkedBody(10_000), coded)


def test_a_chunk_beyond_the_limit_is_refused_at_its_header() -> None:
    chunks = ChunkedBody(10)
    chunks.feed(b"6\r\n123456\r\n")
    with pytest.raises(TooLarge):
        chunks.feed(b"5\r\n")


def test_a_body_in_tiny_chunks_is_refused_before_it_costs_much() -> None:
    chunks = ChunkedBody(1_000_000)
    with pytest.raises(BadRequest, match="small chunks"):
        chunks.feed(b"1\r\na\r\n" * 10_000)
    generous = ChunkedBody(1_000_000)
    generous.feed(b"40\r\n" + b"a" * 64 + b"\r\n")
    generous.feed((b"40\r\n" + b"a" * 64 + b"\r\n") * 9_999 + b"0\r\n\r\n")
    assert generous.done and generous.received_bytes == 640_000


def test_a_body_of_known_length_leaves_the_rest() -> None:
    body = LengthBody(5)
    for piece in (b"he", b"", b"llo, next"):
        assert not body.done
        body.feed(piece)
    assert body.done and (body.body(), body.rest) == (b"hello", b", next")
