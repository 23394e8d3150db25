"""The gRPC control of a worker: KV events with snapshot and replay, drain; and SIGTERM of a real process."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from baton_api.blocks import block_keys
from baton_wire.pb import control_pb2 as pb
from baton_wire.pb.control_pb2_grpc import WorkerStub
from baton_worker.process import Worker
from support.pair import SALT, Pair
from support.stack import Stack
from support.tiny_models import TinyModel, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TinyModel("llama", max_position=2048))


@pytest.fixture
async def pair(model: Path, tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair.of(model, "tcp", tmp_path) as pair:
        yield pair


def channel(worker: Worker) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(worker.info().control_address)


def keys_of(tokens: list[int]) -> set[bytes]:
    return set(block_keys(tokens, 16, SALT))


class Watcher:
    """What one subscriber knows of a worker's prefix cache."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.sequence: int | None = None
        self.snapshots = 0

    async def watch(self, worker: Worker, until: set[bytes]) -> None:
        """Follows until every key of `until` is known; breaks off then."""
        async with channel(worker) as open_channel:
            request = pb.WatchKvEventsRequest(after_sequence=self.sequence)
            call: Any = WorkerStub(open_channel).WatchKvEvents(request)
            async with asyncio.timeout(10):
                async for batch in call:
                    assert batch.epoch == worker.info().epoch
                    self.apply(batch)
                    if until <= self.known:
                        break
            call.cancel()

    def apply(self, batch: pb.KvEventBatch) -> None:
        if batch.snapshot:
            self.known.clear()
            self.snapshots += 1
        else:
            assert self.sequence is not None
            assert batch.sequence == self.sequence + len(batch.events), "a gap"
        for event in batch.events:
            match event.WhichOneof("event"):
                case "stored":
                    self.known.update(event.stored.keys)
                case "removed":
                    self.known.difference_update(event.removed.keys)
                case _:
                    self.known.clear()
        self.sequence = batch.sequence


async def test_a_watcher_gets_a_snapshot_then_events_and_can_resume_without_one(pair: Pair) -> None:
    first, second, third = ([start + i for i in range(64)] for start in (5, 100, 200))
    watcher = Watcher()
    await pair.aggregated(first, max_tokens=1)
    await watcher.watch(pair.decode, keys_of(first))
    assert watcher.snapshots == 1
    await pair.aggregated(second, max_tokens=1)
    await watcher.watch(pair.decode, keys_of(first) | keys_of(second))
    following = asyncio.ensure_future(watcher.watch(pair.decode, keys_of(third)))
    await asyncio.sleep(0.1)
    await pair.aggregated(third, max_tokens=1)
    await following
    assert watcher.snapshots == 1, "replay was enough"
    assert watcher.known >= keys_of(first) | keys_of(second) | keys_of(third)


async def test_pulled_blocks_are_announced_by_decode_too(pair: Pair) -> None:
    tokens = [300 + i for i in range(80)]
    await pair.disaggregated(tokens, max_tokens=2)
    watcher = Watcher()
    await watcher.watch(pair.decode, keys_of(tokens))
    await Watcher().watch(pair.prefill, keys_of(tokens))


async def test_a_draining_worker_refuses_new_requests_and_finishes_the_running_ones(pair: Pair) -> None:
    running = asyncio.ensure_future(pair.aggregated([5] * 40, max_tokens=400, ignore_eos=True))
    await asyncio.sleep(0.1)
    async with channel(pair.decode) as open_channel:
        draining = asyncio.ensure_future(WorkerStub(open_channel).Drain(pb.DrainRequest(budget_s=20)))
        while not pair.decode.info().draining:
            await asyncio.sleep(0.01)
        refused = await pair.aggregated([5] * 40, max_tokens=1)
        assert (refused.status, refused.body["error"]["code"]) == (503, "draining")
        assert pair.decode.info().draining
        assert (await draining).left == 0
    assert (await running).status == 200


async def test_what_a_drain_has_no_time_for_is_handed_over(pair: Pair) -> None:
    running = asyncio.ensure_future(pair.aggregated([5] * 40, max_tokens=1500, ignore_eos=True))
    await until_running(pair)
    async with channel(pair.decode) as open_channel:
        reply = await WorkerStub(open_channel).Drain(pb.DrainRequest(budget_s=0.1))
    assert reply.left == 1
    answer = await running
    assert (answer.status, answer.body["error"]["code"]) == (503, "draining")
    assert answer.headers["x-request-dropped-reason"] == "draining"


async def until_running(pair: Pair) -> None:
    async with asyncio.timeout(10):
        while not pair.decode.parts.engine.stats().running:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_sigterm_ends_a_worker_after_its_streams(model: Path, tmp_path: Path, name: str) -> None:
    with Stack.up(model, tmp_path) as stack:
        answers: list[tuple[int, Any]] = []
        body = {"model": "tiny", "prompt": [5 + i for i in range(300)], "max_tokens": 300, "temperature": 0}
        body["ignore_eos"] = True
        client = threading.Thread(target=lambda: answers.append(stack.post("/v1/completions", body)))
        client.start()
        time.sleep(0.3)
        child = stack.workers[name]
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(30) == 0, child.log.read_text()[-2000:]
        client.join(30)
        status, answer = answers[0]
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 300
