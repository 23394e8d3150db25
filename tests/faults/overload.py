"""Row 9: three and six times the load that fills the KV pools. Requests queue and are preempted; goodput stays."""

from __future__ import annotations

import time

from support.stack import Stack

from .cases import cases_of
from .client import Crowd, references
from .figures import quantile
from .story import Figure, Load

ONCE = 12
LOAD = Load(ONCE, prompt_tokens=(40, 200), max_tokens=(100, 200), whole_share=0.0)
POOL_BLOCKS = 96
"""Of 16 tokens: about six such requests at their longest, in each decode worker."""
SETTLE_S, WATCH_S = 2.0, 5.0


def overload(stack: Stack, times: int, seed: int) -> list[Figure]:
    """Loads of one, two, three and six times `ONCE` streams, one after the other, so many times."""
    cases = cases_of(LOAD, seed)
    right = references(stack.url, cases)
    goodput: dict[int, list[float]] = {1: [], 2: [], 3: [], 6: []}
    failed = wrong = 0
    before = preemptions(stack)
    for number in range(times):
        for factor, measured in goodput.items():
            load = Load(ONCE * factor, LOAD.prompt_tokens, LOAD.max_tokens, whole_share=0.0)
            crowd = Crowd(stack.url, load, cases, seed + number)
            crowd.start()
            time.sleep(SETTLE_S)
            began_s = time.monotonic()
            time.sleep(WATCH_S)
            ended_s = time.monotonic()
            crowd.stop()
            complete = [seen for seen in crowd.seen if seen.ending == "complete"]
            failed += len(crowd.seen) - len(complete)
            wrong += sum(seen.tokens != right[seen.case].tokens for seen in complete)
            tokens = sum(began_s <= time_s < ended_s for seen in complete for time_s in seen.times_s)
            measured.append(tokens / (ended_s - began_s))
    stack.wait_quiet()
    medians = {factor: quantile(measured, 0.5) for factor, measured in goodput.items()}
    peaks = {factor: max(value for n, value in medians.items() if n <= factor) for factor in (3, 6)}
    return [
        Figure("9", "failed", "requests", failed, 0, times=times),
        Figure("9", "wrong tokens", "requests", wrong, 0, times=times),
        Figure("9", "preemptions: the pools were full", "count", preemptions(stack) - before, 1, "higher", times),
        *(Figure("9", f"goodput at {n}x", "tokens/s", value, times=times) for n, value in medians.items()),
        *(
            Figure("9", f"goodput at {n}x, of the most up to there", "share", medians[n] / peak, 0.9, "higher", times)
            for n, peak in peaks.items()
        ),
    ]


def preemptions(stack: Stack) -> float:
    return sum(stack.metric(name, "vllm:num_preemptions_total") for name in stack.workers)
