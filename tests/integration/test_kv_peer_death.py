"""A prefill or decode process that is killed or stopped: the other side ends within its bounds, nothing lands late."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from baton_api.errors import PeerLost, TransferDeadline, TransferError
from baton_api.tickets import Ticket, sign_ticket
from baton_kv.client import KvClient
from baton_kv.settings import DecodeIdentity
from baton_kv.transport import make_transport
from support.kv_pair import BLOCK_TOKENS, FAST, KEY, BytesStore, kv_pair, layout_of

needs_ucx = pytest.mark.skipif(
    importlib.util.find_spec("ucxx") is None, reason="ucxx IS NOT INSTALLED: the ucx transports were NOT tested"
)
between_processes = pytest.mark.parametrize(
    "transport", ["tcp", "cma", pytest.param("ucx/tcp", marks=needs_ucx), pytest.param("ucx/shm", marks=needs_ucx)]
)
BLOCK_BYTES, BLOCKS = 512 << 10, 48
ROOT = Path(__file__).resolve().parents[2]


class Prefill:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, epoch: str) -> None:
        self.process, self.port, self.epoch = process, port, epoch

    async def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        await self.process.stdin.drain()

    async def heard(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 10)).decode().strip()


@asynccontextmanager
async def prefill_process(transport: str, epoch: str = "e1") -> AsyncIterator[Prefill]:
    path = os.pathsep.join([str(ROOT / "tests"), *(p for p in sys.path if p)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.kv_prefill_process", transport, str(BLOCK_BYTES), epoch),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        yield Prefill(process, port, epoch)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipes are closed after the loop


def ticket_for(prefill: Prefill, transfer_id: str) -> Ticket:
    return Ticket(
        transfer_id=transfer_id,
        prefill_id="prefill-0",
        prefill_epoch=prefill.epoch,
        prefill_address=f"127.0.0.1:{prefill.port}",
        decode_id="decode-0",
        fingerprint=layout_of(BLOCK_BYTES).fingerprint,
        prompt_digest="ab" * 16,
        num_tokens=BLOCKS * BLOCK_TOKENS,
        expires_at_s=time.time() + 30,
    )


class Decode:
    def __init__(self, transport: str) -> None:
        self.store = BytesStore(BLOCKS, layout_of(BLOCK_BYTES), 2)
        settings = replace(FAST, transport=transport)
        self.client = KvClient(
            self.store, DecodeIdentity("decode-0", "d1"), make_transport(transport, settings), settings
        )

    def pull(self, prefill: Prefill, transfer_id: str, deadline_s: float = 10.0) -> asyncio.Task[object]:
        ticket = ticket_for(prefill, transfer_id)
        return asyncio.create_task(
            self.client.pull(sign_ticket(ticket, KEY), ticket, range(BLOCKS), 0, deadline_s)  # type: ignore[arg-type]
        )

    async def landed(self, pull: asyncio.Task[object], blocks: int) -> None:
        """Waits until that many blocks are verified. A pull that failed meanwhile raises its own error."""
        async with asyncio.timeout(15):
            while len(self.store.taken_over) < blocks:
                if pull.done():
                    await pull
                await asyncio.sleep(0.0005)

    def is_right(self) -> bool:
        return self.store.data == BytesStore(64, layout_of(BLOCK_BYTES), 1).data[: BLOCKS * BLOCK_BYTES]


@between_processes
async def test_blocks_cross_processes_and_equal_their_source(transport: str) -> None:
    decode = Decode(transport)
    async with prefill_process(transport) as prefill:
        await prefill.tell(f"open a {BLOCKS}")
        pull = decode.pull(prefill, "a")
        await decode.landed(pull, BLOCKS - 1)
        await prefill.tell("finish a")
        await pull
        assert decode.is_right()
        assert await prefill.heard() == "a acked"
        await decode.client.close()


@between_processes
async def test_a_killed_prefill_is_noticed_at_once_and_its_successor_is_used(transport: str) -> None:
    decode = Decode(transport)
    async with prefill_process(transport) as prefill:
        await prefill.tell(f"open a {BLOCKS}")
        pull = decode.pull(prefill, "a")
        await decode.landed(pull, 1)
        prefill.process.kill()
        killed_s = time.monotonic()
        with pytest.raises(PeerLost):
            await pull
        assert time.monotonic() - killed_s < 2.0
        frozen = bytes(decode.store.data)
        await asyncio.sleep(0.1)
        assert decode.store.data == frozen
    async with prefill_process(transport, "e2") as successor:
        decode.store.taken_over.clear()
        await successor.tell(f"open b {BLOCKS}")
        pull = decode.pull(successor, "b")
        await decode.landed(pull, BLOCKS - 1)
        await successor.tell("finish b")
        await pull
        assert decode.is_right()
        decode.client.check_invariants()
        await decode.client.close()


@between_processes
@pytest.mark.parametrize(("deadline_s", "error"), [(0.3, TransferDeadline), (10.0, PeerLost)])
async def test_a_stopped_prefill_costs_no_more_than_the_deadline_or_the_heartbeats(
    transport: str, deadline_s: float, error: type[TransferError]
) -> None:
    decode = Decode(transport)
    async with prefill_process(transport) as prefill:
        await prefill.tell(f"open warm {BLOCKS}")
        warm = decode.pull(prefill, "warm")
        await decode.landed(warm, BLOCKS - 1)
        await prefill.tell("finish warm")
        await warm
        await prefill.tell(f"open a {BLOCKS}")
        decode.store.taken_over.clear()
        stopped_s = time.monotonic()
        pull = decode.pull(prefill, "a", deadline_s)
        await decode.landed(pull, 1)
        prefill.process.send_signal(signal.SIGSTOP)
        with pytest.raises(error):
            await pull
        # 3 missed heartbeats of 0.4 s; or the deadline and the drain's grace of 1.5 s
        assert time.monotonic() - stopped_s < 4.0
        decode.store.data[:] = b"\xa5" * len(decode.store.data)
        prefill.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert decode.store.data == b"\xa5" * len(decode.store.data), "bytes landed after the transfer was over"
        assert sorted([await prefill.heard(), await prefill.heard()])[0] in ("a peer_lost", "a aborted")
        decode.client.check_invariants()
        await decode.client.close()


@between_processes
async def test_a_killed_or_stopped_decode_frees_its_leases(transport: str) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):
        async with kv_pair(transport, layout=layout_of(BLOCK_BYTES)) as pair:
            lease = pair.open(num_tokens=BLOCKS * BLOCK_TOKENS, deadline_s=20)
            lease.computed(range(BLOCKS - 1))
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _DECODE, transport, sign_ticket(pair.ticket(num_tokens=768), KEY)),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *(p for p in sys.path if p)])},
                stdout=asyncio.subprocess.PIPE,
            )
            assert child.stdout is not None
            assert await asyncio.wait_for(child.stdout.readline(), 20) == b"landed\n"
            child.send_signal(number)
            began_s = time.monotonic()
            await pair.leases_gone(5.0)
            assert time.monotonic() - began_s < 4.0
            await asyncio.sleep(0.01)
            assert pair.ends["t1"] == ["peer_lost"]
            if number == signal.SIGSTOP:
                child.kill()
            await child.wait()
            child._transport.close()  # type: ignore[attr-defined]


_DECODE = """
import asyncio, sys
from support.kv_pair import *
from baton_api.tickets import verify_ticket

async def main(transport, wire):
    store = BytesStore(48, layout_of(512 << 10), 2)
    settings = replace(FAST, transport=transport)
    client = KvClient(store, DecodeIdentity("decode-0", "d1"), make_transport(transport, settings), settings)
    pull = asyncio.create_task(client.pull(wire, verify_ticket(wire, KEY, 0), range(48), 0, 20))
    while len(store.taken_over) < 4:
        await asyncio.sleep(0.001)
    print("landed", flush=True)
    await pull

asyncio.run(main(*sys.argv[1:]))
"""
