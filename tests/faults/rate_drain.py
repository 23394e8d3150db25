"""Row 17 at a rate: 150 requests a second to two gateways, one of which gets SIGTERM, as in a rolling update.

Clients go where /ready says 200, as a Kubernetes Service sends them; requests keep coming all the time.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from support.processes import Child
from support.stack import Stack

from .cases import cases_of
from .client import ask, body_of, now_s, references
from .figures import rate_per_s
from .story import Case, Figure, Load, Seen

RATE_PER_S = 150
LEAST_PER_S = 0.95 * RATE_PER_S  # a client that lags spares the gateways
FOR_S = 7.0
PROBE_S = 0.25
DRAIN_DELAY_S = 1.5
LOAD = Load(streams=0, prompt_tokens=(6, 12), max_tokens=(2, 3), cases=16)
SETTINGS = {"mode": "aggregated", "drain_delay_s": DRAIN_DELAY_S}


def at_a_rate(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    rng, cases = random.Random(seed), cases_of(LOAD, seed)
    asked: list[Seen] = []
    rates: list[float] = []
    bad_exits = went_on = 0
    with Stack.up(model, folder, prefill=0, decode=2, gateway=SETTINGS) as stack:
        right = references(stack.url, cases)
        for number in range(times):
            leaving, staying = stack.gateway, stack.start_gateway(name=f"gateway-{number}", **SETTINGS)
            assert leaving is not None
            stack.wait_ready()
            service = Service([leaving, staying])
            already = len(asked)
            crowd = threading.Thread(target=load, args=(service, cases, seed + number, asked))
            crowd.start()
            time.sleep(rng.uniform(1.5, 3.0))
            leaving.process.send_signal(signal.SIGTERM)
            at_s = time.monotonic()
            bad_exits += leaving.stop(60.0) != 0
            crowd.join()
            service.stop()
            rates.append(rate_per_s(asked[already:]))
            went_on += sum(seen.began_s > at_s for seen in asked[already:])
    wrong = sum(seen.ending == "complete" and seen.tokens != right[seen.case].tokens for seen in asked)
    failures = [seen for seen in asked if seen.ending != "complete"]
    for seen in failures[:5]:
        print(f"  failed: {seen.ending} {seen.status} {seen.errors}")
    return [
        Figure("17r", f"requests, {RATE_PER_S}/s wanted", "requests", len(asked), times=times),
        Figure("17r", "rate of the slowest round", "requests/s", min(rates), LEAST_PER_S, "higher", times),
        Figure("17r", "of these after SIGTERM", "requests", went_on, 1, "higher", times),
        Figure("17r", "failed", "requests", len(failures), 0, times=times),
        Figure("17r", "wrong tokens", "requests", wrong, 0, times=times),
        Figure("17r", "exits other than 0", "processes", bad_exits, 0, times=times),
    ]


class Service:
    """Which gateways are ready, looked at every `PROBE_S`."""

    def __init__(self, gateways: list[Child]) -> None:
        self._gateways = gateways
        self._ready = list(gateways)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def pick(self, rng: random.Random) -> str:
        return rng.choice(self._ready).url

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(PROBE_S):
            self._ready = [gateway for gateway in self._gateways if is_ready(gateway.url)] or self._ready


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.HTTPError, OSError):
        return False


def load(service: Service, cases: Sequence[Case], seed: int, asked: list[Seen]) -> None:
    asked += asyncio.run(open_loop(service, cases, seed))


async def open_loop(service: Service, cases: Sequence[Case], seed: int) -> list[Seen]:
    """A request every 1/`RATE_PER_S`, whatever became of those before."""
    rng = random.Random(seed)
    asked: list[Seen] = []
    tasks: list[asyncio.Task[None]] = []
    began_s = now_s()
    for number in range(int(RATE_PER_S * FOR_S)):
        await asyncio.sleep(max(0.0, began_s + number / RATE_PER_S - now_s()))
        seen = Seen(number, rng.randrange(len(cases)), now_s(), now_s() + 30.0, rng.random() < 0.5)
        asked.append(seen)
        body = body_of(cases[seen.case], stream=seen.streamed)
        tasks.append(asyncio.create_task(ask(service.pick(rng), body, seen)))
    await asyncio.gather(*tasks)
    return asked
