"""The gateway's small pure pieces: event tail, timeline, access, legs, retry budget, settings."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.errors import SettingError, Unauthorized, WorkerProtocolError
from baton_api.settings import parse
from baton_api.timing import from_server_timing
from baton_gateway import events
from baton_gateway.access import KeyRing, request_id, worker_headers
from baton_gateway.admission import RetryBudget
from baton_gateway.attempt import LegRequest
from baton_gateway.events import StreamTail, usage_of
from baton_gateway.legs import Handing, Prompt, decode_body, prefill_body
from baton_gateway.process import read_keys, read_secret, read_settings
from baton_gateway.settings import GatewaySettings
from baton_gateway.telemetry import Telemetry, label
from baton_gateway.timeline import Timeline

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
TRICKY = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] data: [DONE] data: {\\"error\\""}}]}\n\n'
USAGE = b'data: {"id":"x","choices":[],"usage":{"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"x"}}\n\n'
PARTS = st.lists(st.sampled_from([ROLE, TRICKY, b": ping\n\n"]), max_size=5)


@given(PARTS, st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_a_stream_cut_anywhere_comes_out_whole(parts: list[bytes], keep: bool, sizes: list[int]) -> None:
    sent, tail, got = b"".join([*parts, USAGE, DONE]), StreamTail(keep, bytes), b""
    while sent:
        size = sizes.pop(0) if sizes else len(sent)
        out = tail.feed(sent[:size])
        assert out == b"" or out.endswith(b"\n\n")
        got, sent = got + out, sent[size:]
    assert got == b"".join([*parts, *([USAGE] if keep else []), DONE])
    assert (tail.done, tail.error, tail.usage) == (True, None, {"completion_tokens": 2})


def test_an_error_event_is_noted_and_kept_back() -> None:
    tail = StreamTail(False, bytes)
    assert tail.feed(ROLE + ERROR) == ROLE
    assert tail.error is not None and not tail.done and tail.usage is None


def test_an_event_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_PARTIAL_BYTES", 100)
    tail = StreamTail(False, bytes)
    assert tail.feed(b"x" * 100) == b""
    with pytest.raises(WorkerProtocolError, match="exceeds 100 bytes"):
        tail.feed(b"x")


@pytest.mark.parametrize(
    ("answer", "expected"), [(b'{"usage":{"a":1}}', {"a": 1}), (b"{}", None), (b"[]", None), (b"x", None)]
)
def test_usage_is_read_from_an_answer_that_has_it(answer: bytes, expected: Any) -> None:
    assert usage_of(answer) == expected


@pytest.mark.parametrize(("streamed", "rest", "first_token_s"), [(True, "network", 2.0), (False, "decode", 1.3)])
def test_the_spans_of_a_timeline_add_up_to_its_total(streamed: bool, rest: str, first_token_s: float) -> None:
    timeline = Timeline(10.0)
    timeline.lap("receive", 10.5)
    timeline.lap("queue", 11.0)
    timeline.answered('reserve;dur=100, prefill;dur=200.0;desc="x"', 12.0, streamed=streamed)
    spans = from_server_timing(timeline.header())
    assert [span.name for span in spans] == ["receive", "queue", "reserve", "prefill", rest]
    assert timeline.first_token_s == pytest.approx(first_token_s)
    assert sum(span.duration_s for span in spans) == pytest.approx(2.0)


def test_a_worker_that_claims_more_time_than_passed_leaves_no_negative_rest() -> None:
    timeline = Timeline(0.0)
    timeline.answered("prefill;dur=5000", 1.0, streamed=True)
    assert timeline.spans[-1].duration_s == 0.0 and timeline.first_token_s == 1.0


def test_a_key_is_known_by_its_hash_and_tenants_differ() -> None:
    ring = KeyRing(["a", "b", "a"])
    assert len(ring) == 2
    first, second = (ring.tenant({"authorization": f"Bearer {key}"}) for key in "ab")
    assert first != second and "a" not in vars(ring).values()
    for header in ({}, {"authorization": "Bearer c"}, {"authorization": "Basic a"}, {"authorization": "Bearer \udcff"}):
        with pytest.raises(Unauthorized):
            ring.tenant(header)
    assert KeyRing([]).tenant({}) == ""


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("a", True),
        ("A-1_b.c:d", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("é", False),
    ],
)
def test_a_request_id_is_kept_only_if_it_is_harmless(given_: str, kept: bool) -> None:
    assert request_id({"x-request-id": given_}, bytes) == (given_ if kept else "00" * 12)
    assert request_id({}, bytes) == "00" * 12


def test_a_leg_carries_only_checked_headers() -> None:
    assert dict(worker_headers({"traceparent": "evil"}, "id", "k")) == {
        "authorization": "Bearer k",
        "content-type": "application/json",
        "x-request-id": "id",
    }


def test_both_bodies_share_everything_but_what_makes_the_first_leg_one_token() -> None:
    fields = {
        "model": "m",
        "messages": [1],
        "prompt": "x",
        "cache_salt": "s",
        "chat_template_kwargs": {},
        "seed": 1,
        "stream": True,
        "stream_options": {},
        "max_completion_tokens": 9,
        "stop": ["a"],
        "top_k": 3,
        "min_tokens": 4,
    }
    prompt = Prompt([1, 2, 3], bytes(32))
    handing = Handing("t", 1.5, "fail", "ticket")
    decode, prefill = (json.loads(make(fields, prompt, handing)) for make in (decode_body, prefill_body))
    assert decode == {
        "model": "m",
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["a"],
        "max_completion_tokens": 9,
        "top_k": 3,
        "min_tokens": 4,
        "prompt_token_ids": [1, 2, 3],
        "kv_transfer_params": {
            "dialect": "rendezvous/1",
            "leg": "decode",
            "transfer_id": "t",
            "salt": "00" * 32,
            "deadline_s": 1.5,
            "ticket": "ticket",
            "on_prefill_failure": "fail",
        },
    }
    assert prefill == {
        "model": "m",
        "seed": 1,
        "top_k": 3,
        "min_tokens": 1,
        "max_tokens": 1,
        "prompt_token_ids": [1, 2, 3],
        "kv_transfer_params": {**decode["kv_transfer_params"], "leg": "prefill"},
    }
    assert "stream_options" not in json.loads(decode_body({"model": "m"}, prompt, handing))
    assert LegRequest("u", "/p", b"", (), 3).tokens == len(prompt)


def test_retries_are_a_share_of_requests_with_some_saved_up() -> None:
    budget = RetryBudget(0.1, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_every_metric_of_the_table_is_exposed() -> None:
    telemetry = Telemetry()
    telemetry.count("baton_gateway_retries_total", "decode", "x", amount=2)
    telemetry.in_flight += 1
    telemetry.observe("baton_gateway_ttft_seconds", 0.2, "m")
    telemetry.set_all("baton_gateway_workers", [(("decode", "ready"), 2), (("decode", "lost"), 1)])
    telemetry.set_all("baton_gateway_workers", [(("decode", "ready"), 1)])
    text = telemetry.exposition().decode()
    assert 'baton_gateway_retries_total{leg="decode",reason="x"} 2.0' in text
    assert "baton_gateway_in_flight 1.0" in text and 'le="0.25",model_name="m"} 1.0' in text
    assert 'state="ready"} 1.0' in text and "lost" not in text
    assert label("status_503") == "status_503" and label("evil label") == label("x" * 49) == label("") == "other"


def test_settings_name_what_is_wrong(tmp_path: Any) -> None:
    assert parse(GatewaySettings, {"fleet_file": "f", "model_path": "m"}).policy.min_remote_prefill_tokens == 32
    for raw, message in [
        ({"fleet_file": "f"}, "model_path: null is missing"),
        ({"fleet_file": "f", "model_path": "m", "mode": "x"}, "mode: 'x' is not allowed"),
        ({"fleet_file": "f", "model_path": "m", "queue_ttl_s": -1}, "queue_ttl_s: -1.0 is below 0"),
        ({"fleet_file": "f", "model_path": "m", "api_keys": [1]}, "is int"),
    ]:
        with pytest.raises(SettingError, match=message):
            parse(GatewaySettings, raw)
    for argv in ([], ["--settings"], ["--settings", str(tmp_path / "none")], ["--x", "y"]):
        with pytest.raises(SettingError):
            read_settings(argv, {})
    path = tmp_path / "settings.json"
    path.write_text('{"fleet_file": "f", "model_path": "m"}')
    assert read_settings(["--settings", str(path)], {}) == GatewaySettings("m", fleet_file="f")
    assert read_settings([], {"BATON_GATEWAY_SETTINGS": str(path)}) == GatewaySettings("m", fleet_file="f")


def test_the_secret_is_a_file_or_a_variable_and_never_told(tmp_path: Any) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"f" * 32 + b"\n")
    assert read_secret(str(path), {"BATON_SECRET": "e" * 32}) == b"f" * 32
    assert read_secret("", {"BATON_SECRET": "e" * 32}) == b"e" * 32
    for where, environment in (("", {}), ("", {"BATON_SECRET": "short"}), (str(tmp_path / "none"), {})):
        with pytest.raises(SettingError) as caught:
            read_secret(where, environment)
        assert "short" not in caught.value.message.replace("too short", "")


def test_api_keys_come_from_settings_file_and_environment(tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    settings = GatewaySettings("m", fleet_file="f", api_keys=("zero",), api_key_file=str(path))
    assert read_keys(settings, {"BATON_API_KEY": "three"}) == ["zero", "one", "two", "three"]
    assert read_keys(GatewaySettings("m", fleet_file="f"), {}) == []
