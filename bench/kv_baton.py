"""Baton's side of bench.kv: a prefill process and a puller in this one, over one transport and layout."""

from __future__ import annotations

import itertools
import json
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import uvloop

from baton_api.tickets import Ticket, sign_ticket
from baton_kv import pull
from baton_kv.client import KvClient
from baton_kv.settings import DecodeIdentity, KvSettings
from baton_kv.transport import make_transport
from baton_kv.transports import socket_link

from .kv_store import KEY, LAYOUTS, WrappedStore, map_memory, settings

DIGESTS = pull.block_digests


@dataclass(frozen=True, slots=True)
class Moved:
    """One transfer: wall seconds, CPU seconds of both processes."""

    wall_s: float
    cpu_s: float
    size_bytes: int

    @property
    def mb_per_s(self) -> float:
        return self.size_bytes / self.wall_s / 1e6

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (self.size_bytes / 1e9)


class BatonPair:
    """Call `close` at the end. Synchronous: its event loop runs only inside its calls and in pulls."""

    def __init__(self, transport: str, layout_name: str, source: int, max_tokens: int) -> None:
        layout = LAYOUTS[layout_name]
        blocks = max_tokens // layout.block_tokens
        self._memory = mmap.mmap(-1, blocks * layout.block_bytes)
        self._store = WrappedStore(layout, blocks, self._memory)
        self._source = WrappedStore(layout, blocks, map_memory(source))
        command = [sys.executable, "-m", "bench.kv_prefill", transport, layout_name, str(source)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[source], text=True
        )
        self._address = self._answer()["address"]
        self._numbers = itertools.count()
        self._loop = uvloop.new_event_loop()
        self._client = self._loop.run_until_complete(self._make_client(settings(transport)))
        self.negotiated = ""

    async def _make_client(self, chosen: KvSettings) -> KvClient:
        transport = make_transport(chosen.transport, chosen)
        return KvClient(self._store, DecodeIdentity("decode", "d"), transport, chosen)

    def _answer(self) -> dict[str, object]:
        assert self._child.stdout is not None
        return dict(json.loads(self._child.stdout.readline()))

    def _tell(self, command: dict[str, object]) -> float:
        """The child's CPU seconds after `command`."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        return float(str(self._answer()["cpu_s"]))

    def pull(self, num_tokens: int, *, checksums: bool = True) -> Moved:
        """One transfer of a finished prompt into wiped blocks, every byte compared afterwards."""
        layout, transfer_id = self._store.layout, f"t{next(self._numbers)}"
        blocks = list(range(num_tokens // layout.block_tokens))
        self._wipe(len(blocks))
        ticket = Ticket(
            transfer_id, "prefill", "e", str(self._address), "decode", layout.fingerprint, "ab" * 16, num_tokens,
            time.time() + 120,
        )  # fmt: skip
        work = self._client.pull(sign_ticket(ticket, KEY), ticket, blocks, 0, 60.0)
        with checksums_of(checksums):
            child_s = self._tell({"open": transfer_id, "tokens": num_tokens, "checksums": checksums})
            own_s, began_s = time.process_time(), time.perf_counter()
            pulled = self._loop.run_until_complete(work)
            wall_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
        cpu_s = own_s + self._tell({"cpu": True}) - child_s
        self.negotiated = pulled.timeline.transport
        self._check(blocks)
        return Moved(wall_s, cpu_s, len(blocks) * layout.block_bytes)

    def _wipe(self, blocks: int) -> None:
        np.frombuffer(self._memory, np.uint8, blocks * self._store.layout.block_bytes)[:] = 0xEE

    def _check(self, blocks: list[int]) -> None:
        for block in blocks:
            landed, sent = self._store.view(block), self._source.view(block)
            if not np.array_equal(np.frombuffer(landed, np.uint64), np.frombuffer(sent, np.uint64)):
                raise AssertionError(f"block {block} arrived wrong")

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=30)


@contextmanager
def checksums_of(on: bool) -> Iterator[None]:
    """Off only in the control rounds that tell what checksums cost. The prefill process is told by `_tell`."""
    for where in (pull, socket_link):
        where.block_digests = DIGESTS if on else lambda views: [0] * len(views)
    try:
        yield
    finally:
        for where in (pull, socket_link):
            where.block_digests = DIGESTS
