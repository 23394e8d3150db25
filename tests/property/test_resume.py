"""Any prefix of an answer goes on to the same tail, whatever was asked for and wherever it was cut."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.blocks import derive_key
from baton_api.handoff import HandOff
from baton_worker.process import Worker
from support.pair import NUMBERS, SALT, SECRET, Pair
from support.streams import alike, by_choice, split_events
from support.tiny_models import TinyModel, make_model

TOKENS = [5 + i * 7 % 600 for i in range(37)]
# Few candidates: with the whole vocabulary one draw in some thousands falls so close to the border of two tokens that
# the last bits of the logits, which depend on the batch, decide it.
FEW = {"top_k": 6}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "ignore_eos": True},
    {**FEW, "temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.8, "frequency_penalty": 0.4, "n": 3},
    {**FEW, "temperature": 1.0, "stop": ["e", "th"], "min_tokens": 9, "n": 2, "logprobs": 2},
    {**FEW, "temperature": 0.8, "repetition_penalty": 1.3, "logprobs": 0, "return_token_ids": True},
    {**FEW, "temperature": 1.5, "stop": ["zzzz", "\ufffd\ufffd", "a" * 9], "include_stop_str_in_output": True, "n": 2},
    {**FEW, "temperature": 1.0, "stop_token_ids": list(range(3, 60)), "min_tokens": 4, "n": 3},
]


class Workers:
    """A pair of workers on a loop of their own, asked for streams that can be resumed."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.pair = self.run(self._start(model, directory))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _start(self, model: Path, directory: Path) -> Pair:
        return await Pair.of(model, "inproc", directory).__aenter__()

    def close(self) -> None:
        self.run(self.pair.__aexit__())
        self.loop.close()

    def ask(self, emitted: str, *, remote: bool, chat: bool, **params: Any) -> list[tuple[str, bytes]]:
        return self.run(self._ask(emitted, remote, chat, params))

    async def _ask(self, emitted: str, remote: bool, chat: bool, params: dict[str, Any]) -> list[tuple[str, bytes]]:
        transfer_id = f"t{next(NUMBERS)}"
        ticket = self.pair.ticket(TOKENS, transfer_id) if remote else None
        body = {"model": "tiny", "prompt_token_ids": TOKENS, **params}
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}, "emitted": emitted}
        if chat and "logprobs" in params:
            streamed |= {"logprobs": True, "top_logprobs": params["logprobs"]}
        legs = [self._post(self.pair.decode, HandOff("decode", transfer_id, SALT.hex(), 60.0, ticket), streamed, chat)]
        if remote:
            body.pop("stop", None)
            legs.append(
                self._post(self.pair.prefill, HandOff("prefill", transfer_id, SALT.hex(), 60.0, ticket), body, False)
            )
        answers = await asyncio.gather(*legs)
        return split_events(answers[0])

    async def _post(self, worker: Worker, hand_off: HandOff, body: dict[str, Any], chat: bool) -> bytes:
        assert worker.http is not None
        path = "/v1/chat/completions" if chat else "/v1/completions"
        key = derive_key(SECRET, "worker-http").hex()
        response = await self.pair.client.request(
            "POST",
            f"http://127.0.0.1:{worker.http.port}{path}",
            body=json.dumps({**body, "kv_transfer_params": hand_off.to_params()}).encode(),
            headers=[("authorization", f"Bearer {key}"), ("x-request-id", "r")],
            timeout_s=60.0,
        )
        assert response.status == 200, response.body
        return response.body


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    model = make_model(tmp_path_factory.mktemp("model"), TinyModel("llama"))
    started = Workers(model, tmp_path_factory.mktemp("workers"))
    yield started
    started.close()


def check(workers: Workers, whole: list[tuple[str, bytes]], cuts: list[int], **asked: Any) -> None:
    """The answer cut after so many events, then again so many later, is the whole answer."""
    passed: list[tuple[str, bytes]] = []
    for cut in cuts:
        passed += workers.ask("".join(lines for lines, _ in passed), **asked)[:cut]
        if passed and not passed[-1][0]:
            return  # the usage has passed: nothing is left to resume
    passed += workers.ask("".join(lines for lines, _ in passed), **asked)
    assert passed[-1] == ("", b"[DONE]")
    assert alike(shown(passed), shown(whole)), (cuts, asked)


def shown(events: list[tuple[str, bytes]]) -> list[Any]:
    """What was said, with one id, time and model; whose cache it hit, another request may have changed."""
    said = by_choice(data for _, data in events)
    assert len({(event.pop("id"), event.pop("created"), event.pop("model")) for event in said}) == 1
    said[-1]["usage"].pop("prompt_tokens_details")
    return said


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_an_answer_cut_after_any_event_goes_on_to_the_same_end(workers: Workers, kind: int) -> None:
    asked = {"remote": kind % 2 == 0, "chat": kind in (1, 2), "seed": kind, "max_tokens": 12, **KINDS[kind]}
    whole = workers.ask("", **asked)
    for cut in range(len(whole) - 2):
        check(workers, whole, [cut], **asked)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**62),
    max_tokens=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    remote=st.booleans(),
    chat=st.booleans(),
)
def test_an_answer_cut_several_times_anywhere_goes_on_to_the_same_end(
    workers: Workers, kind: dict[str, Any], seed: int, max_tokens: int, cuts: list[int], remote: bool, chat: bool
) -> None:
    asked = {"remote": remote, "chat": chat, "seed": seed, "max_tokens": max_tokens, **kind}
    asked["min_tokens"] = min(max_tokens, asked.get("min_tokens", 0))
    check(workers, workers.ask("", **asked), cuts, **asked)


def test_what_goes_before_the_events_tells_all_tokens_once(workers: Workers) -> None:
    asked = {"remote": False, "chat": True, "seed": 5, "max_tokens": 30, "return_token_ids": True, "n": 2}
    events = workers.ask("", **asked)
    told: dict[str, list[int]] = {"0": [], "1": []}
    for line in itertools.chain.from_iterable(lines.splitlines() for lines, _ in events):
        if not line.startswith(":@"):
            told[line[1]] += map(int, line[2:].rstrip(".").split())
    sent: dict[str, list[int]] = {"0": [], "1": []}
    for event in by_choice(data for _, data in events):
        for choice in event["choices"]:
            sent[str(choice["index"])] += choice.get("token_ids", [])
    assert told == sent and all(told.values())
