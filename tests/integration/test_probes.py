"""What a kubelet's probes hear of a worker: ready, draining, stuck in a step, engine dead."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from baton_api.blocks import derive_key
from baton_api.sampling import SampledToken
from baton_api.worker import Role
from baton_decode.leg import DecodeLeg
from baton_engine.batch import Slice
from baton_engine.engine import NativeEngine
from baton_engine.nouns import GenerateRequest, Leg
from baton_wire.http_client import HttpClient
from baton_worker.parts import load_parts
from baton_worker.process import Worker
from support.engine_bench import GREEDY, SALT
from support.gateways import until
from support.pair import SECRET, worker_settings
from support.tiny_models import TinyModel, make_model
from support.toy_runner import ToyRunner

OK, DOWN = 200, 503


class Held(ToyRunner):
    """A device that does not come back from a step until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        assert self.gate.wait(20)
        return super().run(slices)


class Clock:
    """Breaks when told to, under whoever reads it."""

    broken = False

    def __call__(self) -> float:
        if self.broken and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("no clock")
        return time.monotonic()


@asynccontextmanager
async def worker_over(
    folder: Path, runner: ToyRunner, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[Worker, Callable[[str], asyncio.Task[int]]]]:
    """A decode worker on `runner`, and how to ask it."""
    model = make_model(folder / "model", TinyModel("llama"))
    parts = load_parts(worker_settings("d0", model, "tcp", folder, stuck_s=1.0), SECRET)
    await parts.engine.close()
    parts = replace(parts, engine=NativeEngine(runner, clock=clock))
    worker = Worker(Role.DECODE, parts, DecodeLeg(parts), derive_key(SECRET, "worker-http").hex())
    client = HttpClient()
    await worker.start()
    assert worker.http is not None
    url = f"http://127.0.0.1:{worker.http.port}"

    async def status(path: str) -> int:
        return (await client.request("GET", url + path, timeout_s=5)).status

    try:
        yield worker, lambda path: asyncio.create_task(status(path))
    finally:
        await client.close()
        await worker.close()


def begin(worker: Worker) -> None:
    request = GenerateRequest("r", [7, 3, 9, 4], GREEDY, SALT, Leg.AGGREGATED)
    worker.parts.engine.submit(request, lambda event: None)


async def test_a_step_that_never_ends_fails_liveness_and_its_end_mends_it(tmp_path: Path) -> None:
    runner = Held()
    async with worker_over(tmp_path, runner) as (worker, ask):
        assert (await ask("/health"), await ask("/ready"), worker.info().ready) == (OK, OK, True)
        begin(worker)
        await until(lambda: worker.parts.engine.step_age_s() > 0)
        assert await ask("/health") == OK, "a long step is no stuck one"
        await until(lambda: worker.trouble() is not None)
        assert (await ask("/health"), await ask("/ready"), worker.info().ready) == (DOWN, DOWN, False)
        assert worker.trouble() == "the engine has been in one step for more than 1 s"
        runner.gate.set()
        await until(lambda: worker.parts.engine.step_age_s() == 0)
        assert (await ask("/health"), await ask("/ready"), worker.info().ready) == (OK, OK, True)


async def test_an_engine_that_died_fails_liveness_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with worker_over(tmp_path, ToyRunner(), clock) as (worker, ask):
        clock.broken = True
        begin(worker)
        await until(lambda: not worker.parts.engine.running)
        assert (await ask("/health"), await ask("/ready"), worker.info().ready) == (DOWN, DOWN, False)
        assert "engine has stopped" in str(worker.trouble())
    assert "no clock" in caplog.text


async def test_a_draining_worker_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with worker_over(tmp_path, ToyRunner()) as (worker, ask):
        worker.draining = True
        assert (await ask("/health"), await ask("/ready"), worker.info().ready) == (OK, DOWN, False)


STUCK_AT_THE_END = """
import asyncio, sys
from baton_api.worker import Role
from baton_decode.leg import DecodeLeg
from baton_worker.process import run

class Stuck(DecodeLeg):
    async def close(self):
        await asyncio.Event().wait()

sys.exit(run(Role.DECODE, Stuck, sys.argv[1:]))
"""


@pytest.mark.timeout(120)
def test_a_process_that_cannot_close_ends_within_its_grace_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    model = make_model(tmp_path / "model", TinyModel("llama"))
    raw = {
        "worker_id": "d0", "model_path": str(model), "secret_file": str(tmp_path / "secret"), "drain_s": 1.0,
        "kv": {"transport": "tcp", "num_blocks": 64}, "engine": {"threads": 1},
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(raw))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-c", STUCK_AT_THE_END, "--settings", str(tmp_path / "settings.json")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while not json.loads(process.stdout.readline()).get("ready"):
            pass
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and b"not closed in 10 s" in errors
