"""The HTTP server's clocks, budgets and turns: who dawdles is ended, and nobody takes what others need."""

from __future__ import annotations

import asyncio
import socket

import pytest

from baton_wire.http_server import SWEPT_AT_ONCE, Exchange, ServerLimits
from contract.test_http_transcripts import GET, LIMITS, POST
from support.wire import Line, echo


def clocked(limits: ServerLimits, *pieces: bytes) -> tuple[Line, float]:
    line = Line(echo, limits)
    line.feed(*pieces)
    return line, line.server.loop.time()


async def test_the_clock_ends_what_dawdles() -> None:
    limits = ServerLimits(header_timeout_s=10, body_grace_s=10, body_min_bytes_per_s=100, idle_timeout_s=75, linger_s=2)
    silent, now = clocked(limits)
    silent.connection.check_clock(now + 9.9)
    assert not silent.transport.closed
    silent.connection.check_clock(now + 10.1)
    assert silent.transport.closed and silent.answer == b""

    kept, now = clocked(limits, GET)
    kept.connection.check_clock(now + 74)
    assert not kept.transport.closed
    kept.connection.check_clock(now + 76)
    assert kept.transport.closed and kept.statuses == [200]

    heading, now = clocked(limits, GET, b"GET /")
    heading.connection.check_clock(now + 9.9)
    assert heading.statuses == [200]
    heading.connection.check_clock(now + 10.1)
    assert heading.statuses == [200, 408] and heading.transport.eof and not heading.transport.closed
    heading.connection.check_clock(now + 13)
    assert heading.transport.aborted

    for more in (b"content-length: 100000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n10000\r\n"):
        sending, now = clocked(limits, POST + more + b"a" * 60_000)
        sending.connection.check_clock(now + 9.9)
        assert sending.statuses == []
        sending.connection.check_clock(now + 10.1)
        assert sending.statuses == [408], "what came faster earns no silence"


async def test_a_body_keeps_its_place_by_coming_at_the_least_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ServerLimits(body_grace_s=10, body_min_bytes_per_s=100)
    line, now = clocked(limits, POST + b"content-length: 100000\r\n\r\n")
    for _ in range(30):
        now += 3.0
        monkeypatch.setattr(line.connection, "_loop", Clock(now))
        line.feed(b"a" * 300)
        line.connection.check_clock(now + 9.9)
        assert line.statuses == []
    for _ in range(30):
        now += 3.0
        monkeypatch.setattr(line.connection, "_loop", Clock(now))
        line.feed(b"a" * 30)
        line.connection.check_clock(now)
    assert line.statuses == [408], "a tenth of it"


class Clock:
    """A loop's, as far as a connection asks for it."""

    def __init__(self, now: float) -> None:
        self._now = now

    def time(self) -> float:
        return self._now


async def test_a_reader_that_stands_still_is_cut() -> None:
    line, now = clocked(ServerLimits(write_stall_s=60), GET)
    line.connection.pause_writing()
    line.connection.check_clock(now + 59)
    assert not line.transport.aborted
    line.connection.check_clock(now + 61)
    assert line.transport.aborted


async def test_a_lingering_client_may_not_send_for_ever() -> None:
    line = Line(echo, LIMITS)
    line.feed(b"BAD\r\n\r\n", b"a" * 400)
    assert not line.transport.closed
    line.feed(b"a")
    assert line.transport.aborted


async def test_unfinished_bodies_share_one_budget_that_returns_to_zero() -> None:
    first = Line(echo, ServerLimits(max_bodies_bytes=100))
    second, third = Line(echo, server=first.server), Line(echo, server=first.server)
    bodies = first.server.bodies
    first.feed(POST + b"content-length: 80\r\n\r\n", b"a" * 60)
    second.feed(POST + b"transfer-encoding: chunked\r\n\r\n", b"1000000\r\n")
    assert bodies.held_bytes == 60, "an announcement takes no room"
    second.feed(b"a" * 30)
    assert bodies.held_bytes == 90
    third.feed(POST + b"content-length: 20\r\n\r\n", b"a" * 11)
    assert third.statuses == [503] and third.ended and bodies.held_bytes == 90
    first.feed(b"a" * 10)
    assert bodies.held_bytes == 100
    second.connection.connection_lost(None)
    assert bodies.held_bytes == 70
    first.feed(b"a" * 10)
    assert first.statuses == [200] and bodies.held_bytes == 0


async def test_bodies_count_until_their_answers_have_ended() -> None:
    waiting: list[Exchange] = []
    first = Line(waiting.append, ServerLimits(max_bodies_bytes=50_000))
    second = Line(waiting.append, server=first.server)
    bodies = first.server.bodies
    whole = POST + b"content-length: 30000\r\n\r\n" + b"a" * 30_000
    first.feed(whole[:1000], whole[1000:])
    assert len(waiting) == 1 and bodies.held_bytes == 30_000
    second.feed(whole)
    assert second.statuses == [503] and len(waiting) == 1
    waiting[0].respond(200, b"")
    assert bodies.held_bytes == 0
    third = Line(waiting.append, server=first.server)
    third.feed(whole)
    assert len(waiting) == 2 and bodies.held_bytes == 30_000
    waiting[1].abort()
    assert bodies.held_bytes == 0


async def test_one_connection_too_many_is_told_so() -> None:
    line = Line(echo, ServerLimits(max_connections=1))
    extra = Line(echo, server=line.server)
    assert line.statuses == [] and line.server.connections == 2
    assert extra.statuses == [503] and extra.ended and b"retry-after: 1" in extra.answer


async def test_a_socket_closed_under_the_clock_does_not_stop_it() -> None:
    """Between the close and `connection_lost` the kernel cannot be asked any more; all other clocks hang on this."""
    line = Line(echo, ServerLimits(write_stall_s=10.0))
    closed = socket.socket()
    closed.close()
    line.transport.socket = closed
    line.feed(b"GET / HTTP/1.0\r\n\r\n")
    now = asyncio.get_running_loop().time()
    line.connection.check_clock(now + 1)
    assert line.transport.closed and not line.transport.aborted
    line.connection.check_clock(now + 11)
    assert line.transport.aborted


async def test_slow_clients_are_cut_a_few_in_each_turn_of_the_loop() -> None:
    """Hundreds at once would hold everybody else up."""
    first = Line(echo, ServerLimits(header_timeout_s=0.01))
    lines = [first, *(Line(echo, server=first.server) for _ in range(3 * SWEPT_AT_ONCE))]
    for line in lines:
        line.feed(b"GET / HT")
    await asyncio.sleep(0.02)
    first.server._sweep()
    told = []
    while not told or told[-1] < len(lines):
        told.append(sum(line.statuses == [408] for line in lines))
        await asyncio.sleep(0)
    assert told == [SWEPT_AT_ONCE, 2 * SWEPT_AT_ONCE, 3 * SWEPT_AT_ONCE, len(lines)]
