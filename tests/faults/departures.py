"""Rows 26 and 27: clients that leave before the first token, mid-stream, or from an answer that is not streamed.

Each time: how long until no worker holds a block for it; and that somebody who asks right then does not wait: the
median time to first token is at most half more than that of one who asks after nobody left, in turn with the others,
and 50 ms for the chunk of the prompt under way, which is computed to its end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from support.stack import Stack

from .client import ask, body_of, now_s
from .figures import quantile
from .story import Case, Figure, Seen

FREE_S = 0.5
FOLLOWER, FOLLOWER_S = 1.5, 0.05
LEAVES_AT = (0.1, 0.7)
"""When a client leaves that does not wait for tokens: share of the time to first token that was measured before."""
TRIES = 20
PROMPT_TOKENS = {"26": 1900, "27": 300, "27w": 300}
ANSWER_TOKENS = {"26": 100, "27": 1500, "27w": 1500}
KINDS = {"26": "before the first token", "27": "mid-stream", "27w": "from an answer not streamed"}


def departures(stack: Stack, times: int, seed: int) -> list[Figure]:
    """On a fleet that is otherwise idle, so that what is held is held for the one who left."""
    rng = random.Random(seed)
    ttft_s = min(_first_token_s(stack, rng, PROMPT_TOKENS["26"]) for _ in range(3))
    figures = []
    for row, kind in KINDS.items():
        freed, followers, usual, noticed = [], [], [], 0
        for _ in range(max(times, 5)):
            usual.append(_follower(stack, rng))
            noticed += _leave(stack, row, rng, ttft_s)
            freed.append(_free_after_s(stack))
            _leave(stack, row, rng, ttft_s)
            followers.append(_follower(stack, rng))  # at once: what is held for the other one is in its way
            _free_after_s(stack)
        figures += [
            Figure(row, f"left {kind}: blocks were held then", "times", noticed, 1, "higher", len(usual)),
            Figure(row, f"left {kind}: blocks free within", "s", max(freed), FREE_S, times=len(freed)),
            *follower(row, kind, usual, followers),
        ]
    return figures


def follower(row: str, kind: str, usual: Sequence[float], followers: Sequence[float]) -> list[Figure]:
    """The next one's time to first token, held against the undisturbed one."""
    undisturbed_s = quantile(usual, 0.5)
    bar_s = FOLLOWER * undisturbed_s + FOLLOWER_S
    return [
        Figure(row, "TTFT with nobody leaving, median", "s", undisturbed_s, times=len(usual)),
        Figure(
            row, f"left {kind}: the next one's TTFT, median", "s", quantile(followers, 0.5), bar_s, times=len(followers)
        ),
    ]


def _leave(stack: Stack, row: str, rng: random.Random, ttft_s: float) -> bool:
    """Somebody leaves; whether a worker held blocks at that moment."""
    for _ in range(TRIES):
        if (held := asyncio.run(_visit(stack, row, rng, ttft_s))) is not None:
            return held
        _free_after_s(stack)
    raise AssertionError(f"row {row}: the answer was always quicker than the client that wanted to leave")


def _free_after_s(stack: Stack) -> float:
    """How long from now until no worker holds anything."""
    left_s = time.monotonic()
    while holding(stack):
        assert time.monotonic() - left_s < 30.0, "blocks are held for nobody"
        time.sleep(0.005)
    return time.monotonic() - left_s


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
