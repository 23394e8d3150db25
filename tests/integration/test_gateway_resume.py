"""How the gateway moves an answer that broke off to another worker, and when it does not; the workers are fakes."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton_api.emitted import event_line, read_emitted, start_line
from baton_api.openai_out import AnswerMeta, chat_chunk, chat_role_chunk, usage, usage_chunk
from baton_wire.http_server import Exchange
from baton_wire.sse import DONE, format_event
from support.fake_worker import Behaviour, FakeWorker, Leg, answer, begin_stream, dies_at_once, dump, fails, hangs
from support.gateways import WORKER_KEY, Stage, pair, stage, until

from .test_gateway import data_events
from .test_gateway_faults import error_code, read_broken

WORDS = ["one", "two", "three", "four", "five"]
ERROR = b'data: {"error":{"message":"m","type":"t","param":null,"code":"%b"}}\n\n'


def several(count: int) -> list[FakeWorker]:
    return [*pair(), *(FakeWorker("decode", WORKER_KEY, f"d{number}") for number in range(1, count))]


def tells(stop_after: int | None = None, ending: bytes = b"", *, then: str = "aborts") -> Behaviour:
    """Streams WORDS as a real worker does, one token each, going on after what was emitted. After `stop_after` events
    of its own it writes `ending` and breaks off, ends in order, or hangs."""

    async def behave(exchange: Exchange, leg: Leg) -> None:
        told = read_emitted(leg.body["emitted"], 1)
        meta = AnswerMeta("chatcmpl-1", told.created_s or 1_700_000_000, "tiny")
        events = []
        if not told.choices[0].begun:
            events.append(
                start_line(meta.created_s, 3) + event_line(0, (), over=False) + event(chat_role_chunk(meta, 0))
            )
        for token, word in list(enumerate(WORDS))[len(told.choices[0].token_ids) :]:
            over = token == len(WORDS) - 1
            chunk = chat_chunk(meta, 0, word, "stop" if over else None)
            events.append(event_line(0, (token,), over=over) + event(chunk))
        events.append(event(usage_chunk(meta, usage(7, len(WORDS), 3), chat=True)))
        begin_stream(exchange)
        for data in events[:stop_after]:
            exchange.write(data)
            await asyncio.sleep(0.002)
        await end(exchange, leg, stop_after, ending)

    async def end(exchange: Exchange, leg: Leg, stop_after: int | None, ending: bytes) -> None:
        if stop_after is None:
            exchange.write(format_event(DONE))
            exchange.end()
            return
        exchange.write(ending)
        await asyncio.sleep(0.02)
        if then == "hangs":
            await leg.gone.wait()
        elif then == "ends":
            exchange.end()
        else:
            exchange.abort()

    return behave


def event(chunk: dict[str, Any]) -> bytes:
    return format_event(dump(chunk))


async def whole_answer(s: Stage, **fields: Any) -> None:
    """The client gets all of it, once."""
    got, broken = await read_broken(await s.open_chat(**fields))
    assert not broken and b"\n:" not in got and not got.startswith(b":")
    *events, done = data_events(got)
    parsed = [json.loads(data) for data in events]
    deltas = [each["choices"][0]["delta"] for each in parsed if each["choices"]]
    assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * len(WORDS)]
    assert [delta["content"] for delta in deltas] == ["", *WORDS]
    asked_usage = fields.get("stream_options", {}).get("include_usage", False)
    assert [each["usage"]["completion_tokens"] for each in parsed if not each["choices"]] == [5] * asked_usage
    assert len({(each["id"], each["created"]) for each in parsed}) == 1 and done == b"[DONE]"


def resumes(s: Stage, reason: str, outcome: str) -> float:
    return s.metric("baton_gateway_resumes_total", reason=reason, outcome=outcome)


@pytest.mark.parametrize("usage_asked", [False, True])
@pytest.mark.parametrize("ending", [b"", b":0 ", b':0 7\ndata: {"id":"chatcmpl-1","cho', b"data: [DO"])
@pytest.mark.parametrize("after", range(len(WORDS) + 3))
async def test_a_stream_cut_anywhere_goes_on_elsewhere(
    tmp_path: Path, after: int, ending: bytes, usage_asked: bool
) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(after, ending), tells()
        await whole_answer(s, stream_options={"include_usage": usage_asked})
        if after < len(WORDS) + 2:
            first, second = s.worker("d0").legs[0], s.worker("d1").legs[0]
            assert first.hand_off.transfer_id != second.hand_off.transfer_id
            assert first.body["seed"] == second.body["seed"] and len(s.worker("p0").legs) == 2
            assert resumes(s, "connection_lost", "resumed") == 1
        else:
            assert s.worker("d1").legs == []  # only [DONE] was missing


async def test_three_deaths_are_survived_and_not_a_fourth(tmp_path: Path) -> None:
    async with stage(tmp_path, several(5), suspend_s=0.0) as s:
        for number in range(3):
            s.worker(f"d{number}").behave = tells(2)
        for number in (3, 4):
            s.worker(f"d{number}").behave = tells()
        await whole_answer(s)
        assert resumes(s, "connection_lost", "resumed") == 3
    async with stage(tmp_path, several(5), suspend_s=0.0) as s:
        for number in range(5):
            s.worker(f"d{number}").behave = tells(1)
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "connection_lost" and b"[DONE]" not in got
        assert sum(len(worker.legs) for worker in s.workers[1:]) == 4
        assert resumes(s, "connection_lost", "out_of_budget") == 1


async def test_a_worker_that_dies_while_it_takes_over_is_replaced_too(tmp_path: Path) -> None:
    async with stage(tmp_path, several(3)) as s:
        s.worker("d0").behave, s.worker("d1").behave, s.worker("d2").behave = tells(3), dies_at_once(), tells()
        await whole_answer(s)
        assert read_emitted(s.worker("d2").legs[0].body["emitted"], 1).choices[0].token_ids == [0, 1]


async def test_a_stuck_worker_is_left_for_another(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3, then="hangs"), tells()
        asking = asyncio.create_task(whole_answer(s))
        await until(lambda: len(s.worker("d0").legs) == 1)
        s.worker("d0").heartbeats_hang = True
        await asking
        assert s.worker("d0").legs[0].gone.is_set() and resumes(s, "worker_lost", "resumed") == 1


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_worker_whose_engine_is_stuck_is_left_though_it_answers(tmp_path: Path, role: str) -> None:
    """Streams go on elsewhere token for token, and no request waits for the stuck one."""
    workers = [*several(2), FakeWorker("prefill", WORKER_KEY, "p1")]
    async with stage(tmp_path, workers) as s:
        d0, stuck = s.worker("d0"), s.worker("d0" if role == "decode" else "p0")
        s.worker("d1").behave = tells()
        if role == "decode":
            d0.behave = tells(3, then="hangs")
        else:
            stuck.behave = d0.behave = hangs()
        asking = asyncio.create_task(whole_answer(s))
        await until(lambda: len(stuck.legs) == 1 and len(d0.legs) == 1)
        d0.behave = tells()
        stuck.info = replace(stuck.info, ready=False)
        await asking
        assert stuck.legs[0].gone.is_set() and len(s.gateway.parts.registry.routable()) == 3
        stuck.info = replace(stuck.info, ready=True)
        await s.routable(4)


@pytest.mark.parametrize(("code", "then"), [(b"draining", "aborts"), (b"internal", "aborts"), (b"internal", "ends")])
async def test_a_worker_that_fails_midway_hands_its_stream_over(tmp_path: Path, code: bytes, then: str) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3, ERROR % code, then=then), tells()
        await whole_answer(s)
        assert resumes(s, code.decode(), "resumed") == 1


async def test_a_request_that_breaks_workers_is_moved_once(tmp_path: Path) -> None:
    async with stage(tmp_path, several(4), suspend_s=0.0) as s:
        for number in range(4):
            s.worker(f"d{number}").behave = tells(1, ERROR % b"internal")
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "internal"
        assert sum(len(worker.legs) for worker in s.workers[1:]) == 2


async def test_an_error_that_another_worker_would_repeat_is_the_clients(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave = tells(3, ERROR % b"deadline_exceeded")
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "deadline_exceeded" and s.worker("d1").legs == []
        assert resumes(s, "deadline_exceeded", "not_resumable") == 1


@pytest.mark.parametrize("settings", [{"resume_burst": 0}, {"max_resumes": 0}])
async def test_resuming_has_a_budget_and_can_be_off(tmp_path: Path, settings: dict[str, int]) -> None:
    async def broken_off(exchange: Exchange, leg: Leg) -> None:
        assert ("emitted" in leg.body) == bool(s.gateway.parts.settings.max_resumes)
        leg.body.setdefault("emitted", "")
        await tells(3)(exchange, leg)

    async with stage(tmp_path, several(2), **settings) as s:
        s.worker("d0").behave = broken_off
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "connection_lost"
        assert s.worker("d1").legs == []


async def test_without_another_worker_the_stream_waits_for_one_and_ends_loudly(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = tells(3)
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "connection_lost" and b"[DONE]" not in got
        assert resumes(s, "connection_lost", "nobody_left") == 1


async def test_a_worker_that_restarted_takes_its_own_stream_up_again(tmp_path: Path) -> None:
    async with stage(tmp_path, queue_ttl_s=5.0) as s:
        s.worker("d0").behave = tells(3, then="hangs")
        asking = asyncio.create_task(whole_answer(s))
        await until(lambda: len(s.worker("d0").legs) == 1)
        await asyncio.sleep(0.05)
        await s.worker("d0").kill()
        s.worker("d0").info, s.worker("d0").behave = replace(s.worker("d0").info, epoch="e2"), tells()
        await s.worker("d0").start()
        await asking


async def test_another_revision_does_not_go_on_with_an_answer(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3), tells()
        s.worker("d1").info = replace(s.worker("d1").info, revision="r2")
        await until(lambda: len({view.info.revision for view in s.gateway.parts.registry.routable()}) == 2)
        _, broken = await read_broken(await s.open_chat())
        assert broken and s.worker("d1").legs == []


async def test_a_next_worker_that_refuses_leaves_the_first_error(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3), fails(400, "theirs")
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "connection_lost"
        assert resumes(s, "connection_lost", "refused") == 1


async def test_a_client_that_leaves_while_its_stream_moves_aborts_both_legs(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3), hangs()
        stream = await s.open_chat()
        await until(lambda: len(s.worker("d1").legs) == 1)
        stream.close()
        await asyncio.wait_for(s.worker("d1").legs[0].gone.wait(), 1)
        await until(lambda: resumes(s, "connection_lost", "given_up") == 1)


async def test_the_deadline_also_holds_while_a_stream_moves(tmp_path: Path) -> None:
    async with stage(tmp_path, several(2), request_timeout_s=0.5) as s:
        s.worker("d0").behave, s.worker("d1").behave = tells(3), hangs()
        got, broken = await read_broken(await s.open_chat())
        assert broken and error_code(data_events(got)[-1]) == "deadline_exceeded"
        assert s.worker("d1").legs[0].hand_off.deadline_s < 0.5


async def test_a_whole_answer_that_breaks_off_is_made_again(tmp_path: Path) -> None:
    async def half(exchange: Exchange, leg: Leg) -> None:
        exchange.start(200, [("content-type", "application/json"), ("content-length", "100")])
        exchange.write(b'{"id":')
        await asyncio.sleep(0.02)
        exchange.abort()

    async with stage(tmp_path, several(2)) as s:
        s.worker("d0").behave, s.worker("d1").behave = half, answer("Hello")
        got = await s.chat()
        assert got.status == 200 and json.loads(got.body)["choices"][0]["message"]["content"] == "Hello"
        assert "emitted" not in s.worker("d1").legs[0].body
        assert resumes(s, "connection_lost", "resumed") == 1
