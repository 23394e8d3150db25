"""What an OpenAI request body may hold, field by field."""

from typing import Any

import pytest

from baton_api.errors import BadRequest
from baton_api.json_body import MAX_ARRAYS, MAX_NAMES, MAX_VALUES, json_object, max_values_for
from baton_api.openai import Message, parse_chat, parse_completion
from baton_api.sampling import SamplingParams

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def test_a_small_chat_body_has_openais_defaults() -> None:
    request = parse_chat(CHAT)
    assert request.messages == (Message("user", "hi"),)
    assert request.sampling == SamplingParams()
    assert (request.stream, request.include_usage, request.prompt_token_ids) == (False, False, None)


def test_a_small_completion_stops_after_16_tokens() -> None:
    assert parse_completion(COMPLETION).sampling == SamplingParams(max_tokens=16)
    assert parse_completion(COMPLETION).prompt == "hi"


def test_every_sampling_field_arrives() -> None:
    request = parse_chat(
        {
            **CHAT,
            "max_completion_tokens": 7,
            "n": 2,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": -1,
            "min_p": 0.1,
            "presence_penalty": 1,
            "frequency_penalty": -1.5,
            "repetition_penalty": 1.1,
            "seed": -3,
            "logit_bias": {"5": 100, "0": -1.5},
            "stop": ["a", "b"],
            "stop_token_ids": [9],
            "ignore_eos": True,
            "min_tokens": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": False},
            "cache_salt": "s",
        }
    )
    assert request.sampling == SamplingParams(
        7, 2, 0.0, 0.5, -1, 0.1, 1.0, -1.5, 1.1, ((5, 100.0), (0, -1.5)), -3, ("a", "b"), (9,), True, 2, 3, True, False
    )
    assert request.stream and request.include_usage and request.cache_salt == "s"
    assert dict(request.template_kwargs) == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "top_logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_chat_logprobs_are_a_flag_and_a_count(fields: dict[str, Any], top_logprobs: int | None) -> None:
    assert parse_chat({**CHAT, **fields}).sampling.top_logprobs == top_logprobs


def test_completion_logprobs_are_a_count() -> None:
    assert parse_completion({**COMPLETION, "logprobs": 0}).sampling.top_logprobs == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", "a"), ("", ""), (["a"], "a"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([], ())],
)
def test_a_prompt_is_one_text_or_one_list_of_token_ids(prompt: Any, expected: Any) -> None:
    assert parse_completion({"model": "m", "prompt": prompt}).prompt == expected


def test_text_parts_are_joined_and_developer_becomes_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        {"role": "user", "content": "x", "name": "bo"},
    ]
    assert parse_chat({"model": "m", "messages": messages}).messages == (
        Message("system", "ab"),
        Message("assistant", ""),
        Message("user", "x", "bo"),
    )
    assert Message("user", "x", "bo").for_template() == {"role": "user", "content": "x", "name": "bo"}
    assert Message("user", "x").for_template() == {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "tool_choice": "auto", "functions": [], "modalities": ["text"], "store": False},
        {"response_format": {"type": "text"}, "service_tier": "auto", "reasoning_effort": "none", "echo": False},
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"parallel_tool_calls": True, "prompt_cache_retention": "24h", "verbosity": "medium", "best_of": 1},
        {"temperature": None, "tools": None, "audio": None, "user": None, "stop": None, "stream_options": None},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parse_chat({**CHAT, **fields}).model == "m"


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


CHAT_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"model": 3}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": "hi"}] * 2049}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    (message(role="tool"), "messages[0].role"),
    (message(role=["user"]), "messages[0].role"),
    (message(name=3), "messages[0].name"),
    (message(content=None), "messages[0].content"),
    (message(content=3), "messages[0].content"),
    (message(content=[]), "messages[0].content"),
    (message(content=["a"]), "messages[0].content[0]"),
    (message(content=[{"type": "text", "text": "a"}, {"type": "image_url"}]), "messages[0].content[1]"),
    (message(content=[{"type": 3}]), "messages[0].content[0]"),
    (message(content=[{"type": "text", "text": 3}]), "messages[0].content[0].text"),
    (message(tool_calls=[{}]), "messages[0].tool_calls"),
    (message(extra=1), "messages[0].extra"),
    ({"n": True}, "n"),
    ({"n": 1.0}, "n"),
    ({"n": 9}, "n"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 10**5000}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"01": 1}}, "logit_bias"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stop": [1]}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop_token_ids": [True]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
    ({"stop_token_ids": "x"}, "stop_token_ids"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"__class__": 1}}, "chat_template_kwargs.__class__"),
    ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs.a"),
    ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"store": True}, "store"),
    ({"store": 0}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"user": 3}, "user"),
    ({"metadata": []}, "metadata"),
    ({"audio": {}}, "audio"),
    ({"echo": True}, "echo"),
    ({"frobnicate": None}, "frobnicate"),
    ({"prompt": "x"}, "prompt"),
    ({"prompt_token_ids": [1]}, "prompt_token_ids"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
]


@pytest.mark.parametrize(("fields", "param"), CHAT_REFUSALS, ids=[f"{i}-{p}" for i, (_, p) in enumerate(CHAT_REFUSALS)])
def test_a_chat_field_that_is_wrong_or_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat({**CHAT, **fields})
    assert caught.value.param == param
    assert caught.value.body()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": "ten"}, "max_tokens is 'ten'; it must be an integer of at most 64 bits"),
        ({"n": True}, "n is true; it must be an integer of at most 64 bits"),
        ({"seed": 10**5000}, "seed is an integer of 16610 bits; it must be an integer of at most 64 bits"),
        ({"temperature": [0.5]}, "temperature is [0.5]; it must be a number, 2^63 at most"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[1] is 'x'; it must be a number, 2^63 at most"),
        ({"logit_bias": {"01": 1}}, "logit_bias has a key '01'; keys must be token ids in decimal, below 2147483648"),
        ({"model": {"a": {"b": {}}}}, "model is {'a': {'b': {}}}; it must be a string"),
        ({"model": "m" * 257}, "model has 257 characters; it must have 1 to 256"),
        ({"messages": "hi"}, "messages is 'hi'; it must be a list"),
        (message(content=None), "messages[0].content is null; it must be a string or a list of 1 to 1024 text parts"),
        (message(role="tool"), "messages[0].role is 'tool'; it must be one of system, developer, user, assistant"),
        (message(tool_calls=[{}]), "messages[0].tool_calls is [{}]; it is not supported here: leave it out"),
        (message(content=[{}]), "messages[0].content[0] is of type null; only 'text' parts are supported"),
        ({"stop": [1]}, "stop is [1]; it must be a string or a list of strings"),
        ({"stop_token_ids": [5, -1]}, "stop_token_ids[1] is -1; token ids must be integers from 0 below 2147483648"),
        ({"stream": "x" * 300}, f"stream is '{'x' * 200}'...; it must be true or false"),
        ({"store": True}, "store is true; it is not supported here beyond null or false: leave it out"),
        ({"metadata": list(range(9))}, "metadata is [0, 1, 2, 3, ...]; it must be an object"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens is 4 and max_tokens is 3; give one of "),
        ({"top_logprobs": 2}, "top_logprobs is 2; it needs logprobs: true, or must be 0"),
        ({"stream_options": {}}, "stream_options is {}; it needs stream: true, or must be left out"),
    ],
)
def test_a_refusal_shows_the_value_and_what_it_must_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat({**CHAT, **fields})
    assert caught.value.message.startswith(told)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 4}, "max_completion_tokens"),
    ],
)
def test_a_completion_field_that_is_wrong_or_not_supported_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_completion({**COMPLETION, **fields})
    assert caught.value.param == param


def test_inside_a_body_carries_token_ids_and_the_hand_off_in_place_of_text() -> None:
    inside = {"model": "m", "prompt_token_ids": [1, 2], "kv_transfer_params": {"dialect": "x"}, "seed": 1}
    chat, completion = parse_chat(inside, internal=True), parse_completion(inside, internal=True)
    assert chat.prompt_token_ids == completion.prompt_token_ids == (1, 2)
    assert chat.kv_transfer_params == {"dialect": "x"}
    assert chat.messages == () and completion.prompt is None
    with pytest.raises(BadRequest, match="messages is missing"):
        parse_chat({"model": "m"}, internal=True)


@pytest.mark.parametrize("body", [[], None, "x", 3])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(BadRequest, match="it must be a JSON object"):
        parse_chat(body)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"[1]", r"the body is \[1\]; it must be a JSON object"),
        (b'{"a":1', "is not JSON"),
        (b'{"a":1}x', "is not JSON"),
        (b'{"a":NaN}', "NaN is not"),
        (b'{"a":-Infinity}', "-Infinity is not"),
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b'{"a":{"b":1,"b":1}}', "'b' stands twice"),
        (b'{"a":"\\ud800"}', "lone surrogate"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64"),
        (b'{"a":' + b"[" * 8_000 + b"]" * 8_000 + b"}", "nested deeper than 64"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 8192 JSON arrays"),
        (b'{"a":[' + b"{}," * 4095 + b"{}]}", "more than 4096 JSON objects"),
        (b'{"a":[' + b'{"role":"user","content":"a"},' * 10_000 + b"{}]}", "more than 4096 JSON objects"),
    ],
)
def test_a_body_two_readers_could_read_differently_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        json_object(data)


def test_a_body_within_the_limits_is_read() -> None:
    deep = b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"
    assert json_object(deep).keys() == {"a"}
    assert json_object(b'{"a":[' + b"[]," * 99 + b"[]]}").keys() == {"a"}
    assert json_object(b'{"a":[' + b"{}," * 4094 + b"{}]}").keys() == {"a"}
    assert json_object(b'{"a":[' + b'{"b":1},' * 4094 + b'"' + b'{\\"' * 100_000 + b'"]}').keys() == {"a"}
    assert json_object(b'{"a":"' + b"{" * 100_000 + b'"}').keys() == {"a"}
    assert json_object(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize("shift", range(3))
def test_objects_of_a_large_body_are_counted_where_it_is_cut_too(shift: int) -> None:
    texts = b'"a{",' * (2 * 4096 - 1)
    body = b'{"a":[' + b" " * (2**18 + shift) + texts
    assert len(json_object(body + b"1]}")["a"]) == 2 * 4096
    with pytest.raises(BadRequest, match="more than 4096 JSON objects"):
        json_object(body + b'"a{"]}')


@pytest.mark.parametrize(
    ("one", "limit", "what"),
    [(b"[]", MAX_ARRAYS - 1, "8192 JSON arrays"), (b"[" * 60 + b"]" * 60, (MAX_ARRAYS - 1) // 60, "8192 JSON arrays"),
     (b'[{"b":1}]', 4095, "4096 JSON objects")],
)  # fmt: skip
def test_more_arrays_than_a_request_needs_are_refused_before_they_are_read(one: bytes, limit: int, what: str) -> None:
    assert len(json_object(b'{"a":[' + b",".join([one] * limit) + b"]}")["a"]) == limit
    with pytest.raises(BadRequest, match=f"more than {what}"):
        json_object(b'{"a":[' + b",".join([one] * (limit + 60)) + b"]}")


def test_more_names_than_a_request_needs_are_refused_before_they_are_read() -> None:
    def names(count: int) -> bytes:
        return b"{" + b",".join(b'"%d":1' % number for number in range(count)) + b"}"

    assert len(json_object(names(MAX_NAMES))) == MAX_NAMES
    with pytest.raises(BadRequest, match=f"more than {MAX_NAMES} JSON names"):
        json_object(names(MAX_NAMES + 1))


@pytest.mark.parametrize("text", [b"[" * 10**6, b":" * 10**6, b"," * 2 * 10**6, b'[\\":' * 10**5, b"[\\\\" * 10**5])
def test_brackets_colons_and_commas_inside_texts_are_not_counted(text: bytes) -> None:
    assert json_object(b'{"a":"' + text + b'"}').keys() == {"a"}


def test_more_values_than_a_prompt_of_the_context_are_refused_before_they_are_read() -> None:
    def ids(count: int) -> bytes:
        return b'{"prompt":[' + b"1," * (count - 1) + b"1]}"

    most = max_values_for(2048)
    assert 2048 < most < 70_000 and max_values_for(None) == max_values_for(2**40) == MAX_VALUES > 2**20
    assert len(json_object(ids(most), max_values=most)["prompt"]) == most
    with pytest.raises(BadRequest, match=f"more than {most} JSON values"):
        json_object(ids(most + 2), max_values=most)
    assert len(json_object(ids(most + 2))["prompt"]) == most + 2
    with pytest.raises(BadRequest, match=f"more than {MAX_VALUES} JSON values"):
        json_object(ids(MAX_VALUES + 2))
