"""A worker asked with text (`routing.keys: text`): tokenised beside the event loop, same answer as by token ids."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from baton_api.blocks import derive_key
from baton_wire.http_client import Response
from support.pair import SECRET, Pair
from support.tiny_models import TinyModel, make_model

TEXT = "the quick brown fox jumps over the lazy dog " * 40


async def ask(pair: Pair, **fields: Any) -> Response:
    assert pair.decode.http is not None
    body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "return_token_ids": True, **fields}
    return await pair.client.request(
        "POST",
        f"http://127.0.0.1:{pair.decode.http.port}/v1/completions",
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
    for name, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][name]] == values, name
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    placed = list(zip(whole["logprobs"]["tokens"], whole["logprobs"]["text_offset"], strict=True))
    assert sum("\ufffd" in token for token, _ in placed) > 10
    for token, offset in placed:
        assert "\ufffd" in token or whole["text"].startswith(token, offset), (token, offset)
