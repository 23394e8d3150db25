"""A worker asked with text (`routing.keys: text`): tokenised beside the event loop, same answer as by token ids."""

from __future__ import annotations

import asyncio
import json
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from baton_api.blocks import derive_key
from baton_wire.http_client import Response
from support.pair import SECRET, Pair
from support.tiny_models import TinyModel, make_model

TEXT = "the quick brown fox jumps over the lazy dog " * 40


async def ask(pair: Pair, path: str = "/v1/completions", **fields: Any) -> Response:
    assert pair.decode.http is not None
    body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "return_token_ids": True, **fields}
    return await pair.client.request(
        "POST",
        f"http://127.0.0.1:{pair.decode.http.port}{path}",
        body=json.dumps(body).encode(),
        headers=[("authorization", f"Bearer {derive_key(SECRET, 'worker-http').hex()}")],
        timeout_s=60.0,
    )


def tokens_of(answer: Response) -> list[int]:
    assert answer.status == 200, answer.body
    token_ids: list[int] = json.loads(answer.body)["choices"][0]["token_ids"]
    return token_ids


async def test_a_long_text_is_tokenised_on_a_thread_and_answered_as_its_token_ids_are(tmp_path: Path) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path) as pair:
        ids = list(pair.decode.parts.tokenizer.encode(TEXT, add_special_tokens=True))
        by_ids = tokens_of(await ask(pair, prompt_token_ids=ids))
        by_text = await asyncio.gather(*(ask(pair, prompt=TEXT) for _ in range(4)))
        assert [tokens_of(answer) for answer in by_text] == [by_ids] * 4
        assert any(thread.name.startswith("tokenise") for thread in threading.enumerate())
        assert pair.decode.face.in_flight == 0
        too_long = await ask(pair, prompt=TEXT * 20)
        assert too_long.status == 400 and b"context" in too_long.body


async def test_more_texts_than_the_worker_may_hold_are_refused_with_a_reason(tmp_path: Path) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path, engine={"max_requests": 1}) as pair:
        answers = await asyncio.gather(*(ask(pair, prompt=TEXT) for _ in range(8)))
        refused = [answer for answer in answers if answer.status == 503]
        assert refused and all("retry-after" in answer.headers for answer in refused)
        assert any(answer.status == 200 for answer in answers)
        assert tokens_of(await ask(pair, prompt=TEXT)), "and afterwards there is room again"


async def test_offsets_of_halved_characters_are_the_same_streamed_and_whole(tmp_path: Path) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path) as pair:
        ids = pair.decode.parts.tokenizer.encode("a b 😀😃", add_special_tokens=False)
        fields = {
            "prompt": "x",
            "max_tokens": 60,
            "temperature": 1,
            "seed": 5,
            "logprobs": 1,
            "ignore_eos": True,
            "logit_bias": {str(token_id): 100 for token_id in ids},
        }
        whole = json.loads((await ask(pair, **fields)).body)["choices"][0]
        events = (await ask(pair, stream=True, **fields)).body.split(b"\n\n")
    chunks = [
        json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events if event.startswith(b"data: {")
    ]
    assert whole["logprobs"]["text_offset"] == [at for chunk in chunks for at in chunk["logprobs"]["text_offset"]]
    placed = list(zip(whole["logprobs"]["tokens"], whole["logprobs"]["text_offset"], strict=True))
    assert sum("\ufffd" in token for token, _ in placed) > 10
    for token, offset in placed:
        assert "\ufffd" in token or whole["text"].startswith(token, offset), (token, offset)


CHAT = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 3}
COMPLETION = {"prompt": "x", "logprobs": 3}
STYLES = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
SAMPLED = {"max_tokens": 40, "temperature": 1, "seed": 5, "ignore_eos": True, "n": 2}


@pytest.mark.parametrize(("path", "style"), STYLES)
async def test_a_whole_answer_is_the_sum_of_its_stream(tmp_path: Path, path: str, style: dict[str, Any]) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path) as pair:
        body = (await ask(pair, path, **style, **SAMPLED)).body
        events = (await ask(pair, path, stream=True, **style, **SAMPLED)).body.split(b"\n\n")
        plain = {name: value for name, value in style.items() if "logprobs" not in name}
        without = json.loads((await ask(pair, path, **plain, return_token_ids=False)).body)["choices"][0]
        assert without["logprobs"] is None and "token_ids" not in without
    assert msgspec.json.encode(msgspec.json.decode(body)) == body, "compact, and what one encoding of it all would be"
    chunks = [json.loads(event.removeprefix(b"data: "))["choices"] for event in events if event.startswith(b"data: {")]
    for whole in json.loads(body)["choices"]:
        parts = [part for part in chain(*chunks) if part["index"] == whole["index"]]
        shaped = [part["logprobs"] for part in parts if part["logprobs"]]
        for name, values in whole["logprobs"].items():
            assert values is None or list(chain(*(each[name] for each in shaped))) == values, name
        texts = [part["text"] if "text" in part else part["delta"].get("content", "") for part in parts]
        assert "".join(texts) == (whole["text"] if "text" in whole else whole["message"]["content"])
        assert list(chain(*(part.get("token_ids", ()) for part in parts))) == whole["token_ids"]
        assert (parts[-1]["finish_reason"], len(whole["token_ids"])) == (whole["finish_reason"], 40) == ("length", 40)


@pytest.mark.parametrize(("path", "style"), STYLES)
async def test_a_whole_answer_that_grows_too_large_is_the_requests_fault(
    tmp_path: Path, path: str, style: dict[str, Any]
) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path, max_answer_bytes=5000) as pair:
        refused = await ask(pair, path, **style, **SAMPLED)
        error = json.loads(refused.body)["error"]
        name = "top_logprobs" if "messages" in style else "logprobs"
        assert (refused.status, error["code"], error["param"]) == (400, "answer_too_large", name)
        assert f"the answer (n 2, max_tokens 40, {name} 3) is larger than 5000 bytes" in error["message"]
        assert "stream it (stream: true), or ask for less" in error["message"]
        streamed = await ask(pair, path, stream=True, **style, **SAMPLED)
        assert streamed.status == 200 and streamed.body.endswith(b"data: [DONE]\n\n") and len(streamed.body) > 5000
        small = await ask(pair, path, **{**style, **SAMPLED, "max_tokens": 4})
        assert small.status == 200 and len(small.body) < 5000
    # On the way out Pair sees that every block was given back.


async def test_the_largest_whole_answer_is_as_large_as_the_setting_says(tmp_path: Path) -> None:
    model = make_model(tmp_path, TinyModel("llama", max_position=4096))
    async with Pair.of(model, "inproc", tmp_path) as pair:
        whole = await ask(pair, **COMPLETION, **SAMPLED)
    for size, status in ((len(whole.body), 200), (len(whole.body) - 1, 400)):
        async with Pair.of(model, "inproc", tmp_path, max_answer_bytes=size) as pair:
            assert (await ask(pair, **COMPLETION, **SAMPLED)).status == status
