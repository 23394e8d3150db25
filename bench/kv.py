"""KV pull between two processes against ucx_perftest and raw NIXL: `python -m bench.kv`, `make bench-kv`.

Random bytes in the block layouts of real models, every block compared after each pull, checksums on. In every round,
each of these once, in an order that turns: our pulls over UCX and over plain sockets, both also without checksums (what
they cost); ucx_perftest -e with our UCX settings, with messages of one block, which it keeps in the cache, and with
messages of 256 MiB, which touch as much memory as a prompt does; NIXL READ of the same blocks.

Over `tcp` our transports are ucx/tcp and tcp, over `shm` ucx/shm and cma. Memory in all: up to 6 GiB; prompts of more
than LARGEST_BYTES are skipped, and named.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from . import kv_perftest
from .kv_baton import BatonPair, Moved
from .kv_nixl import NixlPair, nixl_installed
from .kv_store import LAYOUTS, memory, source_memory
from .rounds import turned
from .rows import Measure, Row, compare, show, write

OURS = {"tcp": ("ucx/tcp", "tcp"), "shm": ("ucx/shm", "cma")}
LARGE_BYTES = 256 << 20
NIXL_BYTES = 256 << 20
LARGEST_BYTES = 4 << 30  # of one pull: 16,384 tokens of Qwen3-32B, 32,768 of Llama-3-8B
SPEED = Measure("throughput", "MB/s", "higher", 0.8, 0.9)
BESIDE = Measure("throughput", "MB/s", "higher")
CPU = Measure("cpu", "s/GB", "lower")
CHECKSUM_BAR = 1 / 0.95
CHECKSUM_WALL = Measure("wall with checksums", "s/GB", "lower", CHECKSUM_BAR)
CHECKSUM_CPU = Measure("cpu with checksums", "s/GB", "lower", CHECKSUM_BAR)
BLOCK_PEER, LARGE_PEER = "ucx_perftest -e, a block", "ucx_perftest -e, 256 MiB"

Contenders = dict[str, Callable[[int], Moved]]


@contextmanager
def contenders(layout_name: str, kind: str, max_bytes: int) -> Iterator[Contenders]:
    """Everything that moves `blocks` blocks of this layout, by name."""
    layout, ucx_name = LAYOUTS[layout_name], OURS[kind][0]
    source, destination = source_memory(), memory(max_bytes)
    with ExitStack() as stack:
        found: Contenders = {}
        for transport in OURS[kind]:
            pair = BatonPair(transport, layout_name, source, destination)
            stack.callback(pair.close)
            found[transport] = lambda blocks, pair=pair: pair.pull(blocks * layout.block_tokens)
            found[f"{transport} bare"] = lambda blocks, pair=pair: pair.pull(blocks * layout.block_tokens, on=False)
        found[BLOCK_PEER] = lambda blocks: kv_perftest.run(ucx_name, layout.block_bytes, blocks)
        found[LARGE_PEER] = lambda blocks: kv_perftest.run(
            ucx_name, LARGE_BYTES, max(1, blocks * layout.block_bytes // LARGE_BYTES)
        )
        if nixl_installed():
            nixl = NixlPair(ucx_name, layout.block_bytes, NIXL_BYTES // layout.block_bytes)
            stack.callback(nixl.close)
            found["nixl READ"] = nixl.read
        yield found


def rows_of(case: str, transport: str, seen: dict[str, list[Moved]]) -> list[Row]:
    """Of one transport of ours."""
    speed = {name: [moved.mb_per_s for moved in samples] for name, samples in seen.items()}
    cpu = {name: [moved.cpu_s_per_gb for moved in samples] for name, samples in seen.items()}
    wall = {name: [1e3 / value for value in samples] for name, samples in speed.items()}
    bare = f"{transport} bare"
    peers = [peer for peer in (BLOCK_PEER, LARGE_PEER, "nixl READ") if peer in seen]
    return [
        *(
            compare(case, SPEED if peer == BLOCK_PEER else BESIDE, speed[transport], peer, speed[peer])
            for peer in peers
        ),
        *(compare(case, CPU, cpu[transport], peer, cpu[peer]) for peer in peers if peer != LARGE_PEER),
        compare(case, CHECKSUM_WALL, wall[transport], "baton without", wall[bare]),
        compare(case, CHECKSUM_CPU, cpu[transport], "baton without", cpu[bare]),
    ]


def bench(layout_name: str, kind: str, tokens: list[int], rounds: int) -> Iterator[list[Row]]:
    """The rows of each length, as soon as they are there."""
    layout = LAYOUTS[layout_name]
    sizes_bytes = {count: count // layout.block_tokens * layout.block_bytes for count in tokens}
    for count in [count for count, size_bytes in sizes_bytes.items() if size_bytes > LARGEST_BYTES]:
        print(f"skipped: {layout_name} {count}, {kind}: {sizes_bytes.pop(count):,} bytes, over {LARGEST_BYTES:,}")
    if not sizes_bytes:
        return
    with contenders(layout_name, kind, max(sizes_bytes.values())) as movers:
        for num_tokens in sizes_bytes:
            seen: dict[str, list[Moved]] = defaultdict(list)
            blocks = num_tokens // layout.block_tokens
            for transport in OURS[kind]:
                movers[transport](blocks)  # warm: the link is up and the pages are there
            for number in range(rounds):
                for name in turned(list(movers), number):
                    seen[name].append(movers[name](blocks))
            for transport in OURS[kind]:
                yield rows_of(f"{layout_name} {num_tokens} {transport}", transport, seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--kinds", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--keep", action="store_true", help="keep the results of cases that are not run")
    options = parser.parse_args()
    rows: list[Row] = []
    for kind in options.kinds:
        for layout_name in options.layouts:
            for found in bench(layout_name, kind, options.tokens, options.rounds):
                show(found)
                rows += found
                print(write("kv", rows, keep_other_cases=options.keep))


if __name__ == "__main__":
    main()
