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
from baton_kv import checksums, pull
from baton_kv.client import KvClient
from baton_kv.settings import DecodeIdentity, KvSettings
from baton_kv.transport import make_transport
from baton_kv.transports import socket_link

from .kv_store import KEY, LAYOUTS, WrappedStore, settings


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

    def __init__(self, transport: str, layout_name: str, source: mmap.mmap, destination: mmap.mmap) -> None:
        """`source` is what the prefill process has too: landed bytes are compared with it."""
        layout = LAYOUTS[layout_name]
        blocks = len(destination) // layout.block_bytes
        self._memory = destination
        self._store = WrappedStore(layout, blocks, destination)
        self._source = WrappedStore(layout, blocks, source)
        command = [sys.executable, "-m", "bench.kv_prefill", transport, layout_name]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._address = self._answer()["address"]
        self._numbers = itertools.count()
        self._loop = uvloop.new_event_loop()
        self._client = self._loop.run_until_complete(self._make_client(settings(transport)))
        self._transport = transport

    async def _make_client(self, chosen: KvSettings) -> KvClient:
        transport = make_transport(chosen.transport, chosen)
        return KvClient(self._store, DecodeIdentity("decode", "d"), transport, chosen)

    def _answer(self) -> dict[str, object]:
        assert self._child.stdout is not None
        return dict(json.loads(self._child.stdout.readline()))

    def _tell(self, command: dict[str, object]) -> dict[str, float]:
        """The child's CPU seconds when it heard `command`, `began_s`, and after it, `cpu_s`."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        return {name: float(str(value)) for name, value in self._answer().items()}

    def pull(self, num_tokens: int, *, on: bool = True) -> Moved:
        """One transfer of a finished prompt into wiped blocks, every byte compared afterwards.

        Prefill digests its blocks when they become final, before the pull begins: CPU seconds have that, wall has not.
        """
        layout, transfer_id = self._store.layout, f"t{next(self._numbers)}"
        blocks = list(range(num_tokens // layout.block_tokens))
        self._wipe(len(blocks))
        ticket = Ticket(
            transfer_id, "prefill", "e", str(self._address), "decode", layout.fingerprint, "ab" * 16, num_tokens,
            time.time() + 120,
        )  # fmt: skip
        work = self._client.pull(sign_ticket(ticket, KEY), ticket, blocks, 0, 60.0)
        with checksums_of(on):
            child_s = self._tell({"open": transfer_id, "tokens": num_tokens, "checksums": on})["began_s"]
            own_s, began_s = time.process_time(), time.perf_counter()
            pulled = self._loop.run_until_complete(work)
            wall_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
        cpu_s = own_s + self._tell({"cpu": True})["cpu_s"] - child_s
        assert pulled.timeline.transport == self._transport, f"runs on {pulled.timeline.transport}"
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
    if not on:
        setattr(pull, "block_digests", lambda views: [0] * len(views))  # noqa: B010
        setattr(socket_link, "digest_as_it_lands", lambda pieces: sum(0 for _ in pieces))  # noqa: B010
    try:
        yield
    finally:
        setattr(pull, "block_digests", checksums.block_digests)  # noqa: B010
        setattr(socket_link, "digest_as_it_lands", checksums.digest_as_it_lands)  # noqa: B010
