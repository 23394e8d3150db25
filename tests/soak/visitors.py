"""Who comes during a soak: well-behaved clients, ones that leave, ones that err, ones that are slow. Each visit ends in
bounded time and says what became of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faults.client import ask, body_of, head_and, now_s
from faults.story import Case, Seen
from support.stack import API_KEY

DEADLINE_S = 60.0
NEVER = {"open": "HUNG", "silent": "CUT OFF"}
Visit = Callable[["Visitors"], Awaitable[str]]


@dataclass(slots=True)
class Visitors:
    """`visit` sends one of them, drawn by its share."""

    url: str
    cases: list[Case]
    references: list[list[int]]
    rng: random.Random
    count: int = 0

    async def visit(self) -> str:
        """What became of it, "kind: ending"."""
        self.count += 1
        kinds, shares = zip(*((kind, share) for kind, share in SHARES), strict=True)
        kind = self.rng.choices(kinds, shares)[0]
        try:
            async with asyncio.timeout(2 * DEADLINE_S):
                return f"{kind.__name__}: {await kind(self)}"
        except TimeoutError:
            return f"{kind.__name__}: HUNG"
        except (OSError, asyncio.IncompleteReadError) as error:
            return f"{kind.__name__}: {type(error).__name__}"
        except Exception as error:
            print(f"{kind.__name__}: {error!r}", flush=True)
            return f"{kind.__name__}: BUG"

    def next_case(self) -> tuple[Seen, dict[str, object]]:
        """A known request; half of them share their prefix with earlier ones."""
        number = self.rng.randrange(len(self.cases))
        seen = Seen(self.count, number, now_s(), now_s() + DEADLINE_S, self.rng.random() < 0.7)
        salt = None if self.rng.random() < 0.5 else f"{self.rng.randrange(10**9)}"
        return seen, body_of(self.cases[number], stream=seen.streamed, salt=salt)

    def judge(self, seen: Seen) -> str:
        """Never wrong tokens, whatever happened (invariant I2)."""
        reference = self.references[seen.case]
        if seen.tokens != reference[: len(seen.tokens)]:
            return "WRONG TOKENS"
        if seen.ending == "complete" and len(seen.tokens) != len(reference):
            return "SHORT ANSWER"
        if seen.ending in NEVER:
            return NEVER[seen.ending]
        return seen.errors[0] if seen.errors else seen.ending

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


async def asks(visitors: Visitors) -> str:
    seen, body = visitors.next_case()
    await ask(visitors.url, body, seen)
    return visitors.judge(seen)


async def leaves(visitors: Visitors) -> str:
    """Before the first token, or in the middle of the answer."""
    seen, body = visitors.next_case()
    asking = asyncio.create_task(ask(visitors.url, body, seen))
    await asyncio.wait([asking], timeout=visitors.rng.choice((0.0, 0.005, 0.02, 0.1, 0.3)))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return visitors.judge(seen)


async def chats(visitors: Visitors) -> str:
    """Text, several choices, log probabilities, a stop string."""
    rng = visitors.rng
    words = " ".join(
        rng.choice(("baton", "relay", "prefill", "decode", "ship", "sea")) for _ in range(rng.randint(2, 60))
    )
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": rng.randint(1, 16),
        "n": rng.choice((1, 1, 1, 3)),
        "logprobs": rng.random() < 0.3,
        "stop": ["zz"],
        "seed": rng.randrange(10**6),
        "stream": rng.random() < 0.5,
    }
    return await _status(visitors, head_and(json.dumps(body).encode(), "/v1/chat/completions"))


MISTAKES = (
    head_and(b'{"model":"tiny"'),
    head_and(b'{"model":"tiny","prompt":"x","temperature":9}'),
    head_and(b'{"model":"other","prompt":"x"}'),
    head_and(json.dumps({"model": "tiny", "prompt": list(range(3, 600)) * 5}).encode()),
    head_and(b'{"model":"tiny","prompt":"x","tools":[1]}'),
    head_and(b"{}").replace(API_KEY.encode(), b"sk-wrong"),
    head_and(b"{}", "/nowhere"),
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
)


async def errs(visitors: Visitors) -> str:
    return await _status(visitors, visitors.rng.choice(MISTAKES))


async def dawdles(visitors: Visitors) -> str:
    """Half a request, then silence for a while, then gone."""
    _, body = visitors.next_case()
    request = head_and(json.dumps(body).encode())
    reader, writer = await asyncio.open_connection(*visitors.address)
    try:
        writer.write(request[: visitors.rng.randrange(1, len(request))])
        await asyncio.sleep(visitors.rng.uniform(0.5, 4.0))
    finally:
        writer.transport.abort()
    del reader
    return "gone"


async def reads_slowly(visitors: Visitors) -> str:
    """Takes a few bytes of a stream now and then, and leaves before its end."""
    _, body = visitors.next_case()
    reader, writer = await asyncio.open_connection(*visitors.address, limit=1024)
    try:
        writer.write(head_and(json.dumps({**body, "stream": True}).encode()))
        for _ in range(4):
            await reader.read(64)
            await asyncio.sleep(0.5)
    finally:
        writer.transport.abort()
    return "gone"


async def looks(visitors: Visitors) -> str:
    path = visitors.rng.choice(("/v1/models", "/ready", "/health", "/metrics", "/openapi.json"))
    return await _status(visitors, head_and(b"", path).replace(b"POST", b"GET"))


SHARES: tuple[tuple[Visit, float], ...] = (
    (asks, 40), (chats, 15), (leaves, 15), (errs, 15), (dawdles, 5), (reads_slowly, 5), (looks, 5),
)  # fmt: skip


async def _status(visitors: Visitors, request: bytes) -> str:
    """The status of the one answer, read to its end."""
    reader, writer = await asyncio.open_connection(*visitors.address)
    try:
        writer.write(request.replace(b"host: ", b"connection: close\r\nhost: ", 1))
        answer = await reader.read()
    finally:
        writer.transport.abort()
    return answer[9:12].decode("latin-1") if answer else "closed"
