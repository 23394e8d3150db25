"""Row 28: clients that read one byte a second. What they cost in memory, and what the others notice."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from pathlib import Path

from support.stack import Stack

from .cases import cases_of
from .client import Crowd
from .figures import quantile
from .readers import readers
from .story import Figure, Load

SLOW = 24
KIB_PER_STREAM = 64
OTHERS = Load(streams=6, prompt_tokens=(40, 100), max_tokens=(60, 100), whole_share=0.0)


def slow_readers(stack: Stack, times: int, seed: int) -> list[Figure]:
    """The others alone, then beside long answers with large events that are read a byte a second, once these stand
    still. Memory is that of the last round: allocators grow in the first ones whatever the readers do."""
    rng, cases = random.Random(seed), cases_of(OTHERS, seed)
    itl_ms: dict[bool, list[float]] = {False: [], True: []}
    grown: dict[str, list[float]] = {"gateway": [], "decode-0": []}
    for number in range(-1, times):  # the first round only warms up: allocators keep what they once had
        for slow in (False, True):
            before = {name: rss_kib(stack, name) for name in grown}
            with readers(stack.url, SLOW, rng.randrange(1 << 31)) if slow else nullcontext():
                if slow:
                    wait_standing(stack)
                crowd = Crowd(stack.url, OTHERS, cases, seed + number)
                crowd.start()
                time.sleep(4.0)
                crowd.stop()
                if slow and number >= 0:
                    for name, kib in before.items():
                        grown[name].append((rss_kib(stack, name) - kib) / SLOW)
            stack.wait_quiet()
            gaps = [
                after - at for seen in crowd.seen for at, after in zip(seen.times_s, seen.times_s[1:], strict=False)
            ]
            if number >= 0:
                itl_ms[slow].append(quantile(gaps, 0.5) * 1e3)
            assert all(seen.ending == "complete" for seen in crowd.seen)
    usual, beside = quantile(itl_ms[False], 0.5), quantile(itl_ms[True], 0.5)
    return [
        Figure("28", "gateway's memory for each slow stream", "KiB", grown["gateway"][-1], KIB_PER_STREAM, times=times),
        Figure("28", "decode's memory for each slow stream", "KiB", grown["decode-0"][-1], KIB_PER_STREAM, times=times),
        Figure("28", "others' time between tokens, alone", "ms", usual, times=times),
        Figure("28", "others' time between tokens beside slow readers", "ms", beside, times=times),
        Figure("28", "of that alone", "ratio", beside / usual, 1.05, times=times),
    ]


def wait_standing(stack: Stack, timeout_s: float = 180.0) -> None:
    """Until decode has made no token for a second: what its readers have taken so far is all that they get."""
    end_s, last = time.monotonic() + timeout_s, -1.0
    while (made := stack.metric("decode-0", "vllm:generation_tokens_total")) != last:
        assert time.monotonic() < end_s, "decode goes on for readers that do not read"
        last = made
        time.sleep(1.0)


def rss_kib(stack: Stack, name: str) -> int:
    child = stack.gateway if name == "gateway" else stack.workers[name]
    assert child is not None
    lines = Path(f"/proc/{child.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
