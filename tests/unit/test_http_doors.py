"""How many connections are let in: in all, and of one address."""

from __future__ import annotations

import pytest

from baton_wire.http_doors import Doors, address_group
from baton_wire.http_limits import ServerLimits
from support.wire import Line, echo

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_one_address_may_hold_so_many_and_another_one_as_many() -> None:
    doors = Doors(ServerLimits(max_connections=10, max_connections_per_address=2))
    assert doors.enter("192.0.2.1", 1) is None and doors.enter("192.0.2.1", 2) is None
    refusal = doors.enter("192.0.2.1", 3)
    assert refusal is not None
    assert (refusal.http_status, refusal.code, refusal.retry_after_s) == (429, "too_many_connections_of_address", 1.0)
    assert doors.enter("192.0.2.2", 4) is None
    for host in ("192.0.2.1", "192.0.2.1"):
        doors.leave(host)
    assert doors.enter("192.0.2.1", 3) is None
    for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        doors.leave(host)
    doors.check_quiescent()


def test_one_too_many_in_all_is_a_503() -> None:
    doors = Doors(ServerLimits(max_connections=1))
    assert doors.enter("192.0.2.1", 1) is None
    refusal = doors.enter("192.0.2.2", 2)
    assert refusal is not None and (refusal.http_status, refusal.code) == (503, "too_many_connections")


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "20010db800000001"),
        ("2001:db8:0:1:ffff::2", "20010db800000001"),
        ("2001:db8:0:2::1", "20010db800000002"),
        ("fe80::1%eth0", "fe80000000000000"),
        ("a:name", "a:name"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host: str, group: str) -> None:
    assert address_group(host) == group


async def test_a_server_answers_the_connection_too_many_and_counts_it() -> None:
    first = Line(echo, ServerLimits(max_connections_per_address=1))
    second = Line(echo, server=first.server)
    assert second.statuses == [429] and second.ended and b"retry-after: 1" in second.answer
    assert first.server.refused == {"too_many_connections_of_address": 1}
    second.connection.connection_lost(None)
    first.feed(GET)
    assert first.statuses == [200]
    first.connection.connection_lost(None)
    third = Line(echo, server=first.server)
    assert third.statuses == []


async def test_connections_that_are_told_why_they_are_refused_take_nobodys_place() -> None:
    limits = ServerLimits(max_connections=2, max_connections_per_address=1)
    first = Line(echo, limits)
    refused = [Line(echo, server=first.server) for _ in range(3)]
    assert [line.statuses for line in refused] == [[429]] * 3
    other = Line(echo, server=first.server, host="192.0.2.2")
    other.feed(GET)
    assert other.statuses == [200]


async def test_refusals_are_bounded_too_beyond_them_a_connection_is_reset() -> None:
    first = Line(echo, ServerLimits(max_connections=1, max_refused_connections=1))
    refused, reset = Line(echo, server=first.server), Line(echo, server=first.server)
    assert refused.statuses == [503] and not refused.transport.aborted
    assert reset.transport.aborted and reset.answer == b""
    assert first.server.refused == {"too_many_connections": 2}
