"""KV pull between two processes against ucx_perftest and raw NIXL: `python -m bench.kv`, `make bench-kv`.

Random bytes in the block layouts of real models, every block compared after each pull, checksums on. In every round,
each of these once, in an order that turns: our pull, our pull without checksums (what they cost), ucx_perftest -e with
our UCX settings and messages of one block, NIXL READ of the same blocks.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable

from . import kv_perftest
from .kv_baton import BatonPair, Moved
from .kv_nixl import NixlPair, nixl_installed
from .kv_store import LAYOUTS, random_memory
from .rounds import turned
from .rows import Measure, Row, compare, show, write

SOURCE_BYTES = 512 << 20
SPEED = Measure("throughput", "MB/s", "higher", 0.8, 0.9)
BESIDE = Measure("throughput", "MB/s", "higher")
CPU = Measure("cpu", "s/GB", "lower")
CHECKSUM_WALL = Measure("wall with checksums", "s/GB", "lower", 1 / 0.95)
CHECKSUM_CPU = Measure("cpu with checksums", "s/GB", "lower")

Contender = tuple[str, Callable[[], Moved]]


def bench_case(pair: BatonPair, nixl: NixlPair | None, case: str, num_tokens: int, rounds: int) -> list[Row]:
    """All contenders on one layout, transport and length."""
    layout_name, transport, _ = case.split()
    layout = LAYOUTS[layout_name]
    blocks = num_tokens // layout.block_tokens
    contenders: list[Contender] = [
        ("baton", lambda: pair.pull(num_tokens)),
        ("perftest", lambda: kv_perftest.run(transport, layout.block_bytes, blocks)),
        ("no checksums", lambda: pair.pull(num_tokens, checksums=False)),
    ]
    if nixl is not None:
        contenders.append(("nixl", lambda: nixl.read(blocks)))
    seen: dict[str, list[Moved]] = defaultdict(list)
    pair.pull(num_tokens)  # warm: the link is up and the pages are there
    for number in range(rounds):
        for name, move in turned(contenders, number):
            seen[name].append(move())
    return rows_of(case, seen)


def rows_of(case: str, seen: dict[str, list[Moved]]) -> list[Row]:
    speed = {name: [moved.mb_per_s for moved in samples] for name, samples in seen.items()}
    cpu = {name: [moved.cpu_s_per_gb for moved in samples] for name, samples in seen.items()}
    wall = {name: [1e3 / value for value in samples] for name, samples in speed.items()}
    rows = [
        compare(case, SPEED, speed["baton"], "ucx_perftest -e", speed["perftest"]),
        compare(case, CPU, cpu["baton"], "ucx_perftest -e", cpu["perftest"]),
        compare(case, CHECKSUM_WALL, wall["baton"], "baton without", wall["no checksums"]),
        compare(case, CHECKSUM_CPU, cpu["baton"], "baton without", cpu["no checksums"]),
    ]
    if "nixl" in seen:
        rows += [
            compare(case, BESIDE, speed["baton"], "nixl READ", speed["nixl"]),
            compare(case, CPU, cpu["baton"], "nixl READ", cpu["nixl"]),
        ]
    return rows


def bench_pair(layout_name: str, transport: str, tokens: list[int], rounds: int) -> list[Row]:
    rows: list[Row] = []
    source = random_memory(SOURCE_BYTES, seed=7)
    pair = BatonPair(transport, layout_name, source, max(tokens))
    nixl = NixlPair(transport, LAYOUTS[layout_name].block_bytes, max(tokens) // 16) if nixl_installed() else None
    try:
        for num_tokens in tokens:
            found = bench_case(pair, nixl, f"{layout_name} {transport} {num_tokens}", num_tokens, rounds)
            assert pair.negotiated == transport, f"runs on {pair.negotiated}"
            show(found)
            rows += found
    finally:
        pair.close()
        if nixl is not None:
            nixl.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--transports", nargs="+", default=["ucx/tcp", "ucx/shm"])
    options = parser.parse_args()
    rows: list[Row] = []
    for transport in options.transports:
        for layout_name in options.layouts:
            rows += bench_pair(layout_name, transport, options.tokens, options.rounds)
            print(write("kv", rows))


if __name__ == "__main__":
    main()
