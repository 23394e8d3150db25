"""Which request heads are refused, and how the others are read."""

from __future__ import annotations

import pytest

from baton_api.errors import BadRequest, BatonError, ExpectationFailed, HeadersTooLarge
from baton_wire.http_head import check_partial_head, parse_request_head
from baton_wire.http_limits import ServerLimits

LIMITS = ServerLimits(max_headers=10, max_target_bytes=50)


def head(*lines: str, request: str = "POST /v1/x HTTP/1.1", host: str | None = "host: a") -> bytes:
    given = [request, *([host] if host else []), *lines]
    return "".join(f"{line}\r\n" for line in given).encode("latin-1") + b"\r\n"


REFUSED = [
    # request line
    (head(request="GET  / HTTP/1.1"), "malformed_request_line"),
    (head(request=" GET / HTTP/1.1"), "malformed_request_line"),
    (head(request="GET / HTTP/1.1 "), "malformed_request_line"),
    (head(request="GET / HTTP/2.0"), "malformed_request_line"),
    (head(request="GET / HTTP/0.9"), "malformed_request_line"),
    (head(request="GET / HTTP/1.2"), "malformed_request_line"),
    (head(request="GET / http/1.1"), "malformed_request_line"),
    (head(request="GET /"), "malformed_request_line"),
    (head(request="get / HTTP/1.1"), "malformed_request_line"),
    (head(request="G@T / HTTP/1.1"), "malformed_request_line"),
    (head(request="GET /a b HTTP/1.1"), "malformed_request_line"),
    (head(request="GET /\tb HTTP/1.1"), "malformed_request_line"),
    (head(request="GET /a#b HTTP/1.1"), "malformed_request_line"),
    (head(request="GET /\x80 HTTP/1.1"), "malformed_request_line"),
    (head(request="GET /\x00 HTTP/1.1"), "malformed_request_line"),
    (head(request="GET http://a/ HTTP/1.1"), "malformed_request_line"),
    (head(request="CONNECT a:80 HTTP/1.1"), "malformed_request_line"),
    (head(request="CONNECT / HTTP/1.1"), "malformed_request_line"),
    (head(request="OPTIONS * HTTP/1.1"), "malformed_request_line"),
    (b"\r\n" + head(), "malformed_request_line"),
    (head(request="GET /" + "a" * 50 + " HTTP/1.1"), "target_too_long"),
    # header section
    (head("a : b"), "malformed_header"),
    (head("a\t: b"), "malformed_header"),
    (head(" a: b"), "malformed_header"),
    (head("a: b", " folded"), "malformed_header"),
    (head("a: b", "\tfolded"), "malformed_header"),
    (head("no colon"), "malformed_header"),
    (head(": nameless"), "malformed_header"),
    (head("a\x00: b"), "malformed_header"),
    (head("a: b\x00"), "malformed_header"),
    (head("a: b\x01c"), "malformed_header"),
    (head("a: b\x7f"), "malformed_header"),
    (head("a: b\nc: d"), "malformed_header"),
    (head("a: b\rc: d"), "malformed_header"),
    (head("a: b\r"), "malformed_header"),
    (head("x_tenant: b"), "malformed_header"),
    (head("é: b"), "malformed_header"),
    (head('"a": b'), "malformed_header"),
    # host
    (head(host=None), "missing_host"),
    (head("host: b"), "repeated_header"),
    (head("Host: a"), "repeated_header"),
    (head(host="host:"), "malformed_host"),
    (head(host="host: a/b"), "malformed_host"),
    (head(host="host: a b"), "malformed_host"),
    (head(host="host: user@a"), "malformed_host"),
    (head(host="host: a:80:90"), "malformed_host"),
    (head(host="host: a,b"), "malformed_host"),
    # length
    (head("content-length: 5", "content-length: 5"), "repeated_header"),
    (head("content-length: 5", "Content-Length: 6"), "repeated_header"),
    (head("content-length: 5, 5"), "bad_content_length"),
    (head("content-length: +5"), "bad_content_length"),
    (head("content-length: -5"), "bad_content_length"),
    (head("content-length: 0x5"), "bad_content_length"),
    (head("content-length: 5_0"), "bad_content_length"),
    (head("content-length: \xb2"), "bad_content_length"),
    (head("content-length: 5 5"), "bad_content_length"),
    (head("content-length:"), "bad_content_length"),
    (head("content-length: 9999999999999999"), "bad_content_length"),
    # transfer coding
    (head("transfer-encoding: chunked", "content-length: 5"), "ambiguous_length"),
    (head("content-length: 5", "transfer-encoding: chunked"), "ambiguous_length"),
    (head("transfer-encoding: identity", "content-length: 5"), "ambiguous_length"),
    (head("transfer-encoding: chunked", "transfer-encoding: chunked"), "repeated_header"),
    (head("transfer-encoding: gzip, chunked"), "bad_transfer_encoding"),
    (head("transfer-encoding: chunked, chunked"), "bad_transfer_encoding"),
    (head("transfer-encoding: identity"), "bad_transfer_encoding"),
    (head("transfer-encoding: xchunked"), "bad_transfer_encoding"),
    (head("transfer-encoding: \x0bchunked"), "malformed_header"),
    (head("transfer-encoding:"), "bad_transfer_encoding"),
    (head("transfer-encoding: chunked", request="POST / HTTP/1.0"), "bad_transfer_encoding"),
    # others
    (head("upgrade: h2c", "connection: upgrade"), "upgrade_refused"),
    (head("upgrade: websocket"), "upgrade_refused"),
    (head("expect: 200-ok"), None),
    (head(*[f"a{i}: b" for i in range(10)]), None),
]


@pytest.mark.parametrize(("raw", "code"), REFUSED, ids=lambda value: repr(value)[:60])
def test_heads_that_two_readers_could_read_differently_are_refused(raw: bytes, code: str | None) -> None:
    with pytest.raises(BatonError) as refusal:
        parse_request_head(raw, LIMITS)
    assert refusal.value.code == code


def test_too_many_fields_are_431_and_unknown_expectations_417() -> None:
    with pytest.raises(HeadersTooLarge):
        parse_request_head(head(*[f"a{i}: b" for i in range(10)]), LIMITS)
    with pytest.raises(ExpectationFailed):
        parse_request_head(head("expect: 200-ok"), LIMITS)
    assert len(parse_request_head(head(*[f"a{i}: b" for i in range(9)]), LIMITS).headers) == 10


def test_names_are_lower_case_values_are_stripped_and_repeated_fields_joined() -> None:
    read = parse_request_head(head("X-A: \t one \t", "x-a:two", "X-B:", "x-c: a:b", "x-d: caf\xe9"), LIMITS)
    assert read.headers == {"host": "a", "x-a": "one, two", "x-b": "", "x-c": "a:b", "x-d": "caf\xe9"}


@pytest.mark.parametrize(
    ("request_line", "connection", "keep_alive"),
    [
        ("GET / HTTP/1.1", None, True),
        ("GET / HTTP/1.1", "keep-alive", True),
        ("GET / HTTP/1.1", "close", False),
        ("GET / HTTP/1.1", "te, Close", False),
        ("GET / HTTP/1.0", None, False),
        ("GET / HTTP/1.0", "keep-alive", False),
    ],
)
def test_the_connection_is_kept_for_http_1_1_unless_closed_by_name(
    request_line: str, connection: str | None, keep_alive: bool
) -> None:
    lines = [] if connection is None else [f"connection: {connection}"]
    assert parse_request_head(head(*lines, request=request_line), LIMITS).keep_alive is keep_alive


@pytest.mark.parametrize("host", ["a", "a.b-c.svc:8000", "worker_1", "10.0.0.1", "[::1]", "[fe80::1]:80"])
def test_hosts_are_names_and_addresses_with_an_optional_port(host: str) -> None:
    assert parse_request_head(head(host=f"host: {host}"), LIMITS).headers["host"] == host


def test_http_1_0_needs_no_host_and_gets_no_continue() -> None:
    read = parse_request_head(head("expect: 100-continue", request="GET / HTTP/1.0", host=None), LIMITS)
    assert not read.http11 and not read.expect_continue
    assert parse_request_head(head("Expect: 100-Continue"), LIMITS).expect_continue


def test_a_refused_underscore_is_named_with_its_line() -> None:
    with pytest.raises(BadRequest, match=r"line 2: underscores are refused"):
        parse_request_head(head("x_a: 1"), LIMITS)


@pytest.mark.parametrize(
    "partial",
    [b"\x16\x03\x01\x02", b"GET / HTTP/1.1\nhost: a\n", b"GET / HTTP/1.1\r\nhost: a\r\n fold", b"\r\n", b"get ",
     b"GET /\x00", b"GET / HTTP/1.1\rhost", b" GET"],
)  # fmt: skip
def test_what_cannot_become_a_head_is_refused_before_its_end(partial: bytes) -> None:
    with pytest.raises(BadRequest):
        check_partial_head(partial, 0)


def test_every_prefix_of_a_good_head_may_still_become_one() -> None:
    raw = head("accept: */*", "x-a:\tb")
    for end in range(1, len(raw) - 3):
        check_partial_head(raw[:end], 0)
        check_partial_head(raw[:end], end - 1)


def test_a_dribbled_head_is_caught_although_only_its_new_bytes_are_read() -> None:
    raw = b"GET / HTTP/1.1\r\nhost: a\nb: c"
    at = raw.index(b"a\nb") + 1
    check_partial_head(raw[:at], at - 1)
    with pytest.raises(BadRequest):
        check_partial_head(raw[: at + 1], at)
    with pytest.raises(BadRequest):  # a bare CR shows one byte later
        check_partial_head(b"GET / HTTP/1.1\rX", 15)
