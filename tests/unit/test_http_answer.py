"""Rendered heads: nothing of the caller's can break the framing."""

from __future__ import annotations

import json

import pytest

from baton_api.errors import DeadlineExceeded, NoCapacity, SettingError
from baton_wire.http_answer import declared_length, error_body, error_headers, render_head
from baton_wire.http_limits import ClientLimits, ServerLimits
from baton_wire.http_request import render_request, split_url


def test_framing_and_connection_headers_of_the_caller_are_dropped() -> None:
    given = [
        ("Content-Length", "9"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "x"),
        ("Date", "d"),
        ("x-a", "1"),
    ]
    assert render_head(200, given, "content-length: 2\r\n") == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "snow \u2603"])
def test_a_header_that_would_split_the_answer_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        render_head(200, [("x-a", value)], "")
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        render_request("GET", ("h", 80, "/"), [("x-a", value)], b"")


def test_unknown_statuses_have_no_phrase_and_interim_ones_are_refused() -> None:
    assert render_head(599, (), "") == b"HTTP/1.1 599 \r\n\r\n"
    for status in (99, 100, 101, 1000):
        with pytest.raises(ValueError, match="final"):
            render_head(status, (), "")


def test_errors_have_all_four_keys_and_say_when_to_retry() -> None:
    assert json.loads(error_body(NoCapacity("full")))["error"] == {
        "message": "full", "type": "server_error", "param": None, "code": "no_capacity"
    }  # fmt: skip
    assert error_headers(NoCapacity("full", retry_after_s=1.2)) == [("retry-after", "2")]
    assert error_headers(DeadlineExceeded("late")) == [("x-should-retry", "false")]


def test_a_declared_length_is_a_number() -> None:
    assert declared_length([("x", "1"), ("Content-Length", "12")]) == 12
    assert declared_length([]) is None
    with pytest.raises(ValueError, match="no number"):
        declared_length([("content-length", "1x")])


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a", ("a", 80, "/")),
        ("http://a:81/b?c=d", ("a", 81, "/b?c=d")),
        ("http://[::1]:81/", ("::1", 81, "/")),
    ],
)
def test_urls_split_into_host_port_and_target(url: str, address: tuple[str, int, str]) -> None:
    assert split_url(url) == address


@pytest.mark.parametrize(
    "url", ["https://a/", "http:///x", "http://a/b c", "http://u@a/", "http://a:x/", "http://a/\r\n", "/"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an http URL"):
        split_url(url)


def test_requests_carry_host_and_length() -> None:
    assert render_request("POST", ("::1", 81, "/b"), [("x", "y")], b"hi") == (
        b"POST /b HTTP/1.1\r\nhost: [::1]:81\r\nx: y\r\ncontent-length: 2\r\n\r\nhi"
    )
    assert render_request("GET", ("a", 80, "/"), (), b"") == b"GET / HTTP/1.1\r\nhost: a:80\r\n\r\n"
    with pytest.raises(ValueError, match="not a method"):
        render_request("GE T", ("a", 80, "/"), (), b"")


@pytest.mark.parametrize("kind", [ServerLimits, ClientLimits])
def test_a_limit_of_zero_stops_the_start(kind: type[ServerLimits] | type[ClientLimits]) -> None:
    with pytest.raises(SettingError, match="idle_timeout_s"):
        kind(idle_timeout_s=0)
