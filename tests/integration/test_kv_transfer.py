"""KvServer and KvClient over real gRPC and every transport: what arrives, what is refused, how everything ends.

`kv_pair` checks on the way out that every lease is gone and that both sides' invariants hold.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from dataclasses import replace

import pytest

from baton_api.errors import (
    BadRequest,
    ChecksumMismatch,
    EpochMismatch,
    LayoutMismatch,
    NoCapacity,
    PeerLost,
    PrefillFailed,
    TicketRefused,
    TransferAborted,
    TransferDeadline,
    TransferError,
)
from baton_kv.client import Pulled
from support.kv_flaky import faulty, flip_one_bit, silent
from support.kv_pair import FAST, FIRST, LAYOUT, PREFILL, Pair, kv_pair, layout_of

needs_ucx = pytest.mark.skipif(
    importlib.util.find_spec("ucxx") is None, reason="ucxx IS NOT INSTALLED: the ucx transports were NOT tested"
)
every = pytest.mark.parametrize(
    "transport",
    ["inproc", "tcp", "cma", pytest.param("ucx/tcp", marks=needs_ucx), pytest.param("ucx/shm", marks=needs_ucx)],
)
SOURCE, TARGET = (5, 3, 9, 1, 7, 11, 2), (40, 41, 30, 31, 20, 21, 22)  # 100 tokens: 6 whole blocks and a partial one


def assert_moved(pair: Pair, untouched: bytes, held: int = 0) -> None:
    """Every moved block equals its source; every other byte of the destination is as before."""
    expected = bytearray(untouched)
    size = pair.decode.layout.block_bytes
    for source, target in list(zip(SOURCE, TARGET, strict=True))[held:]:
        expected[target * size : (target + 1) * size] = pair.prefill.block(source)
    assert pair.decode.data == expected


async def landed(pair: Pair, pull: asyncio.Task[Pulled], blocks: int) -> None:
    """Waits until decode has verified that many blocks. A pull that failed meanwhile raises its own error."""
    async with asyncio.timeout(15):
        while len(pair.decode.taken_over) < blocks:
            if pull.done():
                await pull
            await asyncio.sleep(0.002)


async def ended(pair: Pair, transfer_id: str = "t1") -> str:
    """The one outcome that the lease's on_end heard."""
    await pair.leases_gone()
    await asyncio.sleep(0.02)
    (outcome,) = pair.ends[transfer_id]
    return outcome


@every
@pytest.mark.parametrize("held", [0, 3, 7])
async def test_a_prompt_moves_while_it_is_computed(transport: str, held: int) -> None:
    async with kv_pair(transport) as pair:
        before = bytes(pair.decode.data)
        lease = pair.open()
        pull = asyncio.create_task(pair.pull(TARGET, held))
        lease.computed(SOURCE[:4])
        await landed(pair, pull, max(0, 4 - held))
        lease.computed(SOURCE[:5])
        lease.finish(SOURCE, FIRST, PREFILL)
        pulled = await pull
        assert (pulled.first, pulled.prefill) == (FIRST, PREFILL)
        assert_moved(pair, before, held)
        assert pulled.timeline.blocks == 7 - held
        assert pulled.timeline.total_bytes == (7 - held) * LAYOUT.block_bytes
        assert pulled.timeline.bytes_before_done >= max(0, 4 - held) * LAYOUT.block_bytes
        assert 0 < pulled.timeline.prefill_done_s <= pulled.timeline.landed_s
        assert pulled.timeline.transport == transport
        assert await ended(pair) == "acked"
        assert set(SOURCE[held:]) <= set(pair.prefill.made_current) <= set(SOURCE)
        assert len(pair.prefill.made_current) == len(set(pair.prefill.made_current))
        assert sorted(pair.decode.taken_over) == sorted(TARGET[held:])
        assert pair.watch.links == [(transport, transport)] * 2
        assert ("prefill", "acked", pulled.timeline.total_bytes) in pair.watch.ends


@every
async def test_decode_may_come_before_prefill(transport: str) -> None:
    async with kv_pair(transport) as pair:
        before = bytes(pair.decode.data)
        pull = asyncio.create_task(pair.pull(TARGET))
        await asyncio.sleep(0.3)
        pair.open().finish(SOURCE, FIRST, PREFILL)
        await pull
        assert_moved(pair, before)
        assert await ended(pair) == "acked"


@every
async def test_a_finished_prefill_waits_for_decode(transport: str) -> None:
    async with kv_pair(transport) as pair:
        before = bytes(pair.decode.data)
        pair.open().finish(SOURCE, FIRST, PREFILL)
        await asyncio.sleep(0.2)
        pulled = await pair.pull(TARGET)
        assert_moved(pair, before)
        assert pulled.timeline.landed_s >= pulled.timeline.prefill_done_s >= 0.0


@every
async def test_many_transfers_share_one_stream_and_never_mix(transport: str) -> None:
    layout = layout_of(64 << 10)
    async with kv_pair(transport, layout=layout, blocks=128) as pair:

        async def one(i: int) -> None:
            source, target = range(i * 8, i * 8 + 8), range(127 - i * 8, 119 - i * 8, -1)
            lease = pair.open(f"t{i}", 128)
            lease.computed(list(source)[: i % 8])
            pull = asyncio.create_task(pair.pull(target, ticket=pair.ticket(f"t{i}", 128)))
            await asyncio.sleep(0.01 * (i % 5))
            lease.finish(source, FIRST, PREFILL)
            await pull
            assert [pair.decode.block(b) for b in target] == [pair.prefill.block(b) for b in source]

        await asyncio.gather(*(one(i) for i in range(16)))
        assert len(pair.server.streams) == 1
        assert len(pair.watch.links) == 2


@every
async def test_one_flipped_bit_is_asked_for_again(transport: str) -> None:
    sent: list[int] = []

    def once(tag: int, view: memoryview) -> memoryview:
        sent.append(tag)
        return flip_one_bit(view) if len(sent) == 4 else view

    async with kv_pair(transport, wrap=faulty(once)) as pair:
        before = bytes(pair.decode.data)
        pair.open().finish(SOURCE, FIRST, PREFILL)
        await pair.pull(TARGET)
        assert_moved(pair, before)
        assert len(sent) == 8
        assert pair.watch.checksum_failures == 1


@every
async def test_a_block_that_stays_corrupt_is_never_used(transport: str) -> None:
    def always(tag: int, view: memoryview) -> memoryview:
        return flip_one_bit(view)

    async with kv_pair(transport, wrap=faulty(always)) as pair:
        pair.open().finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(ChecksumMismatch):
            await pair.pull(TARGET)
        assert pair.decode.taken_over == []
        assert await ended(pair) == "aborted"
        assert not any(outcome == "acked" for _, outcome, _ in pair.watch.ends)


async def test_blocks_swapped_in_flight_do_not_verify() -> None:
    held: list[memoryview] = []

    def swap(tag: int, view: memoryview) -> memoryview:
        held.append(memoryview(bytes(view)))
        return held[-2] if len(held) > 1 else view

    async with kv_pair("tcp", wrap=faulty(swap)) as pair:
        pair.open().finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(ChecksumMismatch):
            await pair.pull(TARGET)


@every
async def test_prefill_fails_midway_and_decode_hears_why(transport: str) -> None:
    async with kv_pair(transport) as pair:
        lease = pair.open()
        pull = asyncio.create_task(pair.pull(TARGET))
        lease.computed(SOURCE[:3])
        await landed(pair, pull, 3)
        lease.fail("out_of_memory", "no blocks left")
        with pytest.raises(PrefillFailed, match="no blocks left") as caught:
            await pull
        assert caught.value.code == "out_of_memory"
        assert await ended(pair) == "failed"
        lease.computed(SOURCE[:4])  # after the end, and ignored
        pair.open("t2").finish(SOURCE, FIRST, PREFILL)  # the pair goes on
        await pair.pull(TARGET, ticket=pair.ticket("t2"))
        assert len(pair.watch.links) == 2


async def test_decode_that_comes_after_prefill_failed_hears_why_at_once() -> None:
    async with kv_pair("inproc") as pair:
        pair.open().fail("aborted", "client gone")
        with pytest.raises(PrefillFailed, match="client gone"):
            await asyncio.wait_for(pair.pull(TARGET), 5)
        assert await ended(pair) == "failed"


@every
async def test_decode_cancels_midway_and_no_byte_lands_afterwards(transport: str) -> None:
    layout = layout_of(256 << 10)
    async with kv_pair(transport, layout=layout) as pair:
        lease = pair.open(num_tokens=16 * 30)
        pull = asyncio.create_task(pair.pull(range(30), ticket=pair.ticket(num_tokens=16 * 30)))
        lease.computed(range(29))
        await landed(pair, pull, 1)
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        frozen = bytes(pair.decode.data)
        assert await ended(pair) == "aborted"
        assert pair.decode.data == frozen
        pair.open("t2").finish(SOURCE, FIRST, PREFILL)
        await pair.pull(TARGET, ticket=pair.ticket("t2"))


async def test_cancelling_twice_still_waits_until_nothing_can_land() -> None:
    settings = replace(FAST, drain_grace_s=0.4)
    async with kv_pair("tcp", settings, wrap=silent) as pair:
        lease = pair.open()
        pull = asyncio.create_task(pair.pull(TARGET))
        lease.computed(SOURCE[:3])
        await asyncio.sleep(0.15)
        pull.cancel()
        await asyncio.sleep(0.05)
        pull.cancel()
        await asyncio.sleep(0.05)
        assert not pull.done()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert await ended(pair) in ("aborted", "peer_lost")


@every
async def test_the_callers_deadline_ends_a_pull_that_prefill_never_finishes(transport: str) -> None:
    async with kv_pair(transport) as pair:
        pair.open("warm").finish(SOURCE, FIRST, PREFILL)
        await pair.pull(TARGET, ticket=pair.ticket("warm"))
        pair.open().computed(SOURCE[:3])
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(TransferDeadline):
            await pair.pull(TARGET, deadline_s=0.4)
        assert asyncio.get_running_loop().time() - began_s < 3.0
        assert await ended(pair) == "aborted"


async def test_decode_without_a_prefill_leg_is_refused_when_its_patience_ends() -> None:
    async with kv_pair("inproc") as pair:
        ticket = pair.ticket(expires_at_s=pair.server.wall_clock() + 0.3)
        with pytest.raises(TransferDeadline):
            await pair.pull(TARGET, ticket=ticket)


async def test_a_prefill_leg_that_comes_after_decode_gave_up_ends_at_once() -> None:
    async with kv_pair("inproc") as pair:
        with pytest.raises(TransferDeadline):
            await pair.pull(TARGET, deadline_s=0.1)
        await asyncio.sleep(0.05)
        pair.open()
        assert await ended(pair) == "aborted"


@pytest.mark.parametrize(
    ("change", "key", "error", "code"),
    [
        ({}, b"x" * 32, TicketRefused, "ticket_forged"),
        ({"expires_at_s": 1.0}, b"k" * 32, TicketRefused, "ticket_expired"),
        ({"decode_id": "decode-9"}, b"k" * 32, TicketRefused, "ticket_wrong_decode"),
        ({"prompt_digest": "cd" * 16}, b"k" * 32, TicketRefused, "ticket_wrong_prompt"),
        ({"num_tokens": 99}, b"k" * 32, TicketRefused, "ticket_wrong_prompt"),
        ({"prefill_id": "prefill-9"}, b"k" * 32, EpochMismatch, None),
        ({"prefill_epoch": "e0"}, b"k" * 32, EpochMismatch, None),
        ({"fingerprint": "00" * 16}, b"k" * 32, LayoutMismatch, None),
    ],
)
async def test_a_bad_ticket_moves_nothing(
    change: dict[str, object], key: bytes, error: type[TransferError], code: str | None
) -> None:
    sent: list[int] = []

    def watched(tag: int, view: memoryview) -> memoryview:
        sent.append(tag)
        return view

    async with kv_pair("tcp", wrap=faulty(watched)) as pair:
        before = bytes(pair.decode.data)
        lease = pair.open(deadline_s=5.0)
        lease.finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(error) as caught:
            await pair.pull(TARGET, ticket=pair.ticket(**change), key=key)
        assert code is None or caught.value.code == code
        assert pair.decode.data == before
        assert sent == []


@pytest.mark.parametrize("first_half", ["lease", "peer"])
async def test_another_prompt_is_refused_whichever_half_comes_first(first_half: str) -> None:
    async with kv_pair("inproc") as pair:
        ticket = pair.ticket(prompt_digest="cd" * 16)
        if first_half == "lease":
            pair.open(deadline_s=0.5)
        pull = asyncio.create_task(pair.pull(TARGET, ticket=ticket))
        await asyncio.sleep(0.1)
        if first_half == "peer":
            pair.open(deadline_s=0.5)
        with pytest.raises(TicketRefused, match="another prompt"):
            await pull


async def test_a_ticket_opens_its_transfer_once() -> None:
    async with kv_pair("tcp") as pair:
        pair.open().finish(SOURCE, FIRST, PREFILL)
        await pair.pull(TARGET)
        await pair.leases_gone()
        with pytest.raises(TicketRefused) as caught:
            await pair.pull(TARGET)
        assert caught.value.code == "ticket_replayed"


async def test_layouts_that_differ_never_connect() -> None:
    async with kv_pair("tcp", decode_layout=layout_of(1 << 20)) as pair:
        ticket = pair.ticket(fingerprint=pair.decode.layout.fingerprint)
        with pytest.raises(LayoutMismatch):
            await pair.pull(TARGET, ticket=ticket)
        assert pair.watch.links == []


async def test_leases_expire_when_decode_never_comes_but_not_while_prefill_computes() -> None:
    async with kv_pair("inproc", replace(FAST, lease_s=0.3)) as pair:
        computing = pair.open("slow", deadline_s=1.2)
        pair.open("idle", deadline_s=30.0).finish(SOURCE, FIRST, PREFILL)
        await asyncio.sleep(0.6)
        assert (pair.ends["slow"], pair.ends["idle"]) == ([], ["expired"])
        computing.computed(SOURCE[:2])
        await asyncio.sleep(0.8)
        assert pair.ends["slow"] == ["expired"]


async def test_heartbeats_keep_the_lease_of_a_slow_pull() -> None:
    settings = replace(FAST, lease_s=0.4, heartbeat_s=0.1)
    async with kv_pair("inproc", settings, wrap=silent) as pair:
        pair.open(deadline_s=30.0).finish(SOURCE, FIRST, PREFILL)
        pull = asyncio.create_task(pair.pull(TARGET, deadline_s=1.5))
        await asyncio.sleep(1.0)
        assert pair.ends["t1"] == []
        with pytest.raises(TransferDeadline):
            await pull


async def test_bounds_are_refusals_with_a_reason() -> None:
    async with kv_pair("inproc", replace(FAST, max_transfers=1, lease_s=0.3)) as pair:
        lease = pair.open("a", deadline_s=5)
        with pytest.raises(NoCapacity):
            pair.open("b")
        with pytest.raises(BadRequest, match="open already"):
            pair.open("a")
        pull = asyncio.create_task(pair.pull(TARGET, ticket=pair.ticket("a")))
        await asyncio.sleep(0.1)
        with pytest.raises(TransferAborted) as caught:
            await pair.pull(TARGET, ticket=pair.ticket("b"))
        assert caught.value.code == "too_many_transfers"
        lease.finish(SOURCE, FIRST, PREFILL)
        await pull


async def test_a_destination_that_does_not_fit_is_refused_before_anything_moves() -> None:
    async with kv_pair("inproc") as pair:
        for block_ids, held in ((TARGET[:6], 0), ((*TARGET[:6], TARGET[0]), 0), ((*TARGET[:6], 64), 0), (TARGET, 8)):
            with pytest.raises(ValueError, match="block"):
                await pair.pull(block_ids, held)


async def test_nobody_at_the_address_is_peer_lost_in_time() -> None:
    async with kv_pair("inproc", replace(FAST, connect_timeout_s=0.5)) as pair:
        with pytest.raises(PeerLost):
            await pair.pull(TARGET, ticket=pair.ticket(prefill_address="127.0.0.1:1"))


async def test_something_else_at_the_address_is_peer_lost_in_time() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    async with kv_pair("inproc", replace(FAST, connect_timeout_s=0.5)) as pair:
        with pytest.raises(PeerLost):
            await pair.pull(TARGET, ticket=pair.ticket(prefill_address=f"127.0.0.1:{port}"))
        with pytest.raises(TransferDeadline):
            await pair.pull(TARGET, ticket=pair.ticket("t2", prefill_address=f"127.0.0.1:{port}"), deadline_s=0.2)
    silent.close()


@every
async def test_closing_prefill_ends_pulls_and_leases(transport: str) -> None:
    async with kv_pair(transport) as pair:
        lease = pair.open()
        pull = asyncio.create_task(pair.pull(TARGET))
        lease.computed(SOURCE[:3])
        await landed(pair, pull, 3)
        await pair.server.close()
        with pytest.raises(TransferError):
            await pull
        assert await ended(pair) == "closed"
        with pytest.raises(NoCapacity):
            pair.open("t2")


@every
async def test_closing_decode_ends_pulls_and_leases(transport: str) -> None:
    async with kv_pair(transport) as pair:
        lease = pair.open()
        pull = asyncio.create_task(pair.pull(TARGET))
        lease.computed(SOURCE[:3])
        await landed(pair, pull, 3)
        await pair.client.close()
        with pytest.raises(TransferAborted):
            await pull
        assert await ended(pair) in ("aborted", "peer_lost")
        with pytest.raises(TransferAborted):
            await pair.pull(TARGET, ticket=pair.ticket("t2"))


async def test_a_store_that_fails_ends_the_transfer_on_both_sides() -> None:
    async with kv_pair("tcp") as pair:

        def broken(block_ids: object) -> None:
            raise RuntimeError("device lost")

        pair.decode.after_land = broken  # type: ignore[method-assign, assignment]
        pair.open().finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(TransferAborted, match="RuntimeError"):
            await pair.pull(TARGET)
        assert await ended(pair) == "aborted"
        pair.prefill.before_send = broken  # type: ignore[method-assign, assignment]
        pair.open("t2").finish(SOURCE, FIRST, PREFILL)
        with pytest.raises(PrefillFailed, match="RuntimeError"):
            await pair.pull(TARGET, ticket=pair.ticket("t2"))
        assert await ended(pair, "t2") == "failed"
