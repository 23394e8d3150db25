"""`make pressure`: memory of the gateway, latency of a healthy client; slow sockets, a long queue, hostile bodies.

python -m pressure [slow] [queue] [bodies]
Writes bench/results/pressure-PART.json. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench.rows import Row, show, write

from support.stack import Stack
from support.tiny_models import TinyModel, make_model

from .rounds import SLOTS, Queue, hostile_bodies, long_queue, slow_sockets

WORKER = {"engine": {"max_running": 64, "max_requests": 4096}}
WIDE = {"max_connections": 12_000, "max_connections_per_address": 12_000}
LONG = {"max_tokenising": 10_000, "queue_ttl_s": 20.0}
ALL = Queue("all may wait", wait_least=5000, wait_most=10_000, answered=2500)
FEW = Queue("1,024 may wait", wait_least=512, wait_most=1024 + 256, answered=640)
"""At most wait, of FEW: in the queue and for the tokeniser."""
PARTS: dict[str, list[tuple[dict[str, Any], Callable[[Stack], Coroutine[Any, Any, list[Row]]]]]] = {
    "slow": [
        (WIDE, lambda stack: slow_sockets(stack, 2000, held=2000)),
        ({"max_connections_per_address": 256}, lambda stack: slow_sockets(stack, 2000, held=256)),
    ],
    "queue": [
        ({**WIDE, **LONG, "max_in_flight": SLOTS, "max_queued": 10_000}, lambda stack: long_queue(stack, 10_000, ALL)),
        ({**WIDE, "max_in_flight": SLOTS, "max_queued": 1024}, lambda stack: long_queue(stack, 10_000, FEW)),
    ],
    "bodies": [({}, hostile_bodies)],
}


def main(parts: list[str]) -> int:
    missed = False
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name) / "model", TinyModel("llama", max_position=2048))
        for part in parts or PARTS:
            rows: list[Row] = []
            for number, (gateway, measure) in enumerate(PARTS[part]):
                directory = Path(name) / f"{part}-{number}"
                with Stack.up(model, directory, worker=WORKER, gateway=gateway) as stack:
                    found = asyncio.run(measure(stack))
                    stack.wait_quiet(60.0)
                show(found)
                rows += found
            write(f"pressure-{part}", rows)
            missed = missed or any(row.met is False for row in rows)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
