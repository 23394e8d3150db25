"""The OpenAPI document against the handlers, the parser and the answers: nothing more, nothing less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton_api import openai_fields as fields
from baton_api import openai_out_schema as out
from baton_api import openai_schema, openapi
from baton_api.errors import BadRequest, BatonError, SettingError
from baton_api.openai import parse_chat, parse_completion
from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    TokenLogprob,
    chat_chunk,
    chat_final,
    chat_logprobs,
    chat_role_chunk,
    completion_chunk,
    completion_final,
    completion_logprobs,
    usage,
    usage_chunk,
)
from baton_gateway.app import MODEL_PREFIX
from support.gateways import stage

DOCUMENT = openapi.document("1")
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "stream": True}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "x", "stream": True}
KINDS = {
    "chat": (parse_chat, openai_schema.chat_fields(), CHAT, openai_schema.chat_schema()),
    "completion": (parse_completion, openai_schema.completion_fields(), COMPLETION, openai_schema.completion_schema()),
}


def accepted(kind: str, body: dict[str, Any]) -> bool:
    try:
        KINDS[kind][0](body)
    except BadRequest:
        return False
    return True


def described(kind: str, body: dict[str, Any]) -> bool:
    return VALIDATORS[kind].is_valid(body)


VALIDATORS = {kind: jsonschema_rs.Draft202012Validator(schema) for kind, (_, _, _, schema) in KINDS.items()}


async def test_every_route_and_method_is_described_and_the_other_way_round(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        served = {
            ("/v1/models/{id}" if path == MODEL_PREFIX else path, method.lower(), handler.needs_key)
            for path, (method, handler) in s.gateway.app.routes.items()
        }
        told = await s.get("/openapi.json", key=None)
        wrong = await s.post("/v1/models", {})
    assert told.status == 200
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET")
    document = json.loads(told.body)
    assert served == {
        (path, method, bool(operation["security"]))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert document == {**DOCUMENT, "info": document["info"]}


async def test_every_path_with_a_body_refuses_a_compressed_one(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        paths = [operation.path for operation in openapi.OPERATIONS if operation.body is not None]
        refused = [await s.post(path, {}, headers=[("content-encoding", "gzip")]) for path in paths]
    assert [answer.status for answer in refused] == [415] * len(paths) and len(paths) == 4
    assert {answer.headers["accept-encoding"] for answer in refused} == {"identity"}
    told = "header content-encoding is 'gzip'; the only one is identity: send the body uncompressed"
    assert json.loads(refused[0].body)["error"]["message"] == told


def test_metrics_need_the_key_in_the_document_when_they_do() -> None:
    told = openapi.document("1", metrics_need_key=True)["paths"]["/metrics"]["get"]
    assert told["security"] and "401" in told["responses"]


def test_every_status_that_an_error_has_is_described_for_some_route() -> None:
    def tree(kind: type[BatonError]) -> set[int]:
        return {kind.http_status}.union(*(tree(child) for child in kind.__subclasses__()))

    told = {int(status) for path in DOCUMENT["paths"].values() for op in path.values() for status in op["responses"]}
    # 403: no route has permissions yet; 499 is never sent.
    assert tree(BatonError) - {403, 499} == told - {200}
    assert SettingError.http_status in told


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_has_every_field_that_is_used_ignored_or_off_and_no_other(kind: str) -> None:
    used, off = (
        (fields.CHAT_USED, fields.CHAT_OFF) if kind == "chat" else (fields.COMPLETION_USED, fields.COMPLETION_OFF)
    )
    told = set(KINDS[kind][1])
    assert told == used | set(off) | set(fields.IGNORED)
    assert not told & fields.INTERNAL


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_parser_refuses_by_name_the_schema_refuses(kind: str) -> None:
    base = KINDS[kind][2]
    for name in (*fields.INTERNAL, "no_such_field", "suffix" if kind == "chat" else "tools"):
        body = {**base, name: None}
        assert not described(kind, body) and not accepted(kind, body), name
    for name in KINDS[kind][3]["required"]:
        without = {key: value for key, value in base.items() if key != name}
        assert not described(kind, without) and not accepted(kind, without), name


def numbers() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (kind, name, schema)
        for kind, (_, described_fields, _, _) in KINDS.items()
        for name, schema in described_fields.items()
        if "maximum" in schema
    ]


@pytest.mark.parametrize(("kind", "name", "schema"), numbers(), ids=lambda value: str(value)[:20])
def test_a_numbers_limits_are_the_parsers(kind: str, name: str, schema: dict[str, Any]) -> None:
    step = 1 if "integer" in schema["type"] else 0.001
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema["maximum"]
    inside = [low + step if "exclusiveMinimum" in schema else low, high]
    outside = [low - step, high + step] + ([low] if "exclusiveMinimum" in schema else [])
    base = {**KINDS[kind][2], **({"max_tokens": high} if name == "min_tokens" else {})}
    for value in inside:
        assert accepted(kind, {**base, name: value}) and described(kind, {**base, name: value}), value
    for value in outside:
        assert not accepted(kind, {**base, name: value}) and not described(kind, {**base, name: value}), value


LONG = ["", "x", "x" * 256, "x" * 257, "x" * 1024, "x" * 1025, "text", "user", "assistant", "role", "1", "01", "-1"]
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 5) | st.integers(-(2**64), 2**64) | st.floats(-3, 3)
    | st.sampled_from(LONG)
)  # fmt: skip
WORDS = ["role", "content", "type", "text", "include_usage", "a", "1", "messages", "name", "tool_calls", "audio"]
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
        | st.sampled_from([["x"] * 16, ["x"] * 17, [1] * 128, [1] * 129, [[1, 2]], [["x"]], {"type": "text"}])
    ),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "developer", "tool", None])},
    optional=dict.fromkeys(("content", "name", "refusal", "tool_calls", "audio", "function_call", "x"), VALUES),
)
NAMED = [(kind, name) for kind in KINDS for name in KINDS[kind][1]]


def expressible(value: Any) -> bool:
    """JSON Schema takes 1.0 for an integer; the parser does not."""
    if isinstance(value, float):
        return not value.is_integer()
    if isinstance(value, list | dict):
        return all(expressible(item) for item in (value.values() if isinstance(value, dict) else value))
    return True


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(NAMED), VALUES | st.lists(MESSAGES, max_size=2))
@example(("chat", "messages"), [{"role": "assistant"}])
@example(("chat", "messages"), [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}])
@example(("chat", "chat_template_kwargs"), {"messages": 1})
@example(("chat", "logit_bias"), {"1": 100.5})
@example(("completion", "prompt"), [])
@example(("completion", "stop"), ["x"] * 17)
def test_parser_and_schema_agree_on_any_value_of_any_field(named: tuple[str, str], value: Any) -> None:
    kind, name = named
    body = {**KINDS[kind][2], name: value}
    crosses_fields = name in {"chat": ("stream", "logprobs"), "completion": ("stream", "min_tokens")}[kind]
    if expressible(value) and not crosses_fields:
        assert accepted(kind, body) == described(kind, body), body


META = AnswerMeta("id-1", 1, "m")
LOGPROBS = (TokenLogprob("a", b"a", -0.5, (TokenLogprob("b", b"b", -0.7),)),)
USED = usage(3, 2, 1)
SHAPES = [
    (
        out.CHAT,
        chat_final(META, [FinalChoice(0, "a", "stop", chat_logprobs(LOGPROBS)), FinalChoice(1, "", "length")], USED),
    ),
    (out.COMPLETION, completion_final(META, [FinalChoice(0, "a", "stop", completion_logprobs(LOGPROBS))], USED)),
    (out.CHAT_CHUNK, chat_role_chunk(META, 0)),
    (out.CHAT_CHUNK, chat_chunk(META, 0, "a", None, LOGPROBS)),
    (out.CHAT_CHUNK, chat_chunk(META, 0, "", "stop")),
    (out.CHAT_CHUNK, usage_chunk(META, USED, chat=True)),
    (out.COMPLETION_CHUNK, completion_chunk(META, 0, "a", "stop", LOGPROBS)),
    (out.COMPLETION_CHUNK, usage_chunk(META, USED, chat=False)),
    (out.ERROR, BadRequest("no", param="x").body()),
]


def closed(schema: Any) -> Any:
    """The schema with every object of known fields closed."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return {**inner, "additionalProperties": False} if "properties" in schema else inner


@pytest.mark.parametrize(("schema", "answer"), SHAPES, ids=lambda value: str(value)[:40])
def test_what_we_answer_is_described_to_the_last_field(schema: dict[str, Any], answer: dict[str, Any]) -> None:
    jsonschema_rs.Draft202012Validator(closed(schema)).validate(answer)
