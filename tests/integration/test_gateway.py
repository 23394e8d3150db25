"""The gateway against workers at their real HTTP face: answers, streams, refusals."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baton_api.blocks import derive_key, prompt_digest, tenant_salt
from baton_api.openai import parse_chat
from baton_api.tickets import verify_ticket
from baton_api.timing import from_server_timing
from baton_engine.text.prompt import ModelReader
from baton_gateway.access import KeyRing
from baton_gateway.tokenising import Tokeniser
from support.fake_worker import FakeWorker, answer, fails, says
from support.gateways import API_KEY, LONG, SECRET, WORKER_KEY, chat_body, pair, stage, until
from support.tiny_tokenizer import write_tiny_tokenizer


def data_events(body: bytes) -> list[bytes]:
    return [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]


async def read_all(stream: Any) -> bytes:
    return b"".join([data async for data in stream])


async def test_a_chat_is_answered_by_both_legs_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        got = await s.chat(seed=7, max_tokens=8, min_tokens=3, user="me")
        assert got.status == 200
        assert json.loads(got.body)["choices"][0]["message"]["content"] == "Hello world"
        (prefill,), (decode,) = s.worker("p0").legs, s.worker("d0").legs
        prompt = [*f"[user]{LONG}\n[assistant]".encode()]
        assert len(prefill.body["prompt_token_ids"]) == len(prompt)
        assert prefill.body["prompt_token_ids"] == decode.body["prompt_token_ids"]
        assert prefill.body["seed"] == decode.body["seed"] == 7
        assert (prefill.body["max_tokens"], prefill.body["min_tokens"]) == (1, 1)
        assert (decode.body["max_tokens"], decode.body["min_tokens"]) == (8, 3)
        assert "messages" not in decode.body and "user" not in decode.body
        for leg in (prefill, decode):
            parse_chat(leg.body, internal=True)
            assert leg.headers["authorization"] == f"Bearer {WORKER_KEY}"


async def test_both_legs_carry_one_transfer_and_a_ticket_for_exactly_this_prompt(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.chat()
        prefill, decode = s.worker("p0").legs[0].hand_off, s.worker("d0").legs[0].hand_off
        assert (prefill.leg, decode.leg) == ("prefill", "decode")
        assert prefill.transfer_id == decode.transfer_id and prefill.ticket == decode.ticket is not None
        ticket = verify_ticket(prefill.ticket or "", derive_key(SECRET, "ticket"), 0.0)
        tokens = s.worker("p0").legs[0].body["prompt_token_ids"]
        salt = tenant_salt(SECRET, KeyRing([API_KEY]).tenant({"authorization": f"Bearer {API_KEY}"}))
        assert bytes.fromhex(decode.salt) == salt
        assert ticket.prompt_digest == prompt_digest(tokens, 16, salt).hex()
        assert (ticket.prefill_id, ticket.prefill_epoch, ticket.decode_id) == ("p0", "e1", "d0")
        assert (ticket.num_tokens, ticket.fingerprint, ticket.prefill_address) == (len(tokens), "f1", "127.0.0.1:1")
        assert 0 < decode.deadline_s <= 20


async def test_a_seed_is_drawn_once_for_both_legs(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.chat()
        await s.chat("y" * 100)
        seeds = [leg.body["seed"] for leg in s.worker("d0").legs]
        assert seeds == [leg.body["seed"] for leg in s.worker("p0").legs] and seeds[0] != seeds[1]


async def test_a_stream_is_relayed_with_the_usage_only_if_it_was_asked_for(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for include in (False, True):
            options = {"stream_options": {"include_usage": True}} if include else {}
            stream = await s.open_chat(**options)
            assert stream.headers["content-type"] == "text/event-stream"
            events = data_events(await read_all(stream))
            assert events[-1] == b"[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
            text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
            assert text == "Hello world"
            assert ("usage" in chunks[-1]) is include
            assert s.worker("d0").legs[-1].body["stream_options"] == {"include_usage": True}
            assert "stream" not in s.worker("p0").legs[-1].body
        assert s.metric("baton_gateway_tokens_total", model_name="tiny", direction="completion") == 4


async def test_chunks_arrive_as_they_are_made(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = answer(*"abcdef", delay_s=0.05)
        stream = await s.open_chat()
        reads = [data async for data in stream]
        assert len(reads) >= 5


async def test_a_completion_takes_text_or_token_ids(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for prompt in ("a" * 40, [5] * 40):
            got = await s.post("/v1/completions", {"model": "tiny", "prompt": prompt})
            assert json.loads(got.body)["choices"][0]["text"] == "Hello world"
        assert s.worker("d0").legs[1].body["prompt_token_ids"] == [5] * 40
        assert len(s.worker("d0").legs[0].body["prompt_token_ids"]) == 40
        assert "max_tokens" not in s.worker("d0").legs[0].body
        assert s.worker("p0").legs[0].body["max_tokens"] == 1


async def test_the_time_to_first_token_is_split_up_in_server_timing(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for rest in ("decode", "network"):
            if rest == "network":
                opened = await s.open_chat()
                headers = opened.headers
                await read_all(opened)
            else:
                headers = (await s.chat()).headers
            names = [span.name for span in from_server_timing(headers["server-timing"])]
            assert names == ["receive", "tokenise", "queue", "route", "reserve", "prefill", "transfer", rest]
        assert s.metric("baton_gateway_stage_seconds_count", stage="transfer") == 2
        assert s.metric("baton_gateway_ttft_seconds_count", model_name="tiny") == 2
    async with stage(tmp_path, server_timing=False) as s:
        assert "server-timing" not in (await s.chat()).headers


async def test_a_short_prompt_needs_no_prefill_worker(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        assert (await s.chat("hi")).status == 200
        assert s.worker("p0").legs == [] and s.worker("d0").legs[0].hand_off.ticket is None
        assert s.metric("baton_gateway_routes_total", reason="short") == 1


async def test_a_prompt_that_decode_holds_already_is_not_prefilled_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.chat()
        await s.chat()
        assert len(s.worker("p0").legs) == 1
        assert s.metric("baton_gateway_routes_total", reason="cached_on_decode") == 1


async def test_a_request_id_is_echoed_if_it_is_one_and_made_up_if_not(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        body = chat_body("hi")
        got = await s.post("/v1/chat/completions", body, headers=[("x-request-id", "my-id.1")])
        assert got.headers["x-request-id"] == "my-id.1" == s.worker("d0").legs[0].headers["x-request-id"]
        got = await s.post("/v1/chat/completions", body, headers=[("x-request-id", "x" * 200)])
        assert len(got.headers["x-request-id"]) == 24
        got = await s.post("/v1/chat/completions", b"{", headers=[("x-request-id", "my-id.2")])
        assert (got.status, got.headers["x-request-id"]) == (400, "my-id.2")


async def test_no_header_of_the_client_reaches_a_worker_but_the_trace(tmp_path: Path) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    spoofed = [
        ("x-baton-decode", "evil"),
        ("x-baton-tenant", "victim"),
        ("x-forwarded-for", "1.2.3.4"),
        ("cookie", "c=1"),
        ("traceparent", trace),
    ]
    async with stage(tmp_path) as s:
        assert (await s.post("/v1/chat/completions", chat_body(), headers=spoofed)).status == 200
        expected = {"host", "authorization", "content-type", "content-length", "x-request-id", "traceparent"}
        for worker in s.workers:
            assert worker.legs[0].headers.keys() == expected
            assert worker.legs[0].headers["traceparent"] == trace


REFUSED: list[tuple[Any, int, str | None, str]] = [
    (b"", 400, None, "invalid_value"),
    (b"{", 400, None, "invalid_value"),
    (b'{"model":"tiny","model":"tiny"}', 400, "model", "invalid_value"),
    (b"[" * 50_000, 400, None, "invalid_value"),
    (chat_body(n=True), 400, "n", "invalid_type"),
    (chat_body(frobnicate=1), 400, "frobnicate", "unknown_field"),
    (chat_body(kv_transfer_params={"dialect": "rendezvous/1"}), 400, "kv_transfer_params", "invalid_value"),
    (chat_body(prompt_token_ids=[1]), 400, "prompt_token_ids", "invalid_value"),
    (chat_body(model="other"), 404, "model", "model_not_found"),
    (chat_body("x" * 600), 400, "messages", "context_length_exceeded"),
    (chat_body("x" * 480, max_tokens=100), 400, "messages", "context_length_exceeded"),
]


async def test_what_is_wrong_is_refused_by_name_before_any_worker_is_asked(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for body, status, param, code in REFUSED:
            got = await s.post("/v1/chat/completions", body)
            error = json.loads(got.body)["error"]
            assert (got.status, error["param"], error["code"]) == (status, param, code), body
            assert error.keys() == {"message", "type", "param", "code"}
        assert "512 tokens; the prompt has 623" in json.loads((await s.chat("x" * 605)).body)["error"]["message"]
        assert all(worker.legs == [] for worker in s.workers)


async def test_a_body_beyond_the_limit_is_413(tmp_path: Path) -> None:
    async with stage(tmp_path, max_body_bytes=1000) as s:
        got = await s.post("/v1/chat/completions", chat_body("x" * 2000))
        assert (got.status, json.loads(got.body)["error"]["code"]) == (413, "request_too_large")


ROUTES = [
    *(("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/m")),
    *(("POST", "/tokenize"), ("POST", "/detokenize")),
]


@pytest.mark.parametrize("key", [None, "", "wrong", "sk-tes", "sk-testx", "SK-TEST", "x" * 5000])
async def test_every_v1_route_needs_a_key_that_is_known(tmp_path: Path, key: str | None) -> None:
    async with stage(tmp_path, []) as s:
        for method, path in ROUTES:
            got = await (s.get(path, key) if method == "GET" else s.post(path, chat_body(), key))
            assert (got.status, json.loads(got.body)["error"]["code"]) == (401, "invalid_api_key"), path
            assert got.headers["www-authenticate"] == "Bearer"


async def test_only_bearer_authenticates(tmp_path: Path) -> None:
    async with stage(tmp_path, []) as s:
        for value, status in ((f"Basic {API_KEY}", 401), (API_KEY, 401), (f"bearer {API_KEY}", 200)):
            url = s.url + "/v1/models"
            got = await s.client.request("GET", url, headers=[("authorization", value)], timeout_s=5)
            assert got.status == status


async def test_a_body_is_not_waited_for_that_would_be_refused_all_the_same(tmp_path: Path) -> None:
    """It would take room that others need, for everybody who reaches the port."""
    key = f"authorization: Bearer {API_KEY}"
    cases = [
        ("POST /v1/completions", "", 401), ("POST /v1/completions", "authorization: Bearer sk-x", 401),
        ("POST /nowhere", "", 404), ("PUT /v1/completions", key, 405), ("POST /v1/models", key, 405),
        ("POST /v1/completions", key, 0),
    ]  # fmt: skip
    async with stage(tmp_path, []) as s:
        for line, header, status in cases:
            for framing in ("content-length: 100000", "transfer-encoding: chunked", "content-length: 5"):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rsplit(":", 1)[1]))
                head = [f"{line} HTTP/1.1", "host: x", framing, *([header] if header else [])]
                writer.write("\r\n".join([*head, "", ""]).encode())
                if status:
                    got = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                    assert int(got[9:12]) == status, (line, header)
                    assert (b"www-authenticate: Bearer" in got) == (status == 401)
                else:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.2)
                writer.close()
        assert s.gateway.server is not None and s.gateway.server.bodies.held_bytes == 0


OUTSIDE = [
    *("/", "/v1", "//v1/models", "/V1/models", "/v1/%6dodels", "/v1/./models", "/v1/models/", "/v1/models/../health"),
    *("/baton/v1/worker", "/invocations", "/metrics/", "/v1/embeddings"),
]


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_outside_the_table_is_404_in_openais_form(tmp_path: Path, path: str) -> None:
    async with stage(tmp_path, []) as s:
        got = await s.get(path)
        assert got.status == 404 and json.loads(got.body)["error"]["code"] in ("not_found", "model_not_found")


async def test_a_known_path_with_another_method_is_405(tmp_path: Path) -> None:
    async with stage(tmp_path, []) as s:
        for method, path in (("GET", "/v1/completions"), ("POST", "/v1/models"), ("DELETE", "/health")):
            got = await s.client.request(method, s.url + path, timeout_s=5)
            assert (got.status, json.loads(got.body)["error"]["code"]) == (405, "method_not_allowed")


async def test_models_are_listed_and_described(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        listed = json.loads((await s.get("/v1/models")).body)
        assert [model["id"] for model in listed["data"]] == ["tiny"]
        one = json.loads((await s.get("/v1/models/tiny")).body)
        assert one == listed["data"][0] and one["max_model_len"] == 512 and one["object"] == "model"
        assert (await s.get("/v1/models/other")).status == 404


async def test_health_ready_and_metrics_are_open(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        assert (await s.get("/health", None)).status == 200
        assert (await s.get("/ready", None)).status == 200
        await s.chat("hi")
        text = (await s.get("/metrics", None)).body.decode()
        assert 'baton_gateway_requests_total{code="200",reason="ok",route="/v1/chat/completions"} 1.0' in text
        assert 'baton_gateway_workers{role="decode",state="ready"} 1.0' in text
        assert "vllm:" not in text
    async with stage(tmp_path, metrics_need_key=True) as s:
        assert (await s.get("/metrics", None)).status == 401


@pytest.mark.parametrize(
    ("mode", "roles", "status", "code"),
    [
        ("auto", [], 503, "no_decode_worker"),
        ("auto", ["decode"], 200, None),
        ("auto", ["prefill"], 503, "no_decode_worker"),
        ("disaggregated", ["decode"], 503, "no_prefill_worker"),
        ("disaggregated", ["decode", "prefill"], 200, None),
        ("aggregated", ["decode"], 200, None),
    ],
)
async def test_it_is_ready_when_a_route_exists(
    tmp_path: Path, mode: str, roles: list[str], status: int, code: str | None
) -> None:
    workers = [FakeWorker(role, WORKER_KEY, role) for role in roles]
    async with stage(tmp_path, workers, mode=mode) as s:
        got = await s.get("/ready")
        assert got.status == status
        assert code is None or json.loads(got.body)["error"]["code"] == code


async def test_without_a_worker_a_request_waits_its_time_and_is_told_when_to_retry(tmp_path: Path) -> None:
    async with stage(tmp_path, [], queue_ttl_s=0.1) as s:
        got = await s.chat()
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert got.headers["x-request-dropped-reason"] == "rejected-no-endpoints"
        assert s.metric("baton_gateway_refusals_total", reason="no_decode_worker") >= 1


async def test_a_worker_that_joins_serves_who_waited_for_it(tmp_path: Path) -> None:
    workers = pair()
    async with stage(tmp_path, [], queue_ttl_s=5.0) as s:
        waiting = asyncio.create_task(s.chat())
        for worker in workers:
            await worker.start()
        s.write_fleet(*workers)
        assert (await waiting).status == 200
        s.write_fleet()
        await s.routable(0)
        assert (await s.get("/ready")).status == 503
    for worker in workers:
        await worker.kill()


async def test_a_fleet_file_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for content in (b"{", b'{"model":"tiny","workers":[{"url":"ftp://x"}]}'):
            s.fleet_file.write_bytes(content)
            await asyncio.sleep(0.06)
            assert (await s.chat()).status == 200
        s.fleet_file.unlink()
        await asyncio.sleep(0.06)
        assert (await s.chat()).status == 200


async def test_a_draining_worker_gets_no_new_request(tmp_path: Path) -> None:
    from dataclasses import replace

    workers = [*pair(), FakeWorker("decode", WORKER_KEY, "d1")]
    async with stage(tmp_path, workers) as s:
        s.worker("d0").info = replace(s.worker("d0").info, draining=True)
        await s.routable(2)
        for _ in range(3):
            assert (await s.chat("hi")).status == 200
        assert s.worker("d0").legs == [] and len(s.worker("d1").legs) == 3


async def test_beyond_its_slots_and_queue_it_sheds_load(tmp_path: Path) -> None:
    async with stage(tmp_path, max_in_flight=1, max_queued=1, queue_ttl_s=0.15) as s:
        s.worker("d0").behave = answer("slow", delay_s=0.4)
        first = asyncio.create_task(s.chat("hi"))
        await until(lambda: s.gateway.parts.admission.in_flight == 1)
        second = asyncio.create_task(s.chat("hi"))
        await asyncio.sleep(0.03)
        third = await s.chat("hi")
        assert (third.status, third.headers["x-request-dropped-reason"]) == (429, "rejected-saturated")
        got = await second
        assert (got.status, got.headers["x-request-dropped-reason"]) == (503, "rejected-ttl-expired")
        assert (await first).status == 200


async def test_a_queued_request_is_served_when_a_slot_is_free(tmp_path: Path) -> None:
    async with stage(tmp_path, max_in_flight=1, max_queued=8, queue_ttl_s=5.0) as s:
        s.worker("d0").behave = answer("x", delay_s=0.02)
        got = await asyncio.gather(*(s.chat("hi") for _ in range(5)))
        assert [one.status for one in got] == [200] * 5


async def test_an_error_answer_of_a_worker_is_passed_on(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        s.worker("d0").behave = fails(400, "odd")
        got = await s.chat("hi", stream=True)
        assert (got.status, json.loads(got.body)["error"]["code"]) == (400, "odd")
        s.worker("d0").behave = fails(503, "full", retry_after="3")
        got = await s.chat("hi")
        assert (got.status, json.loads(got.body)["error"]["code"], got.headers["retry-after"]) == (503, "full", "3")
        s.worker("d0").behave = fails(401)
        got = await s.chat("hi")
        assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "worker_key_refused")


async def test_two_keys_are_two_tenants_and_a_cache_salt_narrows(tmp_path: Path) -> None:
    async with stage(tmp_path, keys=(API_KEY, "sk-other")) as s:
        await s.chat()
        await s.post("/v1/chat/completions", chat_body(), "sk-other")
        await s.chat(cache_salt="mine")
        salts = [leg.hand_off.salt for leg in s.worker("d0").legs]
        assert len(set(salts)) == 3
        assert len(s.worker("p0").legs) == 3  # nobody's prefix was found for another
        assert all("cache_salt" not in leg.body for leg in s.worker("d0").legs)


async def test_without_auth_everybody_is_one_tenant(tmp_path: Path) -> None:
    async with stage(tmp_path, keys=()) as s:
        assert (await s.post("/v1/chat/completions", chat_body(), None)).status == 200


async def test_events_cut_anywhere_arrive_whole(tmp_path: Path) -> None:
    sent = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] data: [DONE]"}}]}\n\ndata: [DONE]\n\n'
    async with stage(tmp_path) as s:
        for size in (1, 7, 40):
            s.worker("d0").behave = says(*(sent[i : i + size] for i in range(0, len(sent), size)))
            assert await read_all(await s.open_chat("hi")) == sent


async def test_text_can_be_tokenised_and_token_ids_turned_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        got = json.loads((await s.post("/tokenize", {"prompt": "Hi \u00e9"})).body)
        assert (got["count"], got["max_model_len"]) == (5, 512) and len(got["tokens"]) == 5
        back = json.loads((await s.post("/detokenize", {"model": "tiny", "tokens": got["tokens"]})).body)
        assert back == {"prompt": "Hi \u00e9"}
        chat = json.loads((await s.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]})).body)
        assert chat["count"] == len("[user]x\n[assistant]")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"model": "x", "prompt": "x"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "extra": 1}, 400, "extra"),
        ("/detokenize", {"tokens": ["x"]}, 400, "tokens"),
        ("/detokenize", {"tokens": [9999]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": 3}, 400, "model"),
        ("/v1/completions", {"model": "tiny", "prompt": [9999]}, 400, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400, "prompt"),
    ],
)
async def test_what_cannot_be_tokenised_is_refused_by_name(
    tmp_path: Path, path: str, body: Any, status: int, param: str
) -> None:
    async with stage(tmp_path) as s:
        got = await s.post(path, body)
        assert (got.status, json.loads(got.body)["error"]["param"]) == (status, param)


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        model = write_tiny_tokenizer(tmp_path / "plain", chat_template=None)
        s.gateway.parts.tokeniser = Tokeniser(ModelReader.load(model), 1, 1)
        got = await s.chat()
        assert got.status == 400 and "no chat template" in json.loads(got.body)["error"]["message"]


async def test_prompts_beyond_the_tokenisers_queue_are_shed(tmp_path: Path) -> None:
    async with stage(tmp_path, max_tokenising=1, inline_bytes=0) as s:
        got = await asyncio.gather(*(s.chat("x" * 400) for _ in range(8)))
        statuses = {one.status for one in got}
        assert 200 in statuses and statuses <= {200, 429}


async def test_with_text_keys_the_worker_gets_the_clients_text_and_a_known_prefix_is_sent_where_it_is(
    tmp_path: Path,
) -> None:
    workers = [FakeWorker("decode", WORKER_KEY, f"d{i}", max_model_len=64) for i in range(2)]
    for worker in workers:
        worker.behave = counted
    async with stage(tmp_path, workers, mode="aggregated", prefix_keys="text") as s:
        for _ in range(3):
            got = await s.chat("z" * 1000, max_tokens=1, chat_template_kwargs={"a": 1})
            assert got.status == 200, "an estimate of 250 tokens refuses nothing at a context of 64"
        assert sorted(len(worker.legs) for worker in workers) == [0, 3]
        (held,) = [worker for worker in workers if worker.legs]
        assert held.legs[0].body["messages"] == chat_body("z" * 1000)["messages"]
        assert "prompt_token_ids" not in held.legs[0].body
        assert held.legs[0].hand_off.ticket is None
        parse_chat(held.legs[0].body, internal=True)
        assert s.metric("baton_gateway_tokens_total", model_name="tiny", direction="prompt") == 3 * 77


async def counted(exchange: Any, leg: Any) -> None:
    """An answer that says the prompt had 77 tokens."""
    answer = {"id": "c", "object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 77}}
    exchange.respond(200, json.dumps(answer).encode())
