"""The `openai` Python client, unmodified, against the gateway with a real prefill and a real decode process."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import openai
import pytest

from support.stack import API_KEY, Stack
from support.tiny_models import TinyModel, make_model

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")
HELLO = [{"role": "user", "content": "Prefill runs the first leg, decode runs the second. What is next?"}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    model = make_model(directory / "model", TinyModel("llama", max_position=2048))
    with Stack.up(model, directory / "run") as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=API_KEY, max_retries=0, timeout=30) as client:
        yield client
    stack.wait_quiet()


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_chat_answers_whole_and_streamed_alike(client: openai.OpenAI) -> None:
    wanted = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0, "seed": 3}
    whole = client.chat.completions.create(**wanted)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage.prompt_tokens > 10 and whole.usage.completion_tokens <= 12


def test_without_include_usage_no_usage_comes(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, stream=True))  # type: ignore[call-overload]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_completions_take_text_and_token_ids(client: openai.OpenAI) -> None:
    text = client.completions.create(model="tiny", prompt="The quick brown fox", max_tokens=5, temperature=0)
    ids = client.completions.create(model="tiny", prompt=[5, 6, 7, 8], max_tokens=5, temperature=0)
    assert text.choices[0].text and ids.usage is not None and ids.usage.prompt_tokens == 4


def test_stop_strings_end_the_answer_before_them(client: openai.OpenAI) -> None:
    free = client.completions.create(model="tiny", prompt="One two three", max_tokens=30, temperature=0).choices[0].text
    stop = free[len(free) // 2 : len(free) // 2 + 2]
    cut = client.completions.create(model="tiny", prompt="One two three", max_tokens=30, temperature=0, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == free[: free.index(stop)]


def test_logprobs_come_in_both_styles(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
        temperature=0,  # type: ignore[arg-type]
    )
    entries = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert entries is not None and len(entries) == 4
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
    legacy = client.completions.create(model="tiny", prompt="abc", max_tokens=3, logprobs=2, temperature=0)
    assert legacy.choices[0].logprobs is not None and len(legacy.choices[0].logprobs.token_logprobs or []) == 3


def test_n_choices_are_distinct_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=11, max_tokens=10)  # type: ignore[arg-type]
        return [choice.message.content for choice in sorted(answer.choices, key=lambda choice: choice.index)]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_errors_have_openai_shape(stack: Stack, client: openai.OpenAI) -> None:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as denied:
            stranger.models.list()
        assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=9)  # type: ignore[arg-type]
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"frobnicate": 1})  # type: ignore[arg-type]
    assert unknown.value.param == "frobnicate"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 2048, max_tokens=1)
    assert long.value.code == "context_length_exceeded" and "2048" in str(long.value)
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="tiny", prompt="x" * (17 * 2**20), max_tokens=1)
    assert large.value.status_code == 413


def test_a_cancelled_stream_frees_its_blocks(stack: Stack, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="tiny", prompt=[5] * 500, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(iter(stream)).choices
    stream.close()
    stack.wait_quiet(5.0)


def test_decode_computed_no_prompt_token_and_the_header_says_where_the_time_went(stack: Stack) -> None:
    body = {"model": "tiny", "prompt": [9 + i % 600 for i in range(700)], "max_tokens": 2, "temperature": 0}
    request = urllib.request.Request(
        f"{stack.url}/v1/completions", json.dumps(body).encode(), {"authorization": f"Bearer {API_KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        timing = response.headers["server-timing"]
        response.read()
    for span in ("receive", "tokenise", "queue", "route", "reserve", "prefill", "transfer", "first_decode"):
        assert f"{span};dur=" in timing, timing
    assert "0 prompt tokens computed here" in timing
    assert " B tcp" in timing
