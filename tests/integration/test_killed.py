"""kill -9 of prefill and of decode under streams: every answer whole and right, no hang, no block left."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.stack import API_KEY, Stack
from support.tiny_models import TinyModel, make_model

STREAMS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TinyModel("llama", max_position=2048))


@dataclass
class Outcome:
    """What one client saw: a status, the tokens so far, whether the stream said [DONE], the error event if any."""

    prompt: list[int]
    status: int = 0
    tokens: list[int] | None = None
    done: bool = False
    error: dict[str, Any] | None = None
    seconds: float = 0.0


def stream(stack: Stack, outcome: Outcome, max_tokens: int) -> None:
    body = {
        "model": "tiny",
        "prompt": outcome.prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{stack.url}/v1/completions", json.dumps(body).encode(), {"authorization": f"Bearer {API_KEY}"}
    )
    began_s = time.monotonic()
    outcome.tokens = []
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            outcome.status = response.status
            for line in response:
                if line.startswith(b"data: "):
                    take(outcome, line[6:].strip())
    except urllib.error.HTTPError as error:
        with error:
            outcome.status, outcome.error = error.code, json.loads(error.read())["error"]
    except OSError:
        pass  # the stream was cut after its error event
    except Exception as error:  # http.client.IncompleteRead and its like
        outcome.error = outcome.error or {"message": repr(error), "cut": True}
    outcome.seconds = time.monotonic() - began_s


def take(outcome: Outcome, data: bytes) -> None:
    assert outcome.tokens is not None
    if data == b"[DONE]":
        outcome.done = True
        return
    event = json.loads(data)
    if "error" in event:
        outcome.error = event["error"]
    for choice in event.get("choices", []):
        outcome.tokens += choice.get("token_ids", [])


def run_streams(stack: Stack, prompts: list[list[int]], max_tokens: int, fault: Any, after_s: float) -> list[Outcome]:
    outcomes = [Outcome(prompt) for prompt in prompts]
    threads = [threading.Thread(target=stream, args=(stack, outcome, max_tokens)) for outcome in outcomes]
    for thread in threads:
        thread.start()
    time.sleep(after_s)
    fault()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a client hangs"
    return outcomes


def prompts_for(case: int) -> list[list[int]]:
    return [[3 + (case * 131 + s * 17 + i * (s + 1)) % 630 for i in range(400)] for s in range(STREAMS)]


def check(outcomes: list[Outcome], reference: list[list[int]]) -> tuple[int, int]:
    """(complete, failed loudly); anything else is an assertion."""
    complete = 0
    for outcome, right in zip(outcomes, reference, strict=True):
        assert outcome.tokens is not None
        assert outcome.tokens == right[: len(outcome.tokens)], "a wrong token"
        if outcome.done:
            assert outcome.tokens == right and outcome.error is None
            complete += 1
        else:
            assert outcome.error is not None, outcome
    return complete, len(outcomes) - complete


@pytest.mark.parametrize("case", range(3))
def test_killing_prefill_costs_no_request(model: Path, tmp_path: Path, case: int) -> None:
    with Stack.up(model, tmp_path, prefill=1, decode=1) as stack:
        prompts = prompts_for(case)
        after_s = (0.0, 0.05, 0.2)[case]
        outcomes = run_streams(stack, prompts, 60, stack.workers["prefill-0"].kill, after_s)
        reference = [answer_of(stack, prompt, 60) for prompt in prompts]
        assert check(outcomes, reference) == (STREAMS, 0), [outcome.error for outcome in outcomes]
        stack.wait_quiet()


def test_killing_one_of_two_decode_workers_costs_no_request(model: Path, tmp_path: Path) -> None:
    with Stack.up(model, tmp_path, prefill=1, decode=2) as stack:
        prompts = prompts_for(10)
        outcomes = run_streams(stack, prompts, 200, stack.workers["decode-0"].kill, 0.4)
        reference = [answer_of(stack, prompt, 200) for prompt in prompts]
        assert check(outcomes, reference) == (STREAMS, 0), [outcome.error for outcome in outcomes]
        stack.wait_quiet()


def answer_of(stack: Stack, prompt: list[int], max_tokens: int) -> list[int]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    status, answer = stack.post("/v1/completions", {**body, "return_token_ids": True})
    assert status == 200, answer
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens
