"""Row 17: SIGTERM of a gateway under load: what it had admitted ends well, it stops being ready, it exits with 0."""

from __future__ import annotations

import random
import signal
import time
import urllib.error
import urllib.request
from collections import Counter

from support.stack import Stack

from .cases import cases_of
from .client import Crowd, references
from .story import Figure, Load

LOAD = Load(streams=50, prompt_tokens=(20, 100), max_tokens=(8, 48))


def drains(stack: Stack, times: int, seed: int) -> list[Figure]:
    """A new gateway for each time; clients stop asking at the signal, as a service does that sees it not ready."""
    rng, cases = random.Random(seed), cases_of(LOAD, seed)
    right = references(stack.url, cases)
    endings: Counter[str] = Counter()
    flying = wrong = bad_exits = still_ready = 0
    slowest_s = 0.0
    for number in range(times):
        gateway = stack.gateway
        assert gateway is not None
        crowd = Crowd(stack.url, LOAD, cases, seed + number)
        crowd.start()
        time.sleep(rng.uniform(1.0, 3.0))
        crowd.end()
        time.sleep(0.05)  # the last ones have connected
        signal_s = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        still_ready += _ready_after(gateway.url, 0.2)
        crowd.stop()
        bad_exits += gateway.stop(60.0) != 0
        slowest_s = max(slowest_s, time.monotonic() - signal_s)
        flying += sum(seen.flying(signal_s) for seen in crowd.seen)
        endings.update(seen.ending for seen in crowd.seen)
        wrong += sum(seen.ending == "complete" and seen.tokens != right[seen.case].tokens for seen in crowd.seen)
        stack.start_gateway()
        stack.wait_ready()
    return [
        Figure("17", "admitted requests under way at SIGTERM", "requests", flying, 1, "higher", times),
        Figure("17", "failed", "requests", endings.total() - endings["complete"], 0, times=times),
        Figure("17", "wrong tokens", "requests", wrong, 0, times=times),
        Figure("17", "ready 0.2 s after SIGTERM", "times", still_ready, 0, times=times),
        Figure("17", "exits other than 0", "processes", bad_exits, 0, times=times),
        Figure("17", "exit after", "s", slowest_s, 60.0, times=times),
    ]


def _ready_after(url: str, delay_s: float) -> bool:
    time.sleep(delay_s)
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.HTTPError, OSError):
        return False
