"""What the gateway does when workers die, refuse, hang or lie, and when clients leave."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from baton_api.timing import from_server_timing
from baton_gateway.relay import Answer
from baton_wire.http_server import Exchange
from support.fake_worker import (
    FakeWorker,
    Leg,
    answer,
    begin_stream,
    dies_at_once,
    dies_midstream,
    fails,
    hangs,
    says,
    says_draining,
    streams_then_hangs,
)
from support.gateways import API_KEY, LONG, WORKER_KEY, Stage, chat_body, pair, stage, until

from .test_gateway import data_events


def trio(role: str) -> list[FakeWorker]:
    """A pair and one more of `role`."""
    return [*pair(), FakeWorker(role, WORKER_KEY, f"{role[0]}1")]


def error_code(body: bytes) -> Any:
    return json.loads(body)["error"]["code"]


async def connect_to(s: Stage, worker: FakeWorker) -> None:
    """A connection is open, so that a leg arrives before another one, to a port where nobody listens, has failed."""
    headers = [("authorization", f"Bearer {WORKER_KEY}")]
    await s.gateway.parts.client.request("GET", f"{worker.url}/baton/v1/worker", headers=headers, timeout_s=5)


async def read_broken(stream: Any) -> tuple[bytes, bool]:
    """What came, and whether the answer was broken off."""
    got = b""
    try:
        async for data in stream:
            got += data
    except Exception:
        return got, True
    return got, False


async def test_a_decode_worker_that_dies_midstream_ends_it_with_an_error_event_and_without_done(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = dies_midstream("one", "two")
        got, broken = await read_broken(await s.open_chat())
        events = data_events(got)
        assert broken and len(events) == 3 and b"[DONE]" not in got
        assert json.loads(events[1])["choices"][0]["delta"]["content"] == "two"
        assert json.loads(events[2])["error"].keys() == {"message", "type", "param", "code"}
        assert s.metric(
            "baton_gateway_requests_total", route="/v1/chat/completions", code="502", reason="connection_lost"
        )


async def test_the_openai_client_raises_when_a_stream_breaks_off(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key=API_KEY) as client:
        whole = await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": LONG}])
        assert whole.choices[0].message.content == "Hello world"
        s.worker("d0").behave = dies_midstream("one")
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="connection was lost"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ((b'data: {"choices":[1]}\n\n',), "stream_truncated"),
        ((b"data: x\n\n", b'data: {"error":{"message":"m","type":"t","param":null,"code":"theirs"}}\n\n'), "theirs"),
    ],
)
async def test_a_stream_that_ends_without_done_never_looks_complete(
    tmp_path: Path, events: tuple[bytes, ...], code: str
) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = says(*events)
        got, _ = await read_broken(await s.open_chat())
        assert b"[DONE]" not in got and error_code(data_events(got)[-1]) == code


@pytest.mark.parametrize("broken", [dies_at_once(), fails(500), fails(503), fails(429)])
async def test_a_decode_leg_that_fails_before_its_head_goes_to_another_worker_with_a_new_transfer(
    tmp_path: Path, broken: Any
) -> None:
    async with stage(tmp_path, trio("decode")) as s:
        s.worker("d0").behave = broken
        got = await s.chat()
        assert got.status == 200
        assert "retry" in [span.name for span in from_server_timing(got.headers["server-timing"])]
        first, second = s.worker("d0").legs[0], s.worker("d1").legs[0]
        assert first.hand_off.transfer_id != second.hand_off.transfer_id
        assert first.body["seed"] == second.body["seed"]
        sent_to = s.worker("p0").legs  # the first may have been given up before it was on its way
        await until(lambda: second.hand_off.transfer_id in [leg.hand_off.transfer_id for leg in sent_to])
        assert s.metric("baton_gateway_requests_total", route="/v1/chat/completions", code="200", reason="ok") == 1


async def test_a_second_failure_is_the_answer(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode")) as s:
        s.worker("d0").behave = s.worker("d1").behave = dies_at_once()
        got = await s.chat()
        assert (got.status, error_code(got.body)) == (502, "connection_lost")
        transfers = {leg.hand_off.transfer_id for worker in s.workers[1:] for leg in worker.legs}
        assert len(transfers) == 2


async def test_without_budget_nothing_is_retried(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode"), retry_burst=0) as s:
        s.worker("d0").behave = fails(500, "theirs")
        got = await s.chat()
        assert (got.status, error_code(got.body)) == (500, "theirs")
        assert s.worker("d1").legs == []


async def test_a_worker_that_failed_is_avoided_for_a_while(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode"), suspend_s=30) as s:
        s.worker("d0").behave = fails(500)
        for _ in range(3):
            assert (await s.chat("hi")).status == 200
        assert len(s.worker("d0").legs) == 1 and len(s.worker("d1").legs) == 3


async def test_a_decode_worker_where_nobody_listens_is_passed_over(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode"), heartbeat_interval_s=30.0) as s:
        await s.worker("d0").kill()
        start_s = time.monotonic()
        assert (await s.chat()).status == 200
        assert time.monotonic() - start_s < 1
        assert s.metric("baton_gateway_retries_total", leg="decode", reason="connect_failed") + s.metric(
            "baton_gateway_retries_total", leg="decode", reason="connection_lost"
        )


@pytest.mark.parametrize("broken", [fails(503), fails(429), None])
async def test_a_prefill_worker_that_takes_nothing_on_is_replaced(tmp_path: Path, broken: Any) -> None:
    async with stage(tmp_path, trio("prefill"), heartbeat_interval_s=30.0) as s:
        s.worker("d0").behave = answer("x", delay_s=0.2)
        if broken is None:
            await connect_to(s, s.worker("d0"))
            await s.worker("p0").kill()
        else:
            s.worker("p0").behave = broken
        assert (await s.chat()).status == 200
        first, second = s.worker("d0").legs
        assert first.gone.is_set() and first.hand_off.transfer_id != second.hand_off.transfer_id
        assert s.worker("p1").legs[0].hand_off.transfer_id == second.hand_off.transfer_id


async def test_without_another_prefill_worker_decode_prefills_for_itself(tmp_path: Path) -> None:
    async with stage(tmp_path, heartbeat_interval_s=30.0) as s:
        s.worker("d0").behave = answer("x", delay_s=0.2)
        await s.worker("p0").kill()
        assert (await s.chat()).status == 200
        assert s.worker("d0").legs[-1].hand_off.ticket is None
        assert s.metric("baton_gateway_routes_total", reason="no_prefill_worker") == 1


async def test_with_the_policy_fail_a_dead_prefill_worker_fails_the_request(tmp_path: Path) -> None:
    async with stage(tmp_path, heartbeat_interval_s=30.0, on_prefill_failure="fail") as s:
        s.worker("d0").behave = hangs()
        await connect_to(s, s.worker("d0"))
        await s.worker("p0").kill()
        got = await s.chat()
        assert got.status == 502
        assert s.worker("d0").legs[0].hand_off.on_prefill_failure == "fail"
        await asyncio.wait_for(s.worker("d0").legs[0].gone.wait(), 0.5)


@pytest.mark.parametrize("broken", [fails(500), dies_at_once()])
async def test_a_prefill_leg_that_fails_later_is_left_to_decode(tmp_path: Path, broken: Any) -> None:
    """Its failure reaches decode through the KV session; a second try here would race the recomputation."""
    async with stage(tmp_path, trio("prefill")) as s:
        s.worker("p0").behave = broken
        s.worker("d0").behave = answer("x", delay_s=0.1)
        assert (await s.chat()).status == 200
        assert len(s.worker("d0").legs) == 1 and s.worker("p1").legs == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_gone_before_the_first_token_aborts_both_legs(tmp_path: Path, streamed: bool) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = s.worker("p0").behave = hangs()
        asking = asyncio.create_task(s.chat(stream=streamed))
        await until(lambda: len(s.worker("d0").legs) + len(s.worker("p0").legs) == 2)
        await leave(s, asking)
        for worker in s.workers:
            await asyncio.wait_for(worker.legs[0].gone.wait(), 0.5)
        await until(lambda: s.metric("baton_gateway_client_aborts_total") == 1)


async def test_prefill_computes_for_nobody_while_another_decode_worker_is_waited_for(tmp_path: Path) -> None:
    async with stage(tmp_path, queue_ttl_s=5.0) as s:
        s.worker("p0").behave, s.worker("d0").behave = hangs(), says_draining()
        asking = asyncio.create_task(s.chat())
        await until(lambda: len(s.worker("p0").legs) == 1)
        await asyncio.wait_for(s.worker("p0").legs[0].gone.wait(), 2.0)
        assert not asking.done()
        asking.cancel()


async def test_a_client_gone_midstream_aborts_both_legs(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("p0").behave, s.worker("d0").behave = hangs(), streams_then_hangs("one")
        stream = await s.open_chat()
        assert b"one" in await anext(stream)
        stream.close()
        for worker in s.workers:
            await asyncio.wait_for(worker.legs[0].gone.wait(), 0.5)


async def test_a_client_gone_while_it_queues_gives_its_place_away(tmp_path: Path) -> None:
    async with stage(tmp_path, max_in_flight=1, queue_ttl_s=10.0) as s:
        s.worker("d0").behave = answer("x", delay_s=0.3)
        first = asyncio.create_task(s.chat("hi"))
        await until(lambda: s.gateway.parts.admission.in_flight == 1)
        second = asyncio.create_task(s.chat("hi"))
        await asyncio.sleep(0.05)
        await leave(s, second)
        assert (await first).status == 200
        assert (await s.chat("hi")).status == 200
        assert len(s.worker("d0").legs) == 2


async def leave(s: Stage, asking: asyncio.Task[Any]) -> None:
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_first_token_that_does_not_come_is_a_504_in_time(tmp_path: Path) -> None:
    async with stage(tmp_path, first_byte_timeout_s=0.2) as s:
        s.worker("d0").behave = hangs()
        got = await s.chat(stream=True)
        assert (got.status, error_code(got.body)) == (504, "first_byte_timeout")
        assert got.headers["x-should-retry"] == "false"
        await asyncio.wait_for(s.worker("d0").legs[0].gone.wait(), 0.5)


@pytest.mark.parametrize(("prefill", "late"), [(hangs(), "p0"), (answer("x"), "d0")])
async def test_a_first_token_that_does_not_come_is_held_against_the_worker_that_is_late(
    tmp_path: Path, prefill: Any, late: str
) -> None:
    async with stage(tmp_path, first_byte_timeout_s=0.2, suspend_s=60.0) as s:
        s.worker("p0").behave, s.worker("d0").behave = prefill, hangs()
        assert (await s.chat(stream=True)).status == 504
        suspended = [view.info.worker_id for view in s.gateway.parts.registry.routable() if view.suspended_until_s]
        assert suspended == [late]


async def test_a_whole_answer_may_take_longer_than_a_first_token_but_not_than_the_request(tmp_path: Path) -> None:
    async with stage(tmp_path, first_byte_timeout_s=0.1, request_timeout_s=0.8) as s:
        s.worker("d0").behave = hangs()
        asking = asyncio.create_task(s.chat())
        await asyncio.sleep(0.4)
        assert not asking.done()
        got = await asking
        assert got.status == 504


async def test_the_deadline_of_a_request_also_ends_a_stream(tmp_path: Path) -> None:
    async with stage(tmp_path, request_timeout_s=0.3) as s:
        s.worker("d0").behave = streams_then_hangs("one")
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "deadline_exceeded"
        s.worker("d0").behave = hangs()
        assert (await s.chat()).status == 504


async def test_a_stuck_worker_is_lost_after_three_heartbeats_and_its_requests_go_elsewhere(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode")) as s:
        s.worker("d0").behave = hangs()
        asking = asyncio.create_task(s.chat())
        await until(lambda: len(s.worker("d0").legs) == 1)
        s.worker("d0").heartbeats_hang = True
        assert (await asking).status == 200 and len(s.worker("d1").legs) == 1
        await s.routable(2)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_that_is_going_costs_no_retry_however_many_ask_it(tmp_path: Path, role: str) -> None:
    async with stage(tmp_path, trio(role), heartbeat_interval_s=30.0, retry_burst=0, retry_ratio=0.0) as s:
        s.worker(f"{role[0]}0").behave = says_draining()
        if role == "prefill":
            s.worker("d0").behave = answer("x", delay_s=0.3)
        answers = await asyncio.gather(*(s.chat(f"{number} {LONG}") for number in range(12)))
        assert [got.status for got in answers] == [200] * 12
        assert s.metric("baton_gateway_retries_total", leg=role, reason="draining") > 0
        await s.routable(2)


async def test_looks_at_a_stuck_worker_overlap_each_on_a_connection_of_its_own(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode"), heartbeat_timeout_s=0.3, heartbeat_misses=3) as s:
        before = s.worker("d0").heartbeats
        s.worker("d0").heartbeats_hang = True
        await s.routable(2)
        assert s.worker("d0").heartbeats - before >= 3


async def test_heartbeats_go_on_while_requests_have_every_connection_to_their_worker(tmp_path: Path) -> None:
    """A worker that answers is not lost because we have no connection free."""
    async with stage(tmp_path, max_in_flight=8) as s:
        d0, client = s.worker("d0"), s.gateway.parts.client
        d0.behave = hangs()
        asked = [asyncio.create_task(s.chat(LONG)) for _ in range(8)]
        await until(lambda: len(d0.legs) == 8)
        body, headers = json.dumps({}).encode(), [("authorization", f"Bearer {WORKER_KEY}")]
        others = [client.relay("POST", f"{d0.url}/x", body=body, headers=headers, sink=Answer()) for _ in range(12)]
        await until(lambda: len(d0.legs) == 16)
        begun = d0.heartbeats
        await until(lambda: d0.heartbeats > begun + 10)
        assert not any(task.done() for task in asked) and len(s.gateway.parts.registry.routable()) == 2
        for other in others:
            other.abort()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_worker_that_answers_late_is_slow_and_not_lost(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode"), heartbeat_timeout_s=0.3, heartbeat_misses=3) as s:
        s.worker("d0").heartbeat_delay_s = 0.5  # every look is a miss, every answer comes before the third
        before = s.worker("d0").heartbeats
        await until(lambda: s.worker("d0").heartbeats - before >= 8, timeout_s=20.0)
        assert len(s.gateway.parts.registry.routable()) == 3


async def test_a_worker_whose_answers_still_come_is_not_lost_and_is_when_they_stop(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = answer(*["x"] * 15, delay_s=0.1)  # an event every half timeout
        stream = await s.open_chat()
        s.worker("d0").heartbeats_hang = True
        got, broken = await read_broken(stream)
        assert not broken and got.endswith(b"data: [DONE]\n\n")
        assert s.worker("d0").heartbeats > 3, "it was asked again and again"
        await s.routable(1)


async def test_a_worker_that_was_slow_before_is_given_longer(tmp_path: Path) -> None:
    async with stage(tmp_path, heartbeat_timeout_s=0.3, heartbeat_slow_s=2.0) as s:
        for delay_s in (0.7, 1.6):  # the second is longer than three usual timeouts
            s.worker("d0").heartbeat_delay_s = delay_s
            before = s.worker("d0").heartbeats
            await until(lambda since=before: s.worker("d0").heartbeats - since >= 6, timeout_s=20.0)
            assert len(s.gateway.parts.registry.routable()) == 2
        s.worker("d0").heartbeats_hang = True
        await until(lambda: len(s.gateway.parts.registry.routable()) == 1, timeout_s=10.0)


async def test_a_lost_worker_that_answers_late_comes_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").heartbeats_hang = True
        await s.routable(1)
        s.worker("d0").heartbeats_hang, s.worker("d0").heartbeat_delay_s = False, 0.4  # twice the timeout
        await s.routable(2)


async def test_a_request_whose_only_worker_was_lost_waits_until_it_is_back(tmp_path: Path) -> None:
    async with stage(tmp_path, queue_ttl_s=5.0) as s:
        d0 = s.worker("d0")
        d0.behave = hangs()
        asking = asyncio.create_task(s.chat())
        await until(lambda: len(d0.legs) == 1)
        d0.heartbeats_hang = True
        await s.routable(1)
        d0.behave, d0.heartbeats_hang = answer("x"), False
        assert (await asking).status == 200 and len(d0.legs) == 2


async def test_a_stuck_prefill_worker_is_replaced_while_decode_still_waits_for_it(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("prefill")) as s:
        s.worker("p0").behave = hangs()
        s.worker("d0").behave = hangs()
        asking = asyncio.create_task(s.chat())
        await until(lambda: len(s.worker("d0").legs) == 1 and len(s.worker("p0").legs) == 1)
        s.worker("p0").heartbeats_hang, s.worker("d0").behave = True, answer("x")
        assert (await asking).status == 200
        assert len(s.worker("p1").legs) == 1 and s.worker("p0").legs[0].gone.is_set()
        assert s.metric("baton_gateway_retries_total", leg="prefill", reason="worker_lost") == 1


async def test_a_prefill_worker_lost_after_its_leg_ended_changes_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = answer("x", delay_s=1.0)
        asking = asyncio.create_task(s.chat())
        await until(lambda: len(s.worker("p0").legs) == 1)
        s.worker("p0").heartbeats_hang = True
        await s.routable(1)
        assert (await asking).status == 200 and len(s.worker("d0").legs) == 1


async def test_a_stream_from_a_worker_that_got_stuck_is_ended(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = streams_then_hangs("one")
        stream = await s.open_chat()
        s.worker("d0").heartbeats_hang = True
        got, broken = await read_broken(stream)
        assert broken and error_code(data_events(got)[-1]) == "worker_lost"


async def test_a_restarted_worker_is_a_new_one_and_holds_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.chat()
        await s.worker("d0").kill()
        await s.routable(1)
        s.worker("d0").info = replace(s.worker("d0").info, epoch="e2")
        await s.worker("d0").start()
        await s.routable(2)
        assert (await s.chat()).status == 200
        # Nothing was thought to be cached on decode, which answers here without waiting for prefill.
        await until(lambda: len(s.worker("p0").legs) == 2)


async def test_an_answer_that_is_too_large_is_not_held(tmp_path: Path) -> None:
    async with stage(tmp_path, max_answer_bytes=100) as s:
        got = await s.chat("hi")
        assert (got.status, error_code(got.body)) == (502, "answer_too_large")


async def test_a_client_that_does_not_read_stops_the_worker_not_the_gateways_memory(tmp_path: Path) -> None:
    written = 0

    async def floods(exchange: Exchange, leg: Leg) -> None:
        nonlocal written
        begin_stream(exchange)
        while not exchange.gone:
            exchange.write(b"data: " + b"x" * 65_000 + b"\n\n")
            written += 65_008
            await exchange.drain()

    async with stage(tmp_path) as s:
        s.worker("d0").behave = floods
        reader, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rpartition(":")[2]), limit=1024)
        body = json.dumps(chat_body("hi", stream=True)).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
            % (API_KEY.encode(), len(body), body)
        )
        await until(lambda: written > 0)
        before = -1
        while written != before:  # until nothing moves any more
            before = written
            await asyncio.sleep(0.2)
        assert written < 24 * 1024 * 1024  # socket buffers on two hops, and a bounded write buffer
        writer.transport.abort()
        await asyncio.wait_for(s.worker("d0").legs[0].gone.wait(), 1)
        del reader


async def test_a_prefill_leg_may_end_after_the_answer(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("p0").behave = answer("x", delay_s=0.15)
        assert (await s.chat()).status == 200
        await asyncio.sleep(0.25)
        assert not s.worker("p0").legs[0].gone.is_set()


async def test_a_worker_that_describes_itself_wrongly_is_not_routable(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode")) as s:
        s.worker("d0").info = replace(s.worker("d0").info, block_tokens=0)
        await s.routable(2)
        for text in ("a" * 100, "b" * 100):
            assert (await s.chat(text)).status == 200
        assert s.worker("d0").legs == []


async def test_secrets_and_texts_are_in_no_log_and_no_metric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-in-the-mine"
    caplog.set_level("DEBUG")
    async with stage(tmp_path, trio("decode")) as s:
        s.worker("d0").behave = fails(500, canary)
        await s.chat(canary)
        await s.chat(canary, user=canary, stop=[canary])
        await s.chat(canary, **{canary: 1})
        await s.post("/v1/chat/completions", chat_body(canary, model=canary))
        await s.post("/v1/chat/completions", f'{{"{canary}"'.encode())
        await s.get("/v1/models", canary)
        await s.get(f"/{canary}")
        s.worker("d1").behave = dies_midstream(canary)
        await read_broken(await s.open_chat(canary))
        exposed = (await s.get("/metrics")).body.decode() + caplog.text
    for secret in (canary, API_KEY, WORKER_KEY, "s" * 32):
        assert secret not in exposed


async def test_every_request_is_counted_exactly_once(tmp_path: Path) -> None:
    async with stage(tmp_path, trio("decode")) as s:
        await s.chat()
        await s.chat(frobnicate=1)
        await s.post("/v1/chat/completions", chat_body(), "wrong")
        await s.get("/nowhere")
        s.worker("d0").behave = s.worker("d1").behave = dies_midstream("one")
        await read_broken(await s.open_chat("hi"))
        s.worker("d0").behave = s.worker("d1").behave = hangs()
        asking = asyncio.create_task(s.chat("hi"))
        await until(lambda: s.metric("baton_gateway_in_flight") == 1)
        await leave(s, asking)
        await until(lambda: s.metric("baton_gateway_in_flight") == 0)
        counted = [
            (sample.labels["code"], sample.value)
            for family in s.gateway.parts.telemetry.registry.collect()
            for sample in family.samples
            if sample.name == "baton_gateway_requests_total"
        ]
        assert sorted(counted) == [("200", 1), ("400", 1), ("401", 1), ("404", 1), ("499", 1), ("502", 1)]
