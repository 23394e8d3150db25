"""A crowd of clients on a thread of its own: constant load over plain sockets, and a log of what each one saw."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from support.stack import API_KEY

from .story import Case, Load, Said, Seen

MODEL = "tiny"


def body_of(case: Case, *, stream: bool, salt: str | None = None) -> dict[str, Any]:
    sampling = {"temperature": 0} if case.seed is None else {"temperature": 0.8, "seed": case.seed}
    wanted = {"max_tokens": case.max_tokens, "ignore_eos": True, "return_token_ids": True, "stream": stream}
    narrowed = {} if salt is None else {"cache_salt": salt}
    return {"model": MODEL, "prompt": list(case.prompt), **sampling, **wanted, **narrowed, **case.extras}


async def ask(url: str, body: dict[str, Any], seen: Seen) -> None:
    """One request on a connection of its own; everything that comes is noted in `seen`. Raises nothing but
    CancelledError, which closes the connection."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, seen.deadline_s - now_s()) + 5.0):
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head_and(json.dumps(body).encode()))
            await _answer(reader, seen)
        seen.ended_s = now_s()
    except TimeoutError:
        pass  # it stays open: the checker says so
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        seen.ended_s = now_s()
        if seen.status == 0:
            seen.errors.append(f"connection: {type(error).__name__}")
    except asyncio.CancelledError:
        seen.left, seen.ended_s = True, now_s()
        raise
    finally:
        if writer is not None:
            writer.transport.abort()


def now_s() -> float:
    return time.monotonic()


def head_and(body: bytes, path: str = "/v1/completions") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "host: gateway",
        f"authorization: Bearer {API_KEY}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _answer(reader: asyncio.StreamReader, seen: Seen) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    seen.status = int(head.split(" ", 2)[1])
    if "\r\nretry-after:" in head:
        seen.retry_after = head.split("\r\nretry-after:", 1)[1].split("\r\n", 1)[0].strip()
    if "transfer-encoding: chunked" in head:
        await _events(reader, seen)
        return
    length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
    _whole(json.loads(await reader.readexactly(length)), seen)


async def _events(reader: asyncio.StreamReader, seen: Seen) -> None:
    """Server-sent events out of chunks, until the last chunk or the end of the connection."""
    pending = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pending += (await reader.readexactly(size + 2))[:-2]
        *events, pending = pending.split(b"\n\n")
        for event in events:
            note(event.removeprefix(b"data: "), seen)


def note(data: bytes, seen: Seen) -> None:
    """One event's data."""
    seen.after_end += bool(seen.dones or seen.errors)
    if data == b"[DONE]":
        seen.dones += 1
        return
    event = json.loads(data)
    if "error" in event:
        seen.errors.append(str(event["error"]["code"] or event["error"]["type"]))
    for choice in event.get("choices", ()):
        said = seen.said.setdefault(choice["index"], Said())
        hear(choice, said)
        if choice["index"] == 0:
            got = choice.get("token_ids") or ()
            seen.tokens += got
            seen.times_s += [now_s()] * len(got)


def hear(choice: dict[str, Any], said: Said) -> None:
    said.tokens += choice.get("token_ids") or ()
    said.text += choice["text"]
    said.finish = choice["finish_reason"] or said.finish
    if logprobs := choice.get("logprobs"):
        said.logprobs += zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)


def _whole(answer: dict[str, Any], seen: Seen) -> None:
    if seen.status == 200:
        note(json.dumps(answer).encode(), seen)
        seen.dones += 1
    else:
        seen.errors.append(f"{seen.status} {answer['error']['code'] or answer['error']['type']}")


class Crowd:
    """`start` keeps `load.streams` requests under way until `stop`, whose `seen` is complete."""

    def __init__(self, url: str, load: Load, cases: Sequence[Case], seed: int) -> None:
        self.seen: list[Seen] = []
        self._url, self._load, self._cases = url, load, cases
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="crowd")

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """No new requests from now on."""
        self._ending.set()

    def stop(self) -> None:
        """No new requests, and waits for those under way; a client has its own deadline."""
        self.end()
        self._thread.join(self._load.deadline_s + 30.0)
        assert not self._thread.is_alive(), "the clients hang"

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(self._load.streams)))

    async def _one(self, number: int) -> None:
        await asyncio.sleep(0.01 * number)
        while not self._ending.is_set():
            seen = self._next()
            salt = None if self._random.random() < 0.1 else f"{seen.number}"
            await ask(self._url, body_of(self._cases[seen.case], stream=seen.streamed, salt=salt), seen)
            if seen.ending in ("error", "silent"):
                await asyncio.sleep(0.1)

    def _next(self) -> Seen:
        began_s = now_s()
        case = self._random.randrange(len(self._cases))
        streamed = self._random.random() >= self._load.whole_share
        seen = Seen(len(self.seen), case, began_s, began_s + self._load.deadline_s, streamed)
        self.seen.append(seen)
        return seen


def references(url: str, cases: Sequence[Case], at_once: int = 4) -> list[Seen]:
    """Every case's answer from a healthy fleet. Raises AssertionError when one fails."""

    async def all_of_them() -> list[Seen]:
        gate = asyncio.Semaphore(at_once)
        seen = [Seen(number, number, now_s(), now_s() + 300.0) for number in range(len(cases))]

        async def one(number: int) -> None:
            async with gate:
                await ask(url, body_of(cases[number], stream=True, salt=f"ref-{number}"), seen[number])

        await asyncio.gather(*(one(number) for number in range(len(cases))))
        return seen

    answers = asyncio.run(all_of_them())
    for answer, case in zip(answers, cases, strict=True):
        assert answer.ending == "complete", answer
        assert len(answer.tokens) == case.max_tokens or "stop" in case.extras, answer
    return answers
