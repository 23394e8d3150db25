"""A KvServer and a KvClient joined by a real gRPC server on a free port, over any transport, with byte-array stores."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from baton_api.layout import KvLayout
from baton_api.sampling import SampledToken
from baton_api.tickets import Ticket, sign_ticket
from baton_api.timing import PrefillTimeline, PullTimeline
from baton_kv.client import KvClient, Pulled
from baton_kv.server import KvServer, SendLease
from baton_kv.settings import DecodeIdentity, KvSettings, PrefillIdentity
from baton_kv.transport import Transport, make_transport
from baton_wire.pb import control_pb2_grpc as rpc

KEY = b"k" * 32
BLOCK_TOKENS = 16
FIRST = (SampledToken(7, -0.5, ((7, -0.5), (9, -1.25))), SampledToken(8))
PREFILL = PrefillTimeline(queue_s=0.25, compute_s=1.5, chunks=3, cached_tokens=32)
LAYOUT = KvLayout("m", 2, 2, 8, BLOCK_TOKENS, "float32", "kv")


def layout_of(block_bytes: int) -> KvLayout:
    """A layout whose blocks have `block_bytes` bytes, a multiple of 64 Ki or of 128."""
    head_dim = block_bytes // (2 * 1 * 1 * 4 * BLOCK_TOKENS)
    layout = KvLayout("m", 1, 1, head_dim, BLOCK_TOKENS, "float32", "kv")
    assert layout.block_bytes == block_bytes
    return layout


class BytesStore:
    """Blocks side by side in one byte array; remembers what it was asked to send and take over."""

    def __init__(self, num_blocks: int, layout: KvLayout = LAYOUT, seed: int = 0) -> None:
        self.layout, self.num_blocks = layout, num_blocks
        self.data = bytearray(random.Random(seed).randbytes(num_blocks * layout.block_bytes))
        self.made_current: list[int] = []
        self.taken_over: list[int] = []

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        return memoryview(self.data)[block_id * size : (block_id + 1) * size]

    def before_send(self, block_ids: Sequence[int]) -> None:
        self.made_current.extend(block_ids)

    def after_land(self, block_ids: Sequence[int]) -> None:
        self.taken_over.extend(block_ids)

    def block(self, block_id: int) -> bytes:
        return bytes(self.view(block_id))


@dataclass
class Watch:
    """A KvObserver that remembers."""

    ends: list[tuple[str, str, int]] = field(default_factory=list)
    timelines: list[PullTimeline] = field(default_factory=list)
    checksum_failures: int = 0
    leases: list[int] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)

    def on_transfer_end(self, side: str, outcome: str, moved_bytes: int, timeline: PullTimeline | None) -> None:
        self.ends.append((side, outcome, moved_bytes))
        if timeline is not None:
            self.timelines.append(timeline)

    def on_checksum_failures(self, blocks: int) -> None:
        self.checksum_failures += blocks

    def on_leases(self, held: int) -> None:
        self.leases.append(held)

    def on_link(self, asked: str, negotiated: str) -> None:
        self.links.append((asked, negotiated))


FAST = KvSettings(
    transport="inproc",
    transfer_timeout_s=20.0,
    connect_timeout_s=10.0,
    heartbeat_s=0.4,
    lease_s=2.0,
    drain_grace_s=1.5,
    seal_bytes=64 << 10,
    inline_bytes=16 << 10,
    window_blocks=8,
)


@dataclass
class Pair:
    server: KvServer
    client: KvClient
    prefill: BytesStore
    decode: BytesStore
    watch: Watch
    address: str
    ends: dict[str, list[str]] = field(default_factory=dict)

    def ticket(self, transfer_id: str = "t1", num_tokens: int = 100, **change: Any) -> Ticket:
        """A good ticket, but for `change`."""
        ticket = Ticket(
            transfer_id=transfer_id,
            prefill_id=self.server.identity.worker_id,
            prefill_epoch=self.server.identity.epoch,
            prefill_address=self.address,
            decode_id="decode-0",
            fingerprint=self.prefill.layout.fingerprint,
            prompt_digest="ab" * 16,
            num_tokens=num_tokens,
            expires_at_s=self.server.wall_clock() + 30,
        )
        return replace(ticket, **change)

    def open(
        self, transfer_id: str = "t1", num_tokens: int = 100, deadline_s: float = 10.0, digest: str = "ab" * 16
    ) -> SendLease:
        ends = self.ends.setdefault(transfer_id, [])
        return self.server.open(transfer_id, digest, num_tokens, deadline_s, ends.append)

    async def pull(
        self,
        block_ids: Sequence[int],
        held_blocks: int = 0,
        deadline_s: float = 10.0,
        *,
        ticket: Ticket | None = None,
        key: bytes = KEY,
    ) -> Pulled:
        ticket = ticket or self.ticket()
        return await self.client.pull(sign_ticket(ticket, key), ticket, block_ids, held_blocks, deadline_s)

    async def leases_gone(self, within_s: float = 5.0) -> None:
        """Raises TimeoutError when a lease is left over."""
        async with asyncio.timeout(within_s):
            while self.server.leases:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def kv_pair(
    transport: str = "inproc",
    settings: KvSettings = FAST,
    *,
    layout: KvLayout = LAYOUT,
    decode_layout: KvLayout | None = None,
    blocks: int = 64,
    wrap: Callable[[Transport], Transport] = lambda inner: inner,
    server_options: dict[str, Any] | None = None,
):
    """A connected pair; at the end every invariant is checked and every lease must be gone."""
    settings = replace(settings, transport=transport)
    prefill, decode = BytesStore(blocks, layout, 1), BytesStore(blocks, decode_layout or layout, 2)
    watch = Watch()
    server = KvServer(
        prefill,
        PrefillIdentity("prefill-0", "e1"),
        wrap(make_transport(transport, settings)),
        KEY,
        settings,
        observer=watch,
        **(server_options or {}),
    )
    grpc_server = grpc.aio.server()
    rpc.add_KvTransferServicer_to_server(server.servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await grpc_server.start()
    client = KvClient(
        decode, DecodeIdentity("decode-0", "d1"), make_transport(transport, settings), settings, observer=watch
    )
    pair = Pair(server, client, prefill, decode, watch, f"127.0.0.1:{port}")
    try:
        yield pair
        await pair.leases_gone()
        server.check_invariants()
        client.check_invariants()
    finally:
        await client.close()
        await server.close()
        await grpc_server.stop(None)
