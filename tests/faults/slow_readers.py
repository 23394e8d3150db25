"""Row 28: clients that read one byte a second. What they cost in memory, and what the others notice."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from support.stack import Stack

from .cases import cases_of
from .client import Crowd
from .figures import quantile
from .readers import ANSWER_TOKENS, readers
from .story import Case, Figure, Load

SLOW = 24
KIB_PER_STREAM = 64
GENERATED = "vllm:generation_tokens_total"
ROOMY_BLOCKS = 24 * 130
"""Of KV for all that they ask for: nobody is preempted."""
OTHERS = Load(streams=6, prompt_tokens=(40, 100), max_tokens=(60, 100), whole_share=0.0)


def slow_readers(stack: Stack, times: int, seed: int) -> list[Figure]:
    """The others alone, then beside long answers with large events that are read a byte a second, once these stand
    still. Memory is the most of any round, above what there was before the first: as many readers that keep up, and
    the others, have used all of the KV pool and of the allocators' caches by then."""
    rng, cases = random.Random(seed), cases_of(OTHERS, seed)
    itl_ms: dict[bool, list[float]] = {False: [], True: []}
    warm_up(stack, rng, cases)
    grown: dict[str, list[float]] = {"gateway": [], "decode-0": []}
    for number in range(times):
        for slow in (False, True):
            before = {name: rss_kib(stack, name) for name in grown}
            with readers(stack.url, SLOW, rng.randrange(1 << 31)) if slow else nullcontext():
                if slow:
                    standing = wait_standing(stack) / SLOW
                    assert standing < ANSWER_TOKENS - 100, f"all {standing:.0f} tokens of an answer found room"
                    for name, kib in before.items():
                        grown[name].append((rss_kib(stack, name) - kib) / SLOW)
                crowd = Crowd(stack.url, OTHERS, cases, seed + number)
                crowd.start()
                time.sleep(4.0)
                crowd.stop()
            stack.wait_quiet()
            gaps = [
                after - at for seen in crowd.seen for at, after in zip(seen.times_s, seen.times_s[1:], strict=False)
            ]
            itl_ms[slow].append(quantile(gaps, 0.5) * 1e3)
            assert all(seen.ending == "complete" for seen in crowd.seen)
    usual, beside = quantile(itl_ms[False], 0.5), quantile(itl_ms[True], 0.5)
    return [
        Figure(
            "28", "gateway's memory for each slow stream", "KiB", max(grown["gateway"]), KIB_PER_STREAM, times=times
        ),
        Figure(
            "28", "decode's memory for each slow stream", "KiB", max(grown["decode-0"]), KIB_PER_STREAM, times=times
        ),
        Figure("28", "others' time between tokens, alone", "ms", usual, times=times),
        Figure("28", "others' time between tokens beside slow readers", "ms", beside, times=times),
        Figure("28", "of that alone", "ratio", beside / usual, 1.05, times=times),
    ]


def warm_up(stack: Stack, rng: random.Random, cases: Sequence[Case]) -> None:
    """Batches of every size, then as many answers as long as the slow readers' at once, to readers that keep up."""
    for shortest in (1, ANSWER_TOKENS):
        with readers(stack.url, SLOW, rng.randrange(1 << 31), pause_s=0.0, shortest=shortest):
            crowd = Crowd(stack.url, OTHERS, cases, -1)
            crowd.start()
            time.sleep(4.0)
            crowd.stop()
            wait_standing(stack)
    stack.wait_quiet()


def wait_standing(stack: Stack, timeout_s: float = 180.0) -> float:
    """Until decode has made no token for a second: what its readers have taken so far is all that they get. Returns the
    tokens that were made meanwhile."""
    end_s, first = time.monotonic() + timeout_s, stack.metric("decode-0", GENERATED)
    last = first
    while True:
        time.sleep(1.0)
        made = stack.metric("decode-0", GENERATED)
        if made == last:
            return made - first
        assert time.monotonic() < end_s, "decode goes on for readers that do not read"
        last = made


def rss_kib(stack: Stack, name: str) -> int:
    child = stack.gateway if name == "gateway" else stack.workers[name]
    assert child is not None
    lines = Path(f"/proc/{child.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
