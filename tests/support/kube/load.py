"""Streams at a constant rate against a gateway, and what each client saw, as JSON lines.

    python load.py URL MODEL RATE OUT      the key in BATON_API_KEY; SIGTERM: no new requests, and the open ones end

Nothing is retried: a request that is refused, cut off, or answered otherwise than the same question before has failed.
The URL's name is resolved once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

DEADLINE_S = 60.0
QUESTIONS = (
    "What is a KV ticket?",
    "In Baton, what does a lease promise, and how long does it last by default? Explain it in one sentence, please.",
    "A worker has died and come back under the same address: explain what the epoch of a worker means, in short.",
    "Explain why the prefill worker keeps the KV blocks of a prompt until the decode worker has verified them all.",
)


@dataclass
class Seen:
    """One request as its client saw it; `failed` says why, None when all is well."""

    number: int
    began_s: float
    question: int
    status: int = 0
    text: str = ""
    done: bool = False
    failed: str | None = None
    took_s: float = 0.0
    first_s: float | None = None


@dataclass
class Load:
    host: str
    port: int
    model: str
    key: str
    out: IO[str]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    expected: dict[int, str] = field(default_factory=dict)

    async def run(self, rate: float) -> None:
        """Starts a request every 1/rate seconds, late ones included, until `ended`."""
        began_s, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self.ended.is_set():
                wait_s = began_s + number / rate - time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), max(0.0, wait_s))
                if not self.ended.is_set():
                    group.create_task(self._one(number))
                    number += 1

    async def _one(self, number: int) -> None:
        seen = Seen(number, time.time(), number % len(QUESTIONS))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._ask(seen)
            self._judge(seen)
        except TimeoutError:
            seen.failed = f"not over after {DEADLINE_S:g} s, status {seen.status}"
        except (OSError, EOFError, ValueError) as error:
            seen.failed = f"{type(error).__name__} after status {seen.status}: {error}"
        seen.took_s = time.time() - seen.began_s
        self.out.write(json.dumps(asdict(seen)) + "\n")
        self.out.flush()

    def _judge(self, seen: Seen) -> None:
        """Greedy answers to one question are equal."""
        if seen.status != 200:
            seen.failed = f"status {seen.status}"
        elif seen.failed is None and not seen.done:
            seen.failed = "the stream ended without [DONE]"
        elif seen.failed is None and self.expected.setdefault(seen.question, seen.text) != seen.text:
            seen.failed = f"another answer than before: {seen.text!r}"

    async def _ask(self, seen: Seen) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(self._request(seen.question))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            seen.status = int(head.split(" ", 2)[1])
            while seen.status == 200 and (size := int(await reader.readuntil(b"\r\n"), 16)):
                content = await reader.readexactly(size + 2)
                for event in content[:-2].split(b"\n\n"):
                    if event.startswith(b"data: "):
                        self._event(event.removeprefix(b"data: "), seen)
        finally:
            writer.transport.abort()

    def _event(self, data: bytes, seen: Seen) -> None:
        if data == b"[DONE]":
            seen.done = True
            return
        event = json.loads(data)
        if "error" in event:
            seen.failed = f"an error in the stream ({event['error'].get('code')}): {event['error'].get('message')}"
        for choice in event.get("choices", ()):
            seen.text += choice["delta"].get("content") or ""
            if seen.first_s is None and seen.text:
                seen.first_s = time.time() - seen.began_s

    def _request(self, question: int) -> bytes:
        messages = [{"role": "user", "content": QUESTIONS[question]}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 12, "stream": True}
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def run(load: Load, rate: float) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.ended.set)
    await load.run(rate)


def main() -> None:
    url, model, rate, out = sys.argv[1:]
    parts = urlsplit(url)
    assert parts.hostname is not None
    address = socket.gethostbyname(parts.hostname)
    with Path(out).open("w") as lines:
        load = Load(address, parts.port or 80, model, os.environ["BATON_API_KEY"], lines)
        asyncio.run(run(load, float(rate)))


if __name__ == "__main__":
    main()
