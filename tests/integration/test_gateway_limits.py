"""The gateway's bounds as settings: where bodies are parsed, how many connections one address holds, what it tells."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from baton_api.crd_spec import KvSpec
from baton_api.errors import SettingError
from baton_gateway.bounds import client_limits, ensure_descriptors, server_limits
from baton_gateway.settings import GatewaySettings
from baton_wire.http_limits import ServerLimits
from baton_worker.settings import PoolSettings
from support.fake_worker import FakeWorker, fails
from support.gateways import API_KEY, LONG, WORKER_KEY, chat_body, stage, until


async def test_bodies_are_parsed_alike_on_a_thread(tmp_path: Path) -> None:
    async with stage(tmp_path, parse_inline_bytes=0) as s:
        assert (await s.chat(LONG)).status == 200
        broken = await s.post("/v1/chat/completions", b'{"model":"tiny"')
        assert (broken.status, json.loads(broken.body)["error"]["code"]) == (400, "invalid_value")
        unknown = await s.post("/v1/chat/completions", chat_body(no_such_field=1))
        assert json.loads(unknown.body)["error"]["param"] == "no_such_field"
        told = await s.post("/tokenize", {"prompt": "hello"})
        assert told.status == 200 and json.loads(told.body)["count"] > 0
        back = await s.post("/detokenize", {"tokens": json.loads(told.body)["tokens"]})
        assert json.loads(back.body) == {"prompt": "hello"}


async def test_large_bodies_wait_in_a_bounded_queue(tmp_path: Path) -> None:
    """One thread, two places: of many at once some are told to come back, none is lost."""
    async with stage(tmp_path, parse_inline_bytes=0, max_tokenising=2) as s:
        body = json.dumps(chat_body("x" * 400)).encode()
        answers = await asyncio.gather(*(s.post("/v1/chat/completions", body) for _ in range(30)))
        statuses = {answer.status for answer in answers}
        assert statuses == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["x-request-dropped-reason"] == "rejected-saturated" and "retry-after" in refused.headers


async def test_one_address_may_hold_so_many_connections(tmp_path: Path) -> None:
    async with stage(tmp_path, max_connections_per_address=1) as s:
        assert (await s.get("/health")).status == 200  # its connection stays
        port = int(s.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 429 ") and b'"code":"too_many_connections_of_address"' in answer
        other, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(
            f"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {API_KEY}\r\n\r\n".encode()
        )
        told = (await other.read()).decode()
        writer.close()
        assert 'baton_gateway_unread_total{reason="too_many_connections_of_address"} 1.0' in told
        assert "baton_gateway_connections 2.0" in told and "baton_gateway_tasks " in told


def test_every_limit_of_the_server_that_is_a_setting_reaches_it_with_the_servers_own_default() -> None:
    defaults = GatewaySettings(fleet_file="fleet.json", model_path="model")
    kept = server_limits(defaults)
    assert kept == replace(ServerLimits(), max_connections_per_address=512)
    changed = server_limits(replace(defaults, max_headers=7, header_timeout_s=0.5, idle_timeout_s=3.0))
    assert (changed.max_headers, changed.header_timeout_s, changed.idle_timeout_s) == (7, 0.5, 3.0)


def test_all_requests_and_their_retries_find_a_connection_to_one_worker_and_no_address_takes_every_slot() -> None:
    settings = GatewaySettings(fleet_file="fleet.json", model_path="model")
    assert client_limits(settings).max_connections_per_peer >= 2 * settings.max_in_flight
    assert settings.max_connections_per_address < settings.max_in_flight


def test_decode_gives_a_hung_prefill_up_while_there_is_time_to_compute_the_prompt_itself() -> None:
    settings = GatewaySettings(fleet_file="fleet.json", model_path="model")
    assert KvSpec().transfer_timeout_seconds == PoolSettings().transfer_timeout_s
    assert 2 * KvSpec().transfer_timeout_seconds <= settings.first_byte_timeout_s


async def test_a_head_that_dribbles_is_cut_off_as_the_setting_says(tmp_path: Path) -> None:
    async with stage(tmp_path, header_timeout_s=0.1) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rsplit(":", 1)[1]))
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"client_too_slow"' in answer


def test_more_connections_than_file_descriptors_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    settings = GatewaySettings(fleet_file="fleet.json", model_path="model", max_connections=4096)
    with pytest.raises(SettingError, match="needs 6656 file descriptors; the limit is 4096; use 1536 or less"):
        ensure_descriptors(settings)
    ensure_descriptors(replace(settings, max_connections=1500))
    assert asked == [(4060, 4096)]


@pytest.mark.parametrize(
    ("case", "status"),
    [("served", 200), ("too many objects", 400), ("not JSON", 400), ("beyond the context", 400), ("worker fails", 500)],
)
async def test_a_large_body_is_gone_when_its_answer_is_sent_without_the_garbage_collector(
    tmp_path: Path, case: str, status: int
) -> None:
    prompt = "x" * 2**20
    body = json.dumps(chat_body(prompt)).encode()
    if case == "too many objects":
        body = b'{"model":"tiny","messages":[' + b'{"role":"user"},' * 70_000 + b"{}]}"
    if case == "not JSON":
        body = body[:-1]
    limit = 2**19 if case == "beyond the context" else 2**22
    workers = [FakeWorker(role, WORKER_KEY, role, max_model_len=limit) for role in ("prefill", "decode")]
    if case == "worker fails":
        workers[1].behave = fails(500)
    async with stage(tmp_path, workers) as s:
        for _ in range(2):  # caches, and whatever else stays for good
            assert (await s.post("/v1/chat/completions", body)).status == status
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(4):
                await s.post("/v1/chat/completions", body)
            await until(lambda: held_bytes(workers) < len(body))
        finally:
            tracemalloc.stop()
            gc.enable()


def held_bytes(workers: list[FakeWorker]) -> int:
    """What was allocated and is still held, but for the legs that the fake workers remember."""
    for worker in workers:
        worker.legs.clear()
    return tracemalloc.get_traced_memory()[0]
