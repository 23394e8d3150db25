"""Rows 26 and 27: clients that leave before the first token, mid-stream, or from an answer that is not streamed.

Each time: how long until no worker holds a block for it; and that somebody who asks right then does not wait.
"""

from __future__ import annotations

import asyncio
import random
import time

from support.stack import Stack

from .client import ask, body_of, now_s
from .figures import quantile
from .story import Case, Figure, Seen

FREE_S = 0.5
LEAVES_AT = (0.1, 0.7)
"""When a client leaves that does not wait for tokens: share of the time to first token that was measured before."""
TRIES = 20
PROMPT_TOKENS = {"26": 1900, "27": 300, "27w": 300}
ANSWER_TOKENS = {"26": 100, "27": 1500, "27w": 1500}
KINDS = {"26": "before the first token", "27": "mid-stream", "27w": "from an answer not streamed"}


def departures(stack: Stack, times: int, seed: int) -> list[Figure]:
    """On a fleet that is otherwise idle, so that what is held is held for the one who left."""
    rng = random.Random(seed)
    usual = [_follower(stack, rng) for _ in range(5)]
    ttft_s = min(_first_token_s(stack, rng, PROMPT_TOKENS["26"]) for _ in range(3))
    figures = []
    for row, kind in KINDS.items():
        freed, followers, noticed = [], [], 0
        for _ in range(times):
            with_blocks, took_s = _leave(stack, row, rng, ttft_s)
            noticed += with_blocks
            freed.append(took_s)
            followers.append(_follower(stack, rng))
        figures += [
            Figure(row, f"left {kind}: blocks were held then", "times", noticed, 1, "higher", times),
            Figure(row, f"left {kind}: blocks free within", "s", max(freed), FREE_S, times=times),
            Figure(row, f"left {kind}: the next one's TTFT, median", "s", quantile(followers, 0.5), times=times),
        ]
    return [*figures, Figure("26", "TTFT with nobody leaving, median", "s", quantile(usual, 0.5), times=len(usual))]


def _leave(stack: Stack, row: str, rng: random.Random, ttft_s: float) -> tuple[bool, float]:
    """Whether a worker held blocks at that moment, and how long until none did."""
    for _ in range(TRIES):
        held = asyncio.run(_visit(stack, row, rng, ttft_s))
        left_s = time.monotonic()
        while holding(stack):
            assert time.monotonic() - left_s < 30.0, "blocks are held for nobody"
            time.sleep(0.005)
        if held is not None:
            return held, time.monotonic() - left_s
    raise AssertionError(f"row {row}: the answer was always quicker than the client that wanted to leave")


async def _visit(stack: Stack, row: str, rng: random.Random, ttft_s: float) -> bool | None:
    """Asks and leaves; whether blocks were held then, None when the moment had passed already."""
    case = Case(tuple(rng.randrange(3, 640) for _ in range(PROMPT_TOKENS[row])), ANSWER_TOKENS[row])
    seen = Seen(0, 0, now_s(), now_s() + 60.0)
    task = asyncio.create_task(ask(stack.url, body_of(case, stream=row != "27w"), seen))
    if row == "27":
        while len(seen.tokens) < rng.randint(1, 30):
            await asyncio.sleep(0.002)
    else:
        await asyncio.sleep(ttft_s * rng.uniform(*LEAVES_AT))
    held = await asyncio.to_thread(holding, stack)
    in_time = seen.ending == "open" and not (row == "26" and seen.tokens)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return held if in_time else None


def holding(stack: Stack) -> bool:
    """Whether any worker has blocks in use, a request or a lease."""
    return any(_busy(stack, name) for name in stack.workers)


def _busy(stack: Stack, name: str) -> bool:
    load = stack.info(name).load
    if load.free_blocks != load.total_blocks or load.running or load.waiting:
        return True
    return stack.metric(name, "baton_kv_leases") > 0


def _follower(stack: Stack, rng: random.Random) -> float:
    return _first_token_s(stack, rng, 100)


def _first_token_s(stack: Stack, rng: random.Random, prompt_tokens: int) -> float:
    case = Case(tuple(rng.randrange(3, 640) for _ in range(prompt_tokens)), 4)
    seen = Seen(0, 0, now_s(), now_s() + 60.0)
    asyncio.run(ask(stack.url, body_of(case, stream=True), seen))
    assert seen.ending == "complete" and seen.first_s is not None, seen
    return seen.first_s - seen.began_s
