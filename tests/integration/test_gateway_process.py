"""The gateway as a process: ready line, generated key, SIGTERM, bad settings."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from baton_api.fleet import Fleet, FleetWorker
from baton_wire.http_client import HttpClient
from support.fake_worker import FakeWorker, answer
from support.gateways import FAST, LONG, SECRET, WORKER_KEY, bearer, chat_body
from support.tiny_tokenizer import write_tiny_tokenizer


async def launch(folder: Path, settings: dict[str, Any]) -> Process:
    path = folder / "gateway.json"
    path.write_text(json.dumps(settings))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "BATON_SECRET": SECRET.decode(),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton_gateway", "--settings", str(path)), stdout=PIPE, stderr=PIPE, env=environment
    )


async def test_a_process_serves_and_at_sigterm_ends_what_it_admitted(tmp_path: Path) -> None:
    workers = [await FakeWorker(role, WORKER_KEY, role).start() for role in ("prefill", "decode")]
    workers[1].behave = answer(*"abcdef", delay_s=0.1)
    fleet = tmp_path / "fleet.json"
    fleet.write_bytes(Fleet("tiny", tuple(FleetWorker(worker.url) for worker in workers)).to_json())
    model = write_tiny_tokenizer(tmp_path / "model")
    settings = {"fleet_file": str(fleet), "model_path": str(model), "drain_s": 10.0, "drain_delay_s": 0.3}
    process = await launch(tmp_path, {**FAST, **settings})
    assert process.stdout is not None
    client = HttpClient()
    try:
        key = json.loads(await process.stdout.readline())["api_key"]
        said = json.loads(await process.stdout.readline())
        assert said["ready"] is True
        url = f"http://127.0.0.1:{said['port']}"
        assert (await client.request("GET", f"{url}/v1/models", timeout_s=5)).status == 401
        stream = await client.stream(
            "POST",
            f"{url}/v1/chat/completions",
            body=json.dumps(chat_body(LONG, stream=True)).encode(),
            headers=bearer(key),
            head_timeout_s=10,
        )
        process.send_signal(signal.SIGTERM)
        while (await client.request("GET", f"{url}/ready", timeout_s=5)).status != 503:
            await asyncio.sleep(0.01)
        late = await client.request(
            "POST",
            f"{url}/v1/chat/completions",
            body=json.dumps(chat_body(LONG)).encode(),
            headers=bearer(key),
            timeout_s=10,
        )
        assert late.status == 200 and late.headers["connection"] == "close", "not ready, and yet it serves"
        await asyncio.sleep(0.1)
        got = b"".join([data async for data in stream])
        assert got.endswith(b"data: [DONE]\n\n") and b'"content":"f"' in got
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        await client.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()
        for worker in workers:
            await worker.kill()


async def test_a_bad_setting_stops_the_start_and_is_named(tmp_path: Path) -> None:
    for settings, message in (
        ({"fleet_file": "f", "model_path": str(tmp_path)}, b"tokenizer.json"),
        ({"fleet_file": "f"}, b"model_path: null is missing"),
    ):
        process = await launch(tmp_path, settings)
        _, stderr = await process.communicate()
        assert process.returncode == 2 and message in stderr and b"Traceback" not in stderr
