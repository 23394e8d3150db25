"""Baton's gateway against sglang-router, vllm-router and Dynamo: `python -m bench.gateway`, `make bench-gateway`.

CPU seconds of a gateway's whole process tree, per request or per SSE event, while the C driver sends it seeded prompts
of 4 kB, the same ones to every gateway: made-up text of 20,000 words (Zipf), numbers and punctuation, 2,800 tokens of
the demo model's tokenizer (English: 2,100). Each round runs every gateway of the case, in an order that turns.
Against the routers, before the same two mock workers, 64 shared prefixes: whole answers of 16 tokens; bursts (64 events
back to back); 200 paced streams of 200 events. Against Dynamo, which routes by tokens as we do: whole answers of 16
tokens, prompts that share nothing and prompts that share one of 64 prefixes. What differs there are the workers: Dynamo
speaks only to its own mockers, gets tokens from them and makes the answers' text in its frontend; ours relays the mock
worker's text.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from baton_api.worker import Role

from .cpu import resident_mb, tree_cpu_s
from .gateway_peers import Load, Stage, Started
from .rounds import turned
from .rows import Measure, Row, compare, show, write

OURS = {"baton": "keys of text", "baton tokens": "keys of tokens", "baton-pd": "P/D, keys of tokens"}
ROUTERS = ("sglang cache_aware", "sglang round_robin", "vllm cache_aware", "vllm round_robin")
DYNAMO = "Dynamo kv, own mockers"
BY_TOKENS = ("baton tokens", "baton-pd", DYNAMO)
BARS = {("baton", router): (0.8, 0.6) for router in ROUTERS} | {(ours, DYNAMO): (0.5, None) for ours in BY_TOKENS[:2]}
"""On CPU, by (ours, peer): the bar and the goal; against the routers on the best of them."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    connections: int
    requests: int
    max_tokens: int
    streamed: bool
    rounds: int
    prefixes: int = 64
    gateways: tuple[str, ...] = ("baton", "baton tokens", "baton-pd", *ROUTERS)

    @property
    def unit_name(self) -> str:
        return "cpu per event" if self.streamed else "cpu per request"


CASES = (
    Case("json 4 kB", 32, 3000, 16, False, 7),
    Case("burst 64 events", 32, 600, 64, True, 7),
    Case("paced 200 x 200 events", 200, 200, 200, True, 3),
    Case("cold prompts", 32, 600, 16, False, 5, prefixes=0, gateways=BY_TOKENS),
    Case("shared prefixes", 32, 600, 16, False, 5, gateways=BY_TOKENS),
)
P50 = Measure("p50", "us", "lower")


@dataclass(frozen=True, slots=True)
class Cost:
    cpu_us: float
    per_s: float
    p50_us: float
    p99_us: float


def start_all(stage: Stage) -> list[Started]:
    """The two mock workers are decode workers to Baton; in P/D one of two others prefills."""
    decode = [stage.worker("d0", Role.DECODE), stage.worker("d1", Role.DECODE)]
    pair = [stage.worker("p0", Role.PREFILL), stage.worker("d2", Role.DECODE)]
    return [
        stage.baton("baton", decode, mode="aggregated", prefix_keys="text"),
        stage.baton("baton tokens", decode, mode="aggregated"),
        stage.baton("baton-pd", pair, mode="disaggregated"),
        stage.sglang("sglang cache_aware", "cache_aware", decode),
        stage.sglang("sglang round_robin", "round_robin", decode),
        stage.vllm("vllm cache_aware", "cache_aware", decode),
        stage.vllm("vllm round_robin", "round_robin", decode),
        stage.dynamo(DYNAMO),
    ]


def measure(stage: Stage, gateway: Started, case: Case, seed: int) -> Cost:
    before_s = tree_cpu_s(gateway.pid)
    seen = stage.load(
        gateway.port, case.connections, case.requests, case.max_tokens,
        streamed=case.streamed, prefixes=case.prefixes, seed=seed,
    )  # fmt: skip
    used_s = tree_cpu_s(gateway.pid) - before_s
    if seen.errors or seen.requests != case.requests:
        raise RuntimeError(f"{gateway.name}, {case.name}: {seen}")
    done = work_done(case, seen)
    return Cost(used_s / done * 1e6, done / seen.wall_s, seen.p50_us, seen.p99_us)


def work_done(case: Case, seen: Load) -> int:
    """Requests, or events of streams. Every stream has max_tokens events and two or three more."""
    if not case.streamed:
        return seen.requests
    if seen.events < case.requests * case.max_tokens:
        raise RuntimeError(f"{case.name}: only {seen.events} events came")
    return seen.events


def bench_case(stage: Stage, gateways: list[Started], case: Case) -> dict[str, list[Cost]]:
    seen: dict[str, list[Cost]] = defaultdict(list)
    for gateway in gateways:
        warm = replace(case, requests=min(case.requests, 300), max_tokens=min(case.max_tokens, 64))
        measure(stage, gateway, warm, seed=99)
    for number in range(case.rounds):
        for gateway in turned(gateways, number):
            seen[gateway.name].append(measure(stage, gateway, case, seed=number))
    return seen


def rows_of(case: Case, seen: dict[str, list[Cost]]) -> list[Row]:
    """Each of ours against each peer."""
    rows = []
    for ours in (name for name in seen if name in OURS):
        for peer in (name for name in seen if name not in OURS):
            bar, goal = BARS.get((ours, peer), (None, None))
            cpu = Measure(case.unit_name, "us", "lower", bar, goal)
            name = f"{case.name}, {OURS[ours]}"
            mine, theirs = seen[ours], seen[peer]
            rows += [
                compare(name, cpu, [c.cpu_us for c in mine], peer, [c.cpu_us for c in theirs]),
                compare(name, P50, [c.p50_us for c in mine], peer, [c.p50_us for c in theirs]),
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=[case.name.split()[0] for case in CASES])
    parser.add_argument("--rounds", type=int, default=0, help="of every case; 0: as many as the case has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        try:
            gateways = start_all(stage)
            for case in CASES:
                if case.name.split()[0] in options.cases:
                    wanted = replace(case, rounds=options.rounds or case.rounds)
                    taking_part = [gateway for gateway in gateways if gateway.name in case.gateways]
                    found = rows_of(wanted, bench_case(stage, taking_part, wanted))
                    show(found)
                    print(write("gateway", found, keep_other_cases=True), flush=True)
            print({gateway.name: f"{resident_mb(gateway.pid):.0f} MB" for gateway in gateways})
        finally:
            stage.close()


if __name__ == "__main__":
    main()
