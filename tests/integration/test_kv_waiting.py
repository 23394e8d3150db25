"""What prefill hears of a decode worker that has not pulled yet: that it waits, or that nobody will come.

Leases are long here where the end must be told, and short where it must be put off.
"""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import replace

import pytest

from baton_api.errors import TransferDeadline
from baton_api.tickets import sign_ticket
from support.kv_flaky import slow
from support.kv_pair import FAST, FIRST, KEY, PREFILL, Pair, kv_pair

needs_ucx = pytest.mark.skipif(
    importlib.util.find_spec("ucxx") is None, reason="ucxx IS NOT INSTALLED: the ucx transports were NOT tested"
)
every = pytest.mark.parametrize(
    "transport",
    ["inproc", "tcp", "cma", pytest.param("ucx/tcp", marks=needs_ucx), pytest.param("ucx/shm", marks=needs_ucx)],
)
SOURCE, TARGET = (5, 3, 9, 1, 7, 11, 2), (40, 41, 30, 31, 20, 21, 22)  # 100 tokens
LONG = replace(FAST, lease_s=60.0)
SHORT = replace(FAST, lease_s=1.5, heartbeat_s=0.1)


def waiting(pair: Pair, key: bytes = KEY):  # type: ignore[no-untyped-def]
    ticket = pair.ticket()
    return pair.client.waiting(sign_ticket(ticket, key), ticket)


@every
async def test_a_client_that_leaves_while_decode_connects_for_the_first_time_ends_the_lease(transport: str) -> None:
    async with kv_pair(transport, LONG, wrap=slow(0.5)) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        pull = asyncio.create_task(pair.pull(TARGET))
        await asyncio.sleep(0.2)
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert pair.ends["t1"] == []
        await pair.leases_gone(20.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["aborted"]
        pair.open("t2").finish(SOURCE, FIRST, PREFILL)  # the peer that was made to tell is there for the next one
        await pair.pull(TARGET, ticket=pair.ticket("t2"))
        assert len(pair.watch.links) == 2


async def test_a_pull_whose_time_is_over_before_there_is_a_peer_ends_the_lease() -> None:
    async with kv_pair("tcp", LONG, wrap=slow(0.5)) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(TransferDeadline):
            await pair.pull(TARGET, deadline_s=0.1)
        await pair.leases_gone(20.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["aborted"]


async def test_a_prefill_leg_that_comes_after_its_client_left_a_connecting_decode_ends_at_once() -> None:
    async with kv_pair("tcp", LONG, wrap=slow(0.3)) as pair:
        pull = asyncio.create_task(pair.pull(TARGET))
        await asyncio.sleep(0.1)
        pull.cancel()
        await asyncio.wait([pull])
        async with asyncio.timeout(20):
            while not pair.watch.links:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        pair.open(deadline_s=60.0)
        await pair.leases_gone(5.0)


async def test_a_client_that_leaves_while_it_queues_for_room_ends_the_lease() -> None:
    async with kv_pair("tcp", LONG) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(asyncio.CancelledError), waiting(pair):
            raise asyncio.CancelledError
        await pair.leases_gone(20.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["aborted"]


@every
async def test_a_lease_outlives_its_term_while_decode_queues_for_room(transport: str) -> None:
    async with kv_pair(transport, SHORT) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        with waiting(pair):
            await asyncio.sleep(4.0)
        assert pair.ends["t1"] == []
        await pair.pull(TARGET)
        for source, target in zip(SOURCE, TARGET, strict=True):
            assert pair.decode.block(target) == pair.prefill.block(source)


async def test_a_kept_lease_still_ends_with_its_requests_deadline() -> None:
    async with kv_pair("tcp", SHORT) as pair:
        pair.open(deadline_s=1.5).finish(SOURCE, FIRST, PREFILL)
        with waiting(pair):
            await asyncio.sleep(1.0)
            assert pair.ends["t1"] == []
            await pair.leases_gone(10.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["expired"]


async def test_a_forged_ticket_keeps_nothing() -> None:
    async with kv_pair("tcp", SHORT) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        with waiting(pair, b"x" * 32):
            await pair.leases_gone(10.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["expired"]


async def test_a_decode_worker_that_is_gone_keeps_nothing() -> None:
    async with kv_pair("tcp", SHORT) as pair:
        pair.open(deadline_s=60.0).finish(SOURCE, FIRST, PREFILL)
        with waiting(pair):
            await asyncio.sleep(1.2)
            assert pair.ends["t1"] == []
            await pair.client.close()
            await pair.leases_gone(10.0)
        await asyncio.sleep(0.05)
        assert pair.ends["t1"] == ["expired"]


async def test_what_is_kept_is_bounded_and_forgotten_when_its_ticket_expires() -> None:
    async with kv_pair("inproc", replace(SHORT, max_transfers=2)) as pair:
        pair.open("warm", deadline_s=5.0).finish(SOURCE, FIRST, PREFILL)
        await pair.pull(TARGET, ticket=pair.ticket("warm"))
        (stream,) = pair.server.streams
        for number in range(4):
            ticket = pair.ticket(f"k{number}", expires_at_s=pair.server.wall_clock() + 1.0)
            with pair.client.waiting(sign_ticket(ticket, KEY), ticket):
                await asyncio.sleep(0.3)
            assert len(stream.keeps) <= 2
        async with asyncio.timeout(10):
            while stream.keeps:
                await asyncio.sleep(0.05)
