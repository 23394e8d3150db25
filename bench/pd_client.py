"""A bounded load of streamed completions, and what each client saw.

Standard library, a thread a stream: the same for every peer.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

STREAM_S = 120.0


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer: seconds to its first token and between its tokens, and the tokens."""

    ttft_s: float
    tpot_s: float
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    port: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    streams: tuple[Stream, ...]
    wall_s: float

    @property
    def ttft_ms(self) -> float:
        return 1e3 * median(stream.ttft_s for stream in self.streams)

    @property
    def tpot_ms(self) -> float:
        return 1e3 * median(stream.tpot_s for stream in self.streams)


def offer(target: Target, prompts: Sequence[list[int]], output: int, concurrency: int) -> Load:
    """All prompts once, `concurrency` at a time. Raises RuntimeError when a stream fails or is cut short."""
    left: SimpleQueue[tuple[int, list[int]]] = SimpleQueue()
    for numbered in enumerate(prompts):
        left.put(numbered)
    done: dict[int, Stream | Exception] = {}
    threads = [threading.Thread(target=_work, args=(target, left, output, done)) for _ in range(concurrency)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - began_s
    streams = [done[number] for number in range(len(prompts))]
    for stream in streams:
        if isinstance(stream, Exception):
            raise RuntimeError(f"a stream on port {target.port} failed: {stream!r}") from stream
    return Load(tuple(stream for stream in streams if isinstance(stream, Stream)), wall_s)


def _work(
    target: Target, left: SimpleQueue[tuple[int, list[int]]], output: int, done: dict[int, Stream | Exception]
) -> None:
    while True:
        try:
            number, prompt = left.get_nowait()
        except Empty:
            return
        try:
            done[number] = stream(target, prompt, output)
        except Exception as error:
            done[number] = error


def stream(target: Target, prompt: list[int], output: int) -> Stream:
    """One greedy completion of exactly `output` tokens."""
    body = {
        "model": "bench", "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True,
        "return_token_ids": True,
    }  # fmt: skip
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {target.key}"} if target.key else {})
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=STREAM_S)
    try:
        began_s = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        first_s = last_s = 0.0
        token_ids: list[int] = []
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise RuntimeError(f"HTTP {answer.status}: {answer.read()[:300]!r}")
            for line in answer:
                ids = _token_ids(line)
                if ids:
                    last_s = time.perf_counter()
                    first_s = first_s or last_s
                    token_ids += ids
    finally:
        connection.close()
    if len(token_ids) != output:
        raise RuntimeError(f"{len(token_ids)} tokens instead of {output}")
    return Stream(first_s - began_s, (last_s - first_s) / (output - 1), tuple(token_ids))


def _token_ids(line: bytes) -> list[int]:
    """Of one line of an event stream."""
    if not line.startswith(b"data: {"):
        return []
    chunk: dict[str, Any] = json.loads(line[6:])
    if "error" in chunk:
        raise RuntimeError(f"the stream ended with {chunk['error']}")
    return [token_id for choice in chunk.get("choices", ()) for token_id in choice.get("token_ids") or ()]
