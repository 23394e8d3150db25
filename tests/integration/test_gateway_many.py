"""Two real gateway processes on one port: load, counters, prefixes are shared, limits divided; a dead one returns."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baton_api.fleet import Fleet, FleetWorker
from baton_wire.http_client import HttpClient, Response, StreamingResponse
from integration.test_gateway_process import launch
from support.fake_worker import FakeWorker, answer
from support.gateways import API_KEY, FAST, LONG, WORKER_KEY, bearer, chat_body
from support.tiny_tokenizer import write_tiny_tokenizer

SHARED_S = 1.0
"""By then each process has told the other twenty times, on a quiet machine."""


@dataclass
class Pair:
    process: Process
    url: str
    workers: list[FakeWorker]

    @property
    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    async def chat(self, text: str = LONG) -> Response:
        """On a connection of its own: the kernel picks the process by it."""
        client = HttpClient()
        try:
            body = json.dumps(chat_body(text)).encode()
            return await client.request(
                "POST", f"{self.url}/v1/chat/completions", body=body, headers=bearer(API_KEY), timeout_s=10
            )
        finally:
            await client.close()

    async def stream(self, client: HttpClient) -> StreamingResponse:
        return await client.stream(
            "POST",
            f"{self.url}/v1/chat/completions",
            body=json.dumps(chat_body(LONG, stream=True)).encode(),
            headers=bearer(API_KEY),
            head_timeout_s=10,
        )

    async def served(self) -> float:
        """Answers with status 200, as one scrape says it."""
        client = HttpClient()
        try:
            text = (await client.request("GET", f"{self.url}/metrics", timeout_s=10)).body.decode()
        finally:
            await client.close()
        found = re.findall(r'baton_gateway_requests_total\{code="200",reason="ok",route="/v1/chat[^}]*\} (\S+)', text)
        return sum(map(float, found))


@asynccontextmanager
async def two_processes(folder: Path, **settings: Any) -> AsyncIterator[Pair]:
    workers = [await FakeWorker("decode", WORKER_KEY, name).start() for name in ("d0", "d1")]
    fleet = folder / "fleet.json"
    fleet.write_bytes(Fleet("tiny", tuple(FleetWorker(worker.url) for worker in workers)).to_json())
    model = write_tiny_tokenizer(folder / "model")
    raw = {"fleet_file": str(fleet), "model_path": str(model), "processes": 2, "api_keys": [API_KEY], "drain_s": 10.0}
    process = await launch(folder, {**FAST, **raw, **settings})
    assert process.stdout is not None
    try:
        said = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert said["ready"] is True and said["processes"] == 2
        pair = Pair(process, f"http://127.0.0.1:{said['port']}", workers)
        while (await pair.chat()).status != 200:
            await asyncio.sleep(0.05)
        yield pair
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 15)
        for worker in workers:
            await worker.kill()


async def until_served(pair: Pair, count: float) -> None:
    async with asyncio.timeout(5):
        while await pair.served() != count:
            await asyncio.sleep(0.05)


async def test_one_scrape_has_the_sum_and_a_killed_process_comes_back_with_its_counters(tmp_path: Path) -> None:
    async with two_processes(tmp_path) as pair:
        await asyncio.sleep(SHARED_S)
        before = await pair.served()
        assert len(pair.children) == 2
        for _ in range(20):
            assert (await pair.chat()).status == 200
        await until_served(pair, before + 20)
        await asyncio.sleep(SHARED_S)
        for _ in range(10):
            assert await pair.served() == before + 20, "whichever process is asked"
        first = pair.children
        os.kill(first[0], signal.SIGKILL)
        async with asyncio.timeout(10):
            while len(pair.children) != 2 or pair.children == first:
                await asyncio.sleep(0.05)
        statuses = [(await pair.chat()).status for _ in range(20)]
        assert statuses.count(200) >= 19, "at most the one whose process had not heard of its workers yet"
        await until_served(pair, before + 20 + statuses.count(200))


async def test_what_one_process_has_in_flight_the_other_sees(tmp_path: Path) -> None:
    async with two_processes(tmp_path, min_remote_prefill_tokens=100_000) as pair:
        for worker in pair.workers:
            worker.behave = answer(*"abcdefghij", delay_s=6.0)
        client = HttpClient()
        try:
            held = await pair.stream(client)
            await asyncio.sleep(SHARED_S)
            busy = next(
                worker
                for worker in pair.workers
                if not worker.legs[-1].gone.is_set() and worker.legs[-1].body.get("stream")
            )
            idle = next(worker for worker in pair.workers if worker is not busy)
            seen = len(busy.legs)
            idle.behave = answer("x")
            for number in range(8):
                other = f"{number} " * 50  # no prefix that the busy worker might hold
                await asyncio.sleep(0.2)  # until the one before is off the other process's page too
                assert (await pair.chat(other)).status == 200
            assert len(busy.legs) <= seen + 1, "the worker that the other process keeps busy is not chosen"
            held.close()
        finally:
            await client.close()


async def test_where_one_process_sent_a_prompt_the_other_sends_the_next_one_like_it(tmp_path: Path) -> None:
    async with two_processes(tmp_path, min_remote_prefill_tokens=100_000) as pair:
        first, second = pair.workers
        first.behave = answer(*"abcdefghij", delay_s=6.0)
        client = HttpClient()
        try:
            held = await pair.stream(client)
            assert first.legs[-1].body.get("stream"), "of two idle ones the smaller id"
            await asyncio.sleep(SHARED_S)
            story = "once upon a time " * 20
            assert (await pair.chat(story)).status == 200
            held.close()
        finally:
            await client.close()
        first.behave = answer("x")
        await asyncio.sleep(SHARED_S)
        before = len(second.legs)
        for _ in range(20):
            assert (await pair.chat(story)).status == 200
        assert len(second.legs) == before + 20, "whichever process was asked"


async def test_at_sigterm_both_end_what_they_admitted(tmp_path: Path) -> None:
    async with two_processes(tmp_path) as pair:
        for worker in pair.workers:
            worker.behave = answer(*"abcdef", delay_s=0.1)
        clients = [HttpClient() for _ in range(8)]
        try:
            streams = await asyncio.gather(*(pair.stream(client) for client in clients))
            pair.process.terminate()
            await asyncio.sleep(0.1)
            for stream in streams:
                assert b"".join([data async for data in stream]).endswith(b"data: [DONE]\n\n")
            assert await asyncio.wait_for(pair.process.wait(), 10) == 0
        finally:
            for client in clients:
                await client.close()


async def test_a_sigterm_reaches_a_process_that_is_just_being_started(tmp_path: Path) -> None:
    """Killed over and over, and the whole ended at moments around the restart 0.5 s later."""
    for late_s in (0.45, 0.5, 0.52, 0.55, 0.6):
        (folder := tmp_path / str(late_s)).mkdir()
        async with two_processes(folder) as pair:
            os.kill(pair.children[0], signal.SIGKILL)
            await asyncio.sleep(late_s)
            pair.process.terminate()
            assert await asyncio.wait_for(pair.process.wait(), 15) == 0


async def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    async with two_processes(tmp_path) as pair:
        children = pair.children
        pair.process.kill()
        async with asyncio.timeout(10):
            while any(alive(pid) for pid in children):
                await asyncio.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = write_tiny_tokenizer(tmp_path / "model")
    raw = {"fleet_file": "f", "model_path": str(model), "processes": 2, "port": port}
    process = await launch(tmp_path, raw)
    _, stderr = await process.communicate()
    assert process.returncode == 2 and b"cannot be had" in stderr and b"Traceback" not in stderr
    server.close()
    await server.wait_closed()


async def test_a_process_that_stands_still_does_not_keep_the_others_from_ending(tmp_path: Path) -> None:
    async with two_processes(tmp_path, drain_s=0.2) as pair:
        assert pair.process.stderr is not None
        standing = pair.children[1]
        os.kill(standing, signal.SIGSTOP)
        pair.process.terminate()
        said = await asyncio.wait_for(pair.process.stderr.read(), 15)
        assert await pair.process.wait() == 0
        assert b"gateway process 1 did not end in 3.2 s; killed" in said
        with pytest.raises(ProcessLookupError):
            os.kill(standing, 0)
