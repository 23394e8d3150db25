"""What gateway processes on one port share: divided limits, pages of a board, summed counters."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.errors import SettingError
from baton_api.fleet import Fleet, FleetWorker
from baton_api.settings import parse
from baton_api.worker import Role, WorkerInfo
from baton_gateway.board import PAGE_BYTES, Board, Page
from baton_gateway.many import share_of
from baton_gateway.registry import Registry
from baton_gateway.settings import GatewaySettings
from baton_gateway.telemetry import Telemetry

INFO = WorkerInfo("d0", Role.DECODE, "e1", "m", "r", "f", "h:1", "tcp", 16, 512, True, False)


@given(st.integers(1, 9), st.integers(9, 5000), st.integers(0, 5000), st.integers(0, 50))
def test_all_shares_together_keep_to_the_limits(processes: int, in_flight: int, queued: int, burst: int) -> None:
    raw = {"fleet_file": "f", "model_path": "m", "processes": processes, "max_in_flight": in_flight}
    settings = parse(GatewaySettings, {**raw, "max_queued": queued, "retry_burst": burst})
    shares = [share_of(settings, index, 8000) for index in range(processes)]
    assert sum(share.max_in_flight for share in shares) == in_flight
    assert sum(share.max_queued for share in shares) == queued
    assert min(share.max_in_flight for share in shares) >= 1
    assert all(bool(share.retry_burst) == bool(burst) for share in shares)
    assert all(share.reuse_port and share.port == 8000 and share.processes == 1 for share in shares)


@given(st.integers(1, 9), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1 << 30), st.integers(1, 1 << 24))
def test_connections_and_bodies_of_all_are_bounded_and_each_takes_one(
    processes: int, connections: int, of_address: int, bodies: int, body: int
) -> None:
    raw = {"fleet_file": "f", "model_path": "m", "processes": processes, "max_body_bytes": body}
    limits = {"max_connections": connections, "max_connections_per_address": of_address, "max_bodies_bytes": bodies}
    settings = parse(GatewaySettings, {**raw, **limits})
    shares = [share_of(settings, index, 8000) for index in range(processes)]
    assert sum(share.max_connections for share in shares) == max(processes, connections)
    assert sum(share.max_connections_per_address for share in shares) == max(processes, of_address)
    assert all(min(body, bodies) <= share.max_bodies_bytes <= bodies for share in shares)
    if bodies >= processes * body:
        assert sum(share.max_bodies_bytes for share in shares) == bodies


def test_more_processes_than_requests_are_refused() -> None:
    with pytest.raises(SettingError, match="give at most max_in_flight, 2"):
        parse(GatewaySettings, {"fleet_file": "f", "model_path": "m", "processes": 3, "max_in_flight": 2})


def told() -> Telemetry:
    telemetry = Telemetry()
    telemetry.count("baton_gateway_retries_total", "decode", "x", amount=2)
    telemetry.observe("baton_gateway_ttft_seconds", 0.2, "m")
    telemetry.set_all("baton_gateway_workers", [(("decode", "ready"), 2)])
    telemetry.in_flight = 3
    return telemetry


def test_a_scrape_adds_up_counters_and_own_gauges_but_not_what_each_knows_of_the_same_thing() -> None:
    board = Board(2)
    board.write(1, Page.of({}, told().numbers))
    text = told().exposition([page.numbers for page in board.others(0)]).decode()
    assert 'retries_total{leg="decode",reason="x"} 4.0' in text and "baton_gateway_in_flight 6.0" in text
    assert 'ttft_seconds_count{model_name="m"} 2.0' in text and 'ttft_seconds_sum{model_name="m"} 0.4' in text
    assert 'workers{role="decode",state="ready"} 2.0' in text


def test_a_successor_goes_on_with_the_counters_and_without_the_load_of_the_dead() -> None:
    board = Board(2)
    board.write(0, Page.of({"u": (3, 30)}, told().numbers))
    board.strike_out(0)
    page = board.read(0)
    assert page.load == {}
    successor = Telemetry()
    successor.go_on_from(page.numbers)
    text = successor.exposition().decode()
    assert 'retries_total{leg="decode",reason="x"} 2.0' in text and "baton_gateway_in_flight 0.0" in text
    assert 'state="ready"' not in text


def test_a_half_written_page_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(1)
    assert board.read(0) == Page()
    board.write(0, Page({"u": (1, 2)}))
    assert board.read(0).load == {"u": (1, 2)}
    board.write(0, Page({"v": (1, 2)}))
    board._memory[20:24] = os.urandom(4)
    assert board.read(0).load == {"u": (1, 2)}
    with pytest.raises(ValueError, match="at most"):
        board.write(0, Page({"u" * PAGE_BYTES: (1, 2)}))


@given(st.binary(max_size=64))
def test_whatever_stands_on_a_page_reading_it_does_not_fail(data: bytes) -> None:
    board = Board(1)
    board._memory[: len(data)] = data
    assert board.read(0) == Page()


def test_load_of_other_processes_counts_until_it_is_gone() -> None:
    registry = Registry(3)
    registry.set_fleet(Fleet("m", (FleetWorker("u0"),)))
    registry.heard("u0", INFO)
    booking = registry.load("u0", 5)
    registry.hear_elsewhere({"u0": (2, 20), "unknown": (9, 9)})
    view = registry.routable()[0]
    assert (view.in_flight, view.in_flight_tokens) == (3, 25) and registry.booked() == {"u0": (1, 5)}
    booking.close()
    assert (view.in_flight, view.in_flight_tokens) == (2, 20) and registry.booked() == {}
    registry.hear_elsewhere({})
    assert (view.in_flight, view.in_flight_tokens) == (0, 0)
    registry.check_quiescent()
