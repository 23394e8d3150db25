"""A decode worker dies under streams of every kind: another one goes on, and no client can tell."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.stack import API_KEY, Stack
from support.streams import alike, by_choice
from support.tiny_models import TinyModel, make_model

STREAMS = 12
TOKENS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TinyModel("llama", max_position=2048))


@dataclass
class Client:
    """One streamed request and what came of it: the data of each event, and when."""

    path: str
    body: dict[str, Any]
    request_id: str
    events: list[bytes] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    raw: bytes = b""

    def run(self, url: str) -> None:
        headers = {"authorization": f"Bearer {API_KEY}", "x-request-id": self.request_id}
        request = urllib.request.Request(url + self.path, json.dumps(self.body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                for line in response:
                    self.raw += line
                    if line.startswith(b"data: "):
                        self.events.append(line[6:].strip())
                        self.times_s.append(time.monotonic())
        except Exception as error:
            self.events.append(json.dumps({"cut": repr(error)}).encode())

    def again(self, url: str) -> Client:
        """The same request once more, undisturbed."""
        client = Client(self.path, self.body, self.request_id)
        client.run(url)
        return client

    @property
    def shown(self) -> list[Any]:
        """What was said, but for when it was and whose cache it hit."""
        shown = by_choice(self.events)
        for event in shown:
            event.pop("created", None)
            event.get("usage", {}).pop("prompt_tokens_details", None)
        return shown

    @property
    def gap_s(self) -> float:
        return max((after - before for before, after in zip(self.times_s, self.times_s[1:], strict=False)), default=0.0)


def client(number: int, case: int) -> Client:
    """Greedy and seeded, plain and with all that makes resuming hard, chat and completion."""
    hard: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 7 + number, "top_p": 0.9},
        {"temperature": 1.0, "seed": number, "n": 3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 0.8, "seed": number, "min_tokens": 60, "repetition_penalty": 1.1, "return_token_ids": True},
        {"temperature": 0.9, "seed": number, "n": 2, "stop": ["zu", "e f", " the"], "min_tokens": 40 + 7 * number},
        {"temperature": 0.7, "seed": number},
    ]
    kind = hard[number % len(hard)]
    # Few candidates: see tests/property/test_resume.py.
    shared = {"top_k": 4, "model": "tiny", "max_tokens": TOKENS, "ignore_eos": True, "stream": True, **kind}
    shared["stream_options"] = {"include_usage": number % 3 != 2}
    request_id = f"case{case}-stream{number}"
    if number % 2:
        text = " ".join(f"word{(case * 31 + number * 7 + i) % 97}" for i in range(60))
        body = {**shared, "messages": [{"role": "user", "content": text}], "logprobs": True, "top_logprobs": 2}
        return Client("/v1/chat/completions", body, request_id)
    prompt = [3 + (case * 131 + number * 17 + i * (number + 1)) % 630 for i in range(300)]
    return Client("/v1/completions", {**shared, "prompt": prompt, "logprobs": 2}, request_id)


def metrics(stack: Stack) -> dict[str, float]:
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def resumed(stack: Stack) -> float:
    return sum(
        value
        for name, value in metrics(stack).items()
        if name.startswith("baton_gateway_resumes_total{") and 'outcome="resumed"' in name
    )


def cached_on_prefill(stack: Stack) -> float:
    """Prompt tokens that the prefill worker found in its cache; the prompts have no block in common."""
    with urllib.request.urlopen(f"{stack.workers['prefill-0'].url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    hits = [line for line in lines if "prompt_tokens_by_source" in line and "local_cache_hit" in line]
    return sum(float(line.rpartition(" ")[2]) for line in hits)


def under_load(stack: Stack, case: int, fault: Callable[[], None], begun: int) -> list[Client]:
    """Runs the streams; the fault comes once so many events have."""
    clients = [client(number, case) for number in range(STREAMS)]
    threads = [threading.Thread(target=each.run, args=(stack.url,)) for each in clients]
    for thread in threads:
        thread.start()
    end_s = time.monotonic() + 30
    while sum(len(each.events) for each in clients) < begun and time.monotonic() < end_s:
        time.sleep(0.005)
    fault()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a client hangs"
    return clients


def check(stack: Stack, clients: list[Client]) -> None:
    with ThreadPoolExecutor(len(clients)) as pool:
        undisturbed = list(pool.map(lambda each: each.again(stack.url), clients))
    for each, once_more in zip(clients, undisturbed, strict=True):
        assert each.events[-1] == b"[DONE]", (each.request_id, each.events[-1])
        for got, right in zip(each.shown, once_more.shown, strict=True):
            assert alike(got, right), (each.request_id, got, right)
        heads = {(event["id"], event["created"], event["model"]) for event in map(json.loads, each.events[:-1])}
        assert len(heads) == 1, "one answer has one id, one time, one model"
        assert each.raw == b"".join(b"data: %b\n\n" % event for event in each.events), "what workers tell stays inside"
    gaps_s = sorted(each.gap_s for each in clients)
    print(f"\nresumed {resumed(stack):.0f} of {len(clients)}, gap p50 {gaps_s[len(gaps_s) // 2]:.3f} s", end="")
    print(f" worst {gaps_s[-1]:.3f} s")


@pytest.fixture(scope="module")
def stack(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.up(model, tmp_path_factory.mktemp("stack"), prefill=1, decode=2) as up:
        yield up


@pytest.mark.parametrize("begun", [1, 150, 700])
def test_no_client_notices_that_a_decode_worker_was_killed(stack: Stack, begun: int) -> None:
    resumed_before, cached_before = resumed(stack), cached_on_prefill(stack)
    clients = under_load(stack, begun, stack.workers["decode-0"].kill, begun)
    moved = resumed(stack) - resumed_before
    assert cached_on_prefill(stack) > cached_before or not moved, "the prompt was still there, and prefill knew it"
    check(stack, clients)
    assert moved or begun == 1
    stack.restart_worker("decode-0")
    stack.wait_routable()
    stack.wait_quiet()


def test_no_client_notices_that_a_decode_worker_got_stuck(stack: Stack) -> None:
    stuck, resumed_before = stack.workers["decode-0"].process, resumed(stack)
    try:
        clients = under_load(stack, 1000, lambda: stuck.send_signal(signal.SIGSTOP), 150)
        assert resumed(stack) > resumed_before
        check(stack, clients)
    finally:
        stuck.send_signal(signal.SIGCONT)
    stack.wait_quiet()
