"""One soak: a real fleet under light mixed load, workers killed now and then, everybody's vitals every few seconds."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.cpu import tree_cpu_s

from faults.client import references
from faults.story import Load
from faults.theatre import cases_of
from support.stack import Stack
from support.tiny_models import TinyModel, make_model

from .visitors import Visitors
from .vitals import Vitals, vitals

SAMPLE_S = 5.0
WARM_S = 240.0  # as many visits as can be: what fills up, fills up now
QUIET_S = 40.0
IDLE_S = 70.0  # after it no pooled connection is left (ClientLimits.idle_timeout_s)
AT_ONCE = 12
INEXCUSABLE = ("WRONG TOKENS", "SHORT ANSWER", "HUNG", "CUT OFF", "BUG", "500", "internal")
COMPLETE_SHARE = 0.95
BEGIN_PER_S = 4.0
MAX_PER_S = 25.0
RESTARTS = 3
MORTAL = ("decode-1", "prefill-1")
LOAD = Load(streams=1, prompt_tokens=(8, 400), max_tokens=(4, 60), cases=24)


@dataclass(frozen=True, slots=True)
class Plan:
    """`cpu_share` is of one core, all processes and the clients together."""

    minutes: float = 30.0
    cpu_share: float = 0.35
    kill_every_s: float = 150.0
    seed: int = 1
    transport: str = "tcp"


@dataclass(slots=True)
class Result:
    """Vitals by process: over time (seconds since the start), before the load and after it, all idle."""

    plan: Plan
    series: dict[str, list[tuple[float, Vitals]]] = field(default_factory=dict)
    before: dict[str, Vitals] = field(default_factory=dict)
    after: dict[str, Vitals] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    cpu_share: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What no killed worker excuses."""
        asked = sum(count for told, count in self.outcomes.items() if told.startswith("asks: "))
        complete = self.outcomes["asks: complete"]
        return [
            *(told for told in self.outcomes if any(word in told for word in INEXCUSABLE)),
            *(f"{name}: does not answer any more" for name in self.before if name not in self.after),
            *([f"only {complete} of {asked} asks were complete"] if complete < COMPLETE_SHARE * asked else []),
        ]


@contextmanager
def fleet(plan: Plan, directory: Path) -> Iterator[Stack]:
    model = make_model(directory / "model", TinyModel("llama", max_position=2048))
    # What the gateway remembers is full once the fleet is warm: what fills for hours looks like a leak.
    remembers = {"index_keys": 2_000, "text_cache_bytes": 64 * 1024}
    limits = {"max_connections_per_address": 256, "request_timeout_s": 50.0, **remembers}
    with Stack.up(model, directory / "run", prefill=2, decode=2, transport=plan.transport, gateway=limits) as stack:
        yield stack


class Soak:
    """`run` performs it."""

    def __init__(self, plan: Plan, stack: Stack, series: Path | None = None) -> None:
        """`series`: a file that gets a line of JSON for each process and moment."""
        self._file = series
        self._plan, self._stack = plan, stack
        self._rng = random.Random(plan.seed)
        cases = cases_of(LOAD, 1)
        right = [answer.tokens for answer in references(stack.url, cases)]
        self._visitors = Visitors(stack.url, cases, right, self._rng)
        self._per_s = BEGIN_PER_S
        self._began_s = 0.0
        self._ending = asyncio.Event()
        self._visits: set[asyncio.Task[None]] = set()
        self.result = Result(plan)

    async def run(self) -> Result:
        await self._load(WARM_S, share=1.5, kills=False)
        self.result.outcomes.clear()
        self.result.before = await self._idle()
        self.result.series.clear()
        await self._load(self._plan.minutes * 60.0, share=self._plan.cpu_share, kills=True)
        self.result.after = await self._idle()
        return self.result

    async def _load(self, for_s: float, *, share: float, kills: bool) -> None:
        self._began_s, began_cpu_s = time.monotonic(), tree_cpu_s(os.getpid())
        self._per_s = BEGIN_PER_S
        self._ending.clear()
        beside = [self._arrivals(), self._watch(share)] + ([self._reaper()] if kills else [])
        running = [asyncio.create_task(one) for one in beside]
        await self._pause(for_s)
        self._ending.set()
        await asyncio.gather(*running)
        await asyncio.gather(*self._visits)
        spent_s = tree_cpu_s(os.getpid()) - began_cpu_s
        self.result.cpu_share = spent_s / (time.monotonic() - self._began_s)

    async def _arrivals(self) -> None:
        """At random moments, `_per_s` of them, at most AT_ONCE under way."""
        while not self._ending.is_set():
            await self._pause(self._rng.expovariate(self._per_s))
            if len(self._visits) < AT_ONCE:
                visit = asyncio.create_task(self._visit())
                self._visits.add(visit)
                visit.add_done_callback(self._visits.discard)

    async def _visit(self) -> None:
        self.result.outcomes[await self._visitors.visit()] += 1

    async def _watch(self, cpu_share: float) -> None:
        """Vitals of all that lives; keeps the load at its share of the CPU."""
        spent_s, at_s = tree_cpu_s(os.getpid()), time.monotonic()
        while not self._ending.is_set():
            await self._pause(SAMPLE_S)
            for name, one in (await asyncio.to_thread(self._vitals)).items():
                self.result.series.setdefault(name, []).append((time.monotonic() - self._began_s, one))
                self._keep(name, one)
            now_spent_s, now_s = tree_cpu_s(os.getpid()), time.monotonic()
            share = max(0.01, (now_spent_s - spent_s) / (now_s - at_s))  # a killed process takes its time with it
            spent_s, at_s = now_spent_s, now_s
            self._per_s = min(MAX_PER_S, max(0.5, self._per_s * min(1.2, max(0.8, cpu_share / share))))

    def _keep(self, name: str, one: Vitals) -> None:
        if self._file is not None:
            told = {"process": name, "at_s": round(time.monotonic() - self._began_s, 2), **one.as_json()}
            with self._file.open("a") as file:
                file.write(json.dumps(told) + "\n")

    async def _reaper(self) -> None:
        """Kills a worker that may die, and starts it again on its ports, as a supervisor does."""
        while not self._ending.is_set():
            await self._pause(self._plan.kill_every_s * self._rng.uniform(0.7, 1.3))
            if self._ending.is_set():
                return
            name = MORTAL[self.result.kills % len(MORTAL)]
            old = self._stack.workers[name]
            old.kill()
            self.result.kills += 1
            await asyncio.sleep(self._rng.uniform(0.5, 3.0))
            await asyncio.to_thread(self._restart, name)

    def _restart(self, name: str) -> None:
        """On its old ports; meanwhile another process may have taken one of them: then on new ones."""
        for attempt in range(RESTARTS):
            try:
                if attempt == 0:
                    self._stack.restart_worker(name)
                else:
                    self._stack.start_worker(self._stack.workers[name].ready["role"], name)
                return
            except AssertionError:
                if attempt == RESTARTS - 1:
                    raise

    def _vitals(self) -> dict[str, Vitals]:
        found = {}
        for name in ("gateway", *self._stack.workers):
            try:
                found[name] = vitals(self._stack, name)
            except OSError:
                continue  # killed, or starting
        return found

    async def _idle(self) -> dict[str, Vitals]:
        """Everybody's vitals when nothing has been asked for a while, or the last seen where something stays held."""
        end_s = time.monotonic() + QUIET_S
        while any(one.held for one in (await asyncio.to_thread(self._vitals)).values()) and time.monotonic() < end_s:
            await asyncio.sleep(0.5)
        await asyncio.sleep(IDLE_S)
        return await asyncio.to_thread(self._vitals)

    async def _pause(self, for_s: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), for_s)
        except TimeoutError:
            pass
